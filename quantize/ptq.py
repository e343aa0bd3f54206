"""Post-training quantization with a choice of calibration, weights of 4 bits, and repairs.

There are two ways. The plain choice, ranges from the least to the greatest value seen, 8 bits
and no repair, is the converter's own (`edgekiln.quantize.converter`): it takes any model that the
converter takes. So is int16x8, whose ranges are wide enough for every value. All other choices go
through the model with fake quantization (`edgekiln.quantize.qat`), where ranges, biases and scales
of weights can be set one by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgekiln.errors import BadInputError
from edgekiln.quantize.bias_correction import correct_biases
from edgekiln.quantize.calibration import CalibrationMethod, Range, choose_range
from edgekiln.quantize.converter import convert
from edgekiln.quantize.equalization import equalize_layers, relax_relu6
from edgekiln.quantize.fake_quant import FIXED
from edgekiln.quantize.histogram import collect_histograms
from edgekiln.quantize.keras_run import run_batches
from edgekiln.quantize.qat import (
    QatConfig,
    activation_quantizers,
    observation_model,
    observing,
    quantize_model,
)
from edgekiln.quantize.qat_convert import convert_qat
from edgekiln.quantize.representative import (
    Array,
    InputShape,
    Representative,
    check_representative,
)
from edgekiln.quantize.scheme import Scheme
from edgekiln.train.model_file import write_model
from edgekiln.train.quiet_keras import keras


@dataclass(frozen=True)
class PtqConfig:
    """How a trained model is quantized without training.

    Attributes:
        calibration: How activations get their ranges.
        percentile: Percent of the values that are not clipped, with calibration by percentile.
        weight_bits: 8 or 4; the compiler takes 4, TensorFlow Lite Micro does not in every layer.
        layer_weight_bits: Bits of the weights of single layers, by name ("block/conv" in a nested
            model).
        weight_range: "max" gives a channel's largest weight the highest code, "mse" clips
            weights where that makes the squared error less.
        activation_bits: 8, or 16 for int16x8: 8-bit weights and the converter's own calibration.
        equalize: Whether successive layers are equalized first; ReLU6 that never clips on the
            representative data becomes ReLU.
        bias_correction: Whether the mean error of each channel is subtracted from its bias.

    Raises:
        BadInputError: A value is out of its range, or goes with no other.
    """

    calibration: CalibrationMethod = CalibrationMethod.MINMAX
    percentile: float = 99.99
    weight_bits: int = 8
    layer_weight_bits: Mapping[str, int] = field(default_factory=dict)
    weight_range: Literal["max", "mse"] = "max"
    activation_bits: int = 8
    equalize: bool = False
    bias_correction: bool = False

    def __post_init__(self) -> None:
        _require("calibration", self.calibration, tuple(CalibrationMethod))
        if not 50.0 < self.percentile <= 100.0:
            raise BadInputError("ptq: percentile", got=self.percentile, allowed="(50, 100]")
        _require("weight_bits", self.weight_bits, (8, 4))
        for name, bits in self.layer_weight_bits.items():
            _require(f"layer_weight_bits of '{name}'", bits, (8, 4))
        _require("weight_range", self.weight_range, ("max", "mse"))
        _require("activation_bits", self.activation_bits, (8, 16))
        if self.activation_bits == 16 and self._choices():
            raise BadInputError(
                "ptq: 16-bit activations are calibrated by the converter, which has no such choice",
                got=", ".join(self._choices()),
                allowed="equalize",
                hint="leave it out, or take activation_bits 8",
            )

    def _choices(self) -> tuple[str, ...]:
        """Returns which of the values need the model with fake quantization."""
        chosen = {
            f"calibration {self.calibration}": self.calibration != CalibrationMethod.MINMAX,
            f"weight_bits {self.weight_bits}": self.weight_bits != 8,
            "layer_weight_bits": bool(self.layer_weight_bits),
            f"weight_range {self.weight_range}": self.weight_range != "max",
            "bias_correction": self.bias_correction,
        }
        return tuple(name for name, is_chosen in chosen.items() if is_chosen)

    @property
    def uses_converter(self) -> bool:
        """Whether the converter's own calibration does all that is asked for."""
        return not self._choices()


def _require(what: str, got: object, allowed: tuple[object, ...]) -> None:
    if got not in allowed:
        shown = " or ".join(str(each) for each in allowed)
        raise BadInputError(f"ptq: {what}", got=got, allowed=shown)


def quantize_ptq(
    model: Any, representative: Representative, config: PtqConfig, output: Path, where: object = ""
) -> None:
    """Quantizes a trained Keras model to a ``.tflite`` with a batch of 1.

    Args:
        model: A trained functional or Sequential model; it is left as it is.
        representative: float32 [N, ...], inputs like those the model will meet; of several
            inputs an array each, in their order or by name.
        config: How.
        output: The ``.tflite`` to write, whole or not at all. Its inputs and outputs are int8, or
            int16 with 16-bit activations.
        where: The model's name in messages, by default its own.

    Raises:
        BadInputError: The representative data cannot be used, ``config`` names a layer that does
            not exist, or the file cannot be written.
        BadModelError: The model cannot be converted, or is not of the types wanted throughout;
            the message names the layers.
        UnsupportedOpError: A layer has no form with fake quantization.
    """
    where = str(where) or f"model '{model.name}'"
    data = read_inputs(model, representative, where)
    if not config.uses_converter:
        convert_qat(make_ptq_model(model, data, config), output, where)
        return
    if config.equalize:
        model = equalize_layers(relax_relu6(model, data)).model
    scheme = Scheme.INT8 if config.activation_bits == 8 else Scheme.INT16X8
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        source = Path(scratch) / "model.keras"
        write_model(model, source)
        convert(source, output, scheme, data, where)


def read_inputs(model: Any, representative: Representative, where: object) -> dict[str, Array]:
    """Returns checked representative data of a model's inputs, by name, in their order.

    Raises:
        BadInputError: The data cannot be used, or are not those of these inputs.
    """
    inputs = [InputShape(tensor.name, tuple(tensor.shape[1:])) for tensor in model.inputs]
    return check_representative(representative, where).for_inputs(inputs, where)


def make_ptq_model(model: Any, data: Mapping[str, Array], config: PtqConfig) -> Any:
    """Returns the calibrated model with fake quantization.

    Args:
        model: A trained functional or Sequential model; it is left as it is.
        data: What `read_inputs` returns.
        config: How; ``activation_bits`` is taken as the width of all activations.

    Raises:
        BadInputError: ``config`` names a layer that does not exist, or the model gives NaN or
            infinity.
        BadModelError: The model is subclassed, or a layer cannot be copied.
        UnsupportedOpError: A layer has no form with fake quantization.
    """
    if config.equalize:
        model = equalize_layers(relax_relu6(model, data)).model
    quantized = quantize_model(
        model,
        QatConfig(
            weight_bits=config.weight_bits,
            layer_weight_bits=config.layer_weight_bits,
            weight_scale="lsq" if config.weight_range == "mse" else "max",
            activation_bits=config.activation_bits,
        ),
    )
    calibrate(quantized, data, config.calibration, config.percentile)
    if config.bias_correction:
        correct_biases(quantized, data)
    return quantized


def calibrate(
    model: Any,
    data: Mapping[str, Array],
    method: CalibrationMethod = CalibrationMethod.MINMAX,
    percentile: float = 99.99,
) -> dict[str, Range]:
    """Sets the ranges of a quantized model's activations by what they are in the float model.

    Args:
        model: What `quantize_model` returned.
        data: float32 [N, ...] for each input, by name, in the order of the model's inputs.
        method: How to choose a range.
        percentile: As in `PtqConfig`.

    Returns:
        The ranges that were set, by the names of `activation_quantizers`.

    Raises:
        BadInputError: An activation is NaN or infinite; the message names it.
    """
    observed = observation_model(model)
    with observing(model):
        histograms = collect_histograms(
            (name, values)
            for results in run_batches(observed, data)
            for name, sites in results.items()
            for values in keras.tree.flatten(sites)
        )
    ranges = {}
    for name, quantizer in activation_quantizers(model).items():
        if quantizer.ranges != FIXED:
            ranges[name] = choose_range(
                histograms[name],
                method,
                bits=quantizer.bits,
                symmetric=quantizer.bits == 16,
                percentile=percentile,
            )
            quantizer.set_range(*ranges[name])
    return ranges
