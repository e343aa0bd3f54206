"""Bias correction: takes back the shift of the outputs that quantization causes on average.

Rounding a layer's weights adds an error to each output channel, whose mean over real inputs is
seldom zero. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction" (arXiv:1906.04721), section 4.2, subtract that mean from the bias; here it is measured
on representative data, as in their appendix D: layer by layer, each after those before it have
been quantized and corrected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.quantize.keras_run import run_batches
from edgekiln.quantize.qat import observing, weight_quantizers
from edgekiln.quantize.representative import Array
from edgekiln.train.quiet_keras import keras

Means = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BiasCorrection:
    """What was done to one layer.

    Attributes:
        layer: Its name.
        mean_shift: Mean over the channels of what was subtracted from the bias, in magnitude.
        largest_shift: Greatest such magnitude.
    """

    layer: str
    mean_shift: float
    largest_shift: float


def correct_biases(model: Any, data: Mapping[str, Array]) -> tuple[BiasCorrection, ...]:
    """Corrects the biases of a quantized model in place.

    Args:
        model: What `edgekiln.quantize.qat.quantize_model` returned, its activations calibrated.
            With its quantizers off it computes what the float model does; after this no more.
        data: float32 [N, ...] for each input, by name, in the order of the model's inputs.

    Returns:
        What was done, layer by layer.
    """
    layers = weight_quantizers(model)
    probe = _probe(model, layers)
    with observing(model):
        inputs = _mean_inputs(probe, data)
        wanted = {name: _mean_outputs(layers[name], inputs[name]) for name in layers}
    corrections = []
    for name, layer in layers.items():
        shift = _mean_outputs(layer, _mean_inputs(probe, data)[name]) - wanted[name]
        bias = keras.ops.convert_to_numpy(layer.bias).astype(np.float64)
        layer.bias.assign((bias - shift).astype(np.float32))
        size = np.abs(shift)
        corrections.append(BiasCorrection(name, float(size.mean()), float(size.max())))
    return tuple(corrections)


def _probe(model: Any, layers: Mapping[str, Any]) -> Any:
    """Returns a model that gives what goes into each layer, by name, each time it is called."""
    nodes = [node for nodes in model._nodes_by_depth.values() for node in nodes]
    outputs = {
        name: [node.input_tensors[0] for node in nodes if node.operation is layer]
        for name, layer in layers.items()
    }
    return keras.Model(model.input, outputs)


def _mean_inputs(probe: Any, data: Mapping[str, Array]) -> dict[str, list[Means]]:
    """Returns what goes into each layer on average over the samples, float64 [1, ...]."""
    totals: dict[str, list[Any]] = {}
    for results in run_batches(probe, data):
        for name, tensors in results.items():
            before = totals.get(name, [0.0] * len(tensors))
            sums = (values.sum(axis=0, keepdims=True, dtype=np.float64) for values in tensors)
            totals[name] = [old + new for old, new in zip(before, sums, strict=True)]
    samples = len(next(iter(data.values())))
    return {name: [total / samples for total in each] for name, each in totals.items()}


def _mean_outputs(layer: Any, inputs: list[Means]) -> Means:
    """Returns the mean of each output channel before the activation, float64 [channels].

    The layer is linear, so its output for the mean input is the mean of its outputs.
    """
    with _linear(layer):
        outputs = [keras.ops.convert_to_numpy(layer(each.astype(np.float32))) for each in inputs]
    pixels = np.concatenate([each.reshape(-1, each.shape[-1]) for each in outputs])
    return np.asarray(pixels.mean(axis=0, dtype=np.float64), np.float64)


@contextlib.contextmanager
def _linear(layer: Any) -> Iterator[None]:
    """Takes a layer's activation away within a ``with``."""
    activation = layer.activation
    layer.activation = keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation
