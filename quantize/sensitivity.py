"""Which layers cost accuracy when a model is quantized, and what helps.

The model with fake quantization is measured with one layer quantized and all others float, with
all but one quantized, and with each remedy on one layer: activations of 16 bits, weights of 8
bits instead of 4, or the layer left float. Training with quantization helps all layers at once;
it is measured where the caller says how to train.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from edgekiln import console
from edgekiln.errors import BadInputError
from edgekiln.quantize.bias_correction import correct_biases
from edgekiln.quantize.fake_quant import FIXED
from edgekiln.quantize.keras_run import run_batches
from edgekiln.quantize.layer_error import ErrorSums
from edgekiln.quantize.ptq import PtqConfig, make_ptq_model
from edgekiln.quantize.qat import activation_quantizers, weight_quantizers
from edgekiln.quantize.representative import Array
from edgekiln.train.quiet_keras import keras

Labels = npt.NDArray[np.integer[Any]]

WIDE_ACTIVATIONS = "16-bit activations"
WIDE_WEIGHTS = "8-bit weights"
EXCLUDED = "left float"


@dataclass(frozen=True)
class Score:
    """How good a model's outputs are.

    Attributes:
        accuracy: Share of samples with the right class; without labels, with the class that the
            float model decides for.
        sqnr_db: Ratio of signal to noise of all outputs against the float model's, in dB, at
            most 200.
    """

    accuracy: float
    sqnr_db: float


@dataclass(frozen=True)
class Remedy:
    """What helps one layer.

    Attributes:
        name: What is done.
        score: Of the quantized model with it.
        regained: Accuracy with it less that without it.
        regained_db: The same of the ratio of signal to noise.
    """

    name: str
    score: Score
    regained: float
    regained_db: float


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantizing one layer costs.

    Attributes:
        layer: Name of the layer: its weights, if any, and its output are quantized.
        alone: Score with it quantized and all others float.
        without: Score with it float and all others quantized.
        remedies: What helps, best first.
    """

    layer: str
    alone: Score
    without: Score
    remedies: tuple[Remedy, ...]


@dataclass(frozen=True)
class SensitivityReport:
    """Sensitivity of all layers of a model.

    Attributes:
        measure: What "accuracy" is: "accuracy", or "agreement" with the float model.
        samples: Number of samples it was measured on.
        float_score: Of the float model.
        quantized_score: Of the model with all layers quantized.
        layers: The layers, the one that costs most first.
        trained: Score after training with quantization, if that was asked for.
    """

    measure: str
    samples: int
    float_score: Score
    quantized_score: Score
    layers: tuple[LayerSensitivity, ...]
    trained: Score | None

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON values."""
        return asdict(self)

    def table(self) -> Table:
        """Returns the layers as a table for the terminal."""
        rows = [
            (
                each.layer,
                f"{each.alone.sqnr_db:.1f}",
                f"{100 * each.alone.accuracy:.2f} %",
                f"{100 * each.without.accuracy:.2f} %",
                _describe(each.remedies),
            )
            for each in self.layers
        ]
        return console.make_table(
            f"Sensitivity: {self.measure} on {self.samples} samples, "
            f"float {100 * self.float_score.accuracy:.2f} %, "
            f"quantized {100 * self.quantized_score.accuracy:.2f} %"
            + (f", trained {100 * self.trained.accuracy:.2f} %" if self.trained else ""),
            ("layer", "SQNR alone dB", "alone", "all but it", "what helps most"),
            rows,
        )


def _describe(remedies: Sequence[Remedy]) -> str:
    """Returns the best remedy that an integer model can have; left float, a layer has a column."""
    remedy = next((each for each in remedies if each.name != EXCLUDED), None)
    if remedy is None:
        return "-"
    return f"{remedy.name} {100 * remedy.regained:+.2f} pt {remedy.regained_db:+.1f} dB"


_MOST_DB = 200.0


def measure_sensitivity(
    model: Any,
    calibration: Mapping[str, Array],
    data: Mapping[str, Array],
    config: PtqConfig,
    labels: Labels | None = None,
    train: Callable[[Any], None] | None = None,
) -> SensitivityReport:
    """Measures what each layer costs when a model is quantized, and what helps.

    Args:
        model: A trained functional or Sequential model with class scores as its first output;
            of a single score it is whether that is above 0.5.
        calibration: float32 [N, ...] for each input, by name, in the order of the inputs.
        data: Samples to measure on, likewise.
        config: How it is quantized.
        labels: Class of each sample in ``data``, or None.
        train: Trains the quantized model in place, as with `fit`. Given, the report says what
            that regains.

    Raises:
        BadInputError: There are not as many labels as samples, or the data cannot be used.
        BadModelError: The model is subclassed, or a layer cannot be copied.
        UnsupportedOpError: A layer has no form with fake quantization.
    """
    quantized = make_ptq_model(model, calibration, replace(config, bias_correction=False))
    meter = _Meter(model, data, labels)
    switches = _Switches(quantized)
    if config.bias_correction:
        correct_biases(quantized, calibration)
    everything = meter.score(quantized)

    def remedy(name: str, change: Any) -> Remedy:
        with change:
            score = meter.score(quantized)
        return Remedy(
            name,
            score,
            score.accuracy - everything.accuracy,
            score.sqnr_db - everything.sqnr_db,
        )

    layers = []
    for layer in console.track(switches.layers, "Measuring layers", len(switches.layers)):
        with switches.only(layer):
            alone = meter.score(quantized)
        remedies = [remedy(name, change) for name, change in switches.remedies(layer)]
        without = next(each.score for each in remedies if each.name == EXCLUDED)
        remedies.sort(key=lambda each: (-each.regained, -each.regained_db))
        layers.append(LayerSensitivity(layer, alone, without, tuple(remedies)))
    layers.sort(key=lambda each: (each.alone.accuracy, each.alone.sqnr_db))
    trained = None
    if train is not None:
        train(quantized)
        trained = meter.score(quantized)
    return SensitivityReport(
        measure="agreement" if labels is None else "accuracy",
        samples=meter.samples,
        float_score=meter.float_score,
        quantized_score=everything,
        layers=tuple(layers),
        trained=trained,
    )


class _Meter:
    """Scores models against the float model's outputs and, where there are any, labels."""

    def __init__(self, model: Any, data: Mapping[str, Array], labels: Labels | None) -> None:
        functional = model._functional if isinstance(model, keras.Sequential) else model
        self._data = data
        self.samples = len(next(iter(data.values())))
        if labels is not None and labels.shape != (self.samples,):
            raise BadInputError(
                "sensitivity: labels do not fit the samples",
                got=f"shape {labels.shape}",
                allowed=f"({self.samples},)",
            )
        self._expected = [keras.tree.flatten(each) for each in run_batches(functional, data)]
        decided = np.concatenate([_decide(outputs[0]) for outputs in self._expected])
        self._classes = decided if labels is None else labels
        self.float_score = Score(float(np.mean(decided == self._classes)), _MOST_DB)

    def score(self, model: Any) -> Score:
        sums = ErrorSums()
        decided = []
        for expected, given in zip(self._expected, run_batches(model, self._data), strict=True):
            outputs = keras.tree.flatten(given)
            decided.append(_decide(outputs[0]))
            for wanted, got in zip(expected, outputs, strict=True):
                sums.add(wanted, got)
        accuracy = float(np.mean(np.concatenate(decided) == self._classes))
        return Score(accuracy, min(max(sums.sqnr_db, -_MOST_DB), _MOST_DB))


def _decide(outputs: Array) -> Array:
    """Returns the class of each sample, int64 [N]."""
    scores = outputs.reshape(len(outputs), -1)
    if scores.shape[1] == 1:
        return (scores[:, 0] > 0.5).astype(np.int64)
    return np.asarray(scores.argmax(axis=1), np.int64)


class _Switches:
    """Switches the quantizers of single layers, and back."""

    def __init__(self, model: Any) -> None:
        self._activations = activation_quantizers(model)
        self._weights = weight_quantizers(model)
        # A layer that is left float has the bias it had before any correction.
        self._biases = {
            name: keras.ops.convert_to_numpy(layer.bias) for name, layer in self._weights.items()
        }
        ordered = (layer.name for layer in model.layers)
        names = {*self._activations, *self._weights}
        by_quantizer = {each.name: name for name, each in self._activations.items()}
        found = (by_quantizer.get(name, name) for name in ordered)
        self.layers = tuple(dict.fromkeys(name for name in found if name in names))

    @contextlib.contextmanager
    def only(self, layer: str) -> Iterator[None]:
        """Quantizes one layer alone within a ``with``."""
        with contextlib.ExitStack() as stack:
            for other in self.layers:
                if other != layer:
                    stack.enter_context(self._floating(other))
            yield

    def remedies(self, layer: str) -> Iterator[tuple[str, Any]]:
        """Yields what may help a layer, as a name and a context in which it is done."""
        quantizer, weights = self._activations.get(layer), self._weights.get(layer)
        if quantizer is not None and quantizer.bits == 8 and quantizer.ranges != FIXED:
            yield WIDE_ACTIVATIONS, _set(quantizer, "bits", 16)
        if weights is not None and weights.weight_bits == 4:
            yield WIDE_WEIGHTS, _set(weights, "weight_bits", 8)
        yield EXCLUDED, self._floating(layer)

    @contextlib.contextmanager
    def _floating(self, layer: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if layer in self._activations:
                stack.enter_context(_set(self._activations[layer], "enabled", False))
            if layer in self._weights:
                stack.enter_context(_set(self._weights[layer], "weights_enabled", False))
                bias = self._weights[layer].bias
                stack.callback(bias.assign, keras.ops.convert_to_numpy(bias))
                bias.assign(self._biases[layer])
            yield


@contextlib.contextmanager
def _set(target: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)
