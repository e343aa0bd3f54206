"""Quantization-aware training: turns a float Keras model into one with int8 arithmetic.

::

    model = quantize_model(float_model, QatConfig(weight_bits=4, ranges="lsq"), x_train[:256])
    model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
    model.fit(x_train, y_train, epochs=3)
    convert_qat(model, Path("model.tflite"))

What `quantize_model` returns is an ordinary functional model: it trains, is saved as ``.keras``
and loads again once this module is imported. Its quantizers can be reached one by one
(`activation_quantizers`, `weight_quantizers`), be given ranges, switched off or set to another
width; `observation_model` gives the activations as they enter the quantizers. Calibration and
sensitivity analysis build on these.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError
from edgekiln.quantize.fake_quant import (
    FIXED,
    LSQ,
    MAX,
    MOVING_AVERAGE,
    ActivationQuantizer,
    QuantizedConv2D,
    QuantizedConv2DTranspose,
    QuantizedDense,
    QuantizedDepthwiseConv2D,
    QuantizedKernel,
)
from edgekiln.quantize.keras_graph import (
    Call,
    LayerCopies,
    Value,
    build_model,
    copy_layer,
    flat_name,
    read_graph,
)
from edgekiln.quantize.lowering import WEIGHTED, lower_model
from edgekiln.quantize.range_plan import RangeGroup, RangePlan, Site, plan_ranges
from edgekiln.train.quiet_keras import keras

Array = npt.NDArray[Any]

_SUFFIX = "_quantizer"
_KINDS = {
    keras.layers.Conv2D: QuantizedConv2D,
    keras.layers.DepthwiseConv2D: QuantizedDepthwiseConv2D,
    keras.layers.Conv2DTranspose: QuantizedConv2DTranspose,
    keras.layers.Dense: QuantizedDense,
}


@dataclass(frozen=True)
class QatConfig:
    """How a model is quantized.

    Attributes:
        weight_bits: Width of weights, 8 or 4.
        activation_bits: Width of activations, 8; or 16 for experiments in Keras, which
            `convert_qat` does not take.
        ranges: How activations get their ranges in training: "moving_average" of each batch's
            minimum and maximum, or learned, "lsq".
        weight_scale: "max" gives the largest weight of a channel the highest code; "lsq" learns
            the scale, which is worth it with 4 bits.
        layer_weight_bits: Width of weights of single layers, by name ("block/conv" for a layer
            of a nested model).
        exclude: Names of layers that stay float, with their outputs; for experiments.
        momentum: Share of the old range that a training step keeps in a moving average.
        keep_zeros: Whether weights that are zero now, after pruning, stay zero in training.

    Raises:
        BadInputError: A value is none of those.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    ranges: Literal["moving_average", "lsq"] = "moving_average"
    weight_scale: Literal["max", "lsq"] = "max"
    layer_weight_bits: Mapping[str, int] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    momentum: float = 0.99
    keep_zeros: bool = True

    def __post_init__(self) -> None:
        _require("weight_bits", self.weight_bits, (8, 4))
        _require("activation_bits", self.activation_bits, (8, 16))
        _require("ranges", self.ranges, (MOVING_AVERAGE, LSQ))
        _require("weight_scale", self.weight_scale, (MAX, LSQ))
        for name, bits in self.layer_weight_bits.items():
            _require(f"layer_weight_bits of '{name}'", bits, (8, 4))
        if not 0 <= self.momentum < 1:
            raise BadInputError("quantize: momentum", got=self.momentum, allowed="[0, 1)")


def _require(what: str, got: object, allowed: tuple[object, ...]) -> None:
    if got not in allowed:
        shown = " or ".join(str(each) for each in allowed)
        raise BadInputError(f"quantize: {what}", got=got, allowed=shown)


def quantize_model(model: Any, config: QatConfig, calibration: Any = None) -> Any:
    """Returns a trainable model that computes with fake-quantized weights and activations.

    Nested models are flattened, batch normalization is folded, layers from outside Keras that
    only call Keras layers are taken apart. Every other layer keeps its name (in a nested model
    "block_conv" for "block/conv"), and every layer with weights has a bias.

    Args:
        model: A trained functional or Sequential model, channels last; it is left as it is.
        config: How.
        calibration: Samples like those the model will meet, float32 [N, ...] (several inputs: in
            the structure that the model takes), whose ranges the activations start with. Without
            it activations are not rounded before they get a range: from the first batch of
            training where ranges are moving averages, else by `calibrate_ranges` or
            `ActivationQuantizer.set_range`.

    Returns:
        A functional model with the inputs and outputs of ``model``.

    Raises:
        BadInputError: The configuration names a layer that does not exist, or the calibration
            data cannot be used.
        BadModelError: The model is subclassed, or a layer cannot be copied.
        UnsupportedOpError: A layer has no int8 form.
    """
    graph = read_graph(lower_model(model))
    names = {call.name for call in graph.calls if isinstance(call.layer, WEIGHTED)}
    _check_names(model, "layer_weight_bits", config.layer_weight_bits, names)
    _check_names(model, "exclude", config.exclude, names)
    plan = plan_ranges(graph, {flat_name(name) for name in config.exclude})
    quantizing = _Quantizing(config, plan)
    quantized = build_model(graph, quantizing.rebuild, quantizing.round_input)
    if calibration is not None:
        calibrate_ranges(quantized, calibration)
    return quantized


def _check_names(model: Any, what: str, given: Any, names: set[str]) -> None:
    unknown = [name for name in given if flat_name(name) not in names]
    if unknown:
        raise BadInputError(
            f"quantize: {what} names no layer with weights",
            where=f"model '{model.name}'",
            got=", ".join(unknown),
            allowed=", ".join(sorted(names)),
        )


class _Quantizing:
    """Rebuilds the calls of a lowered graph with quantizers where the plan has them."""

    def __init__(self, config: QatConfig, plan: RangePlan) -> None:
        self._config = config
        self._plan = plan
        self._copies = LayerCopies()
        self._excluded = {flat_name(name) for name in config.exclude}
        self._bits = {flat_name(n): bits for n, bits in config.layer_weight_bits.items()}
        self._layers: dict[int, Any] = {}
        self._quantizers: dict[RangeGroup, Any] = {}

    def round_input(self, value: Value, tensor: Any) -> Any:
        """Rounds an input of the model."""
        return self._round(tensor, self._plan.after.get(value))

    def rebuild(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if isinstance(call.layer, keras.layers.Concatenate):
            branches = [
                self._round(tensor, self._plan.before.get((call, position)))
                for position, tensor in enumerate(args[0])
            ]
            args = (branches,)
        if isinstance(call.layer, WEIGHTED) and call.name not in self._excluded:
            result = self._weighted(call, args[0])
        else:
            result = self._copies.call(call, args, kwargs)
        return self._round(result, self._plan.after.get(call.outputs[0]))

    def _weighted(self, call: Call, x: Any) -> Any:
        layer = self._layers.get(id(call.layer))
        if layer is not None:
            return layer(x)
        kernel, *bias = call.layer.get_weights()
        layer = self._layers[id(call.layer)] = copy_layer(
            call,
            self._copies.unique(call.name),
            kind=_KINDS[type(call.layer)],
            use_bias=True,
            weight_bits=self._bits.get(call.name, self._config.weight_bits),
            weight_scale=self._config.weight_scale,
            keep_zeros=self._config.keep_zeros and bool((kernel == 0).any()),
        )
        result = layer(x)
        layer.kernel.assign(kernel)
        if bias:
            layer.bias.assign(bias[0])
        if layer.keep_zeros:
            layer.set_zeros()
        if layer.weight_scale == LSQ:
            layer.fit_weight_scales()
        return result

    def _round(self, tensor: Any, site: Site | None) -> Any:
        if site is None:
            return tensor
        quantizer = self._quantizers.get(site.group)
        if quantizer is None:
            quantizer = self._quantizers[site.group] = self._new_quantizer(site.group)
        return quantizer(tensor, site=site.number)

    def _new_quantizer(self, group: RangeGroup) -> Any:
        fixed = group.fixed_range is not None
        return ActivationQuantizer(
            bits=self._config.activation_bits,
            ranges=FIXED if fixed else self._config.ranges,
            sites=group.sites,
            momentum=self._config.momentum,
            nonnegative=group.nonnegative,
            fixed_range=group.fixed_range,
            in_training=not (fixed and group.is_output),
            name=self._copies.unique(group.name + _SUFFIX),
        )


def activation_quantizers(model: Any) -> dict[str, ActivationQuantizer]:
    """Returns the activation quantizers of a quantized model, in order.

    Each is named after the layer whose output it rounds: an input, a convolution (with the
    activation that is fused into it), a concatenation for all its branches.
    """
    return {
        layer.name.removesuffix(_SUFFIX): layer
        for layer in model.layers
        if isinstance(layer, ActivationQuantizer)
    }


def weight_quantizers(model: Any) -> dict[str, QuantizedKernel]:
    """Returns the layers with a quantized kernel of a quantized model, by name, in order."""
    return {layer.name: layer for layer in model.layers if isinstance(layer, QuantizedKernel)}


@contextlib.contextmanager
def observing(model: Any) -> Iterator[None]:
    """Switches off every quantizer of a quantized model, weights too, within a ``with``.

    The model then computes what the float model does.
    """
    activations, weights = activation_quantizers(model).values(), weight_quantizers(model).values()
    before = [each.enabled for each in activations], [each.weights_enabled for each in weights]
    _switch(activations, weights, [False] * len(before[0]), [False] * len(before[1]))
    try:
        yield
    finally:
        _switch(activations, weights, *before)


def _switch(activations: Any, weights: Any, on: list[bool], weights_on: list[bool]) -> None:
    for quantizer, enabled in zip(activations, on, strict=True):
        quantizer.enabled = enabled
    for layer, enabled in zip(weights, weights_on, strict=True):
        layer.weights_enabled = enabled


def observation_model(model: Any) -> Any:
    """Returns a model that gives the activations which enter the quantizers of another.

    It shares the layers of ``model``, so quantizers that are on round what comes after them;
    inside `observing` all activations are those of the float model.

    Args:
        model: A quantized model.

    Returns:
        A functional model with the inputs of ``model``, whose outputs are a dict from the names
        of `activation_quantizers` to lists of tensors: one for each site. Averages of what is
        rounded already are not among them.
    """
    names = {id(layer): name for name, layer in activation_quantizers(model).items()}
    outputs: dict[str, list[Any]] = {name: [] for name in names.values()}
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            name = names.get(id(node.operation))
            if name is not None and node.arguments.kwargs.get("site", 0) >= 0:
                outputs[name].append(node.input_tensors[0])
    return keras.Model(model.input, outputs, name=f"{model.name}_observed")


def calibrate_ranges(model: Any, calibration: Any, batch_size: int = 64) -> None:
    """Sets all ranges of a quantized model to the least and greatest values they are to hold.

    Args:
        model: A quantized model.
        calibration: Samples, as for `quantize_model`.
        batch_size: Samples that are computed at once.

    Raises:
        BadInputError: The samples are empty, do not fit the model or hold NaN or infinity.
    """
    _check_calibration(model, calibration)
    observed = observation_model(model)
    ranges: dict[str, tuple[float, float]] = {}
    count = len(keras.tree.flatten(calibration)[0])
    calibration = keras.tree.pack_sequence_as(model.input, keras.tree.flatten(calibration))
    with observing(model):
        for first in range(0, count, batch_size):
            taken = slice(first, first + batch_size)
            batch = keras.tree.map_structure(lambda array, taken=taken: array[taken], calibration)
            for name, tensors in observed(batch, training=False).items():
                for tensor in keras.tree.flatten(tensors):
                    low, high = ranges.get(name, (math.inf, -math.inf))
                    lowest, highest = keras.ops.min(tensor), keras.ops.max(tensor)
                    ranges[name] = min(low, float(lowest)), max(high, float(highest))
    for name, quantizer in activation_quantizers(model).items():
        if quantizer.ranges != FIXED:
            quantizer.set_range(*ranges[name])


def _check_calibration(model: Any, calibration: Any) -> None:
    arrays = [np.asarray(array) for array in keras.tree.flatten(calibration)]
    got = [tuple(array.shape[1:]) for array in arrays]
    wanted = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if got != wanted or min(len(array) for array in arrays) == 0:
        raise BadInputError(
            "the calibration data do not fit the model's inputs",
            where=f"model '{model.name}'",
            got=f"samples of shape {', '.join(str(shape) for shape in got)}",
            allowed=f"at least one, of shape {', '.join(str(shape) for shape in wanted)}",
        )
    for array in arrays:
        bad = np.argwhere(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        if bad.size:
            raise BadInputError(
                "the calibration data hold NaN or infinity",
                where=f"model '{model.name}'",
                got=f"{len(bad)} such samples, the first is number {bad[0, 0]}",
                allowed="finite values",
            )
