"""How each kind of layer passes channels on, ties them, reads them and makes them.

A rule returns the lanes of the call's outputs, or None where it does not understand the layer
as it is set up; then all channels that go in or out are pinned, so the layer stays as it is.
Rules hold for exactly the classes named here: a subclass may compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgekiln.quantize.channels.graph import Call, Shape
from edgekiln.quantize.channels.lanes import Lanes
from edgekiln.quantize.channels.tracer import Layer, Rule, Setting, Term, Tracer
from edgekiln.train.quiet_keras import keras

CHANNEL_BYTES = 9
"""Bytes of an output channel in the compiled model beside its weights: an int32 bias, an int32
multiplier and an int8 shift."""

_layers = keras.layers

_CHANNELWISE = (
    *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu"),
    *("hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu"),
    *("sigmoid", "silu", "soft_shrink", "softplus", "softsign", "sparse_plus"),
    *("sparse_sigmoid", "squareplus", "tanh", "tanh_shrink", "threshold"),
)
_CHANNELWISE_ACTIVATIONS = {getattr(keras.activations, name) for name in _CHANNELWISE}


# ---- Layers that leave the channels as they are ----


def pass_on(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    """Each channel of the output depends on the same channel of the input alone."""
    layer = call.operation
    noise_shape = getattr(layer, "noise_shape", None)
    if len(given) != 1 or not _is_channels_last(layer):
        return None
    if noise_shape and noise_shape[-1] not in (None, 1):
        return None
    return given if len(given[0]) == call.output_shape[-1] else None


def _activation(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    if call.operation.activation not in _CHANNELWISE_ACTIVATIONS:
        return None
    return pass_on(tracer, call, given)


def _rescaling(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    if np.ndim(call.operation.scale) or np.ndim(call.operation.offset):
        return None
    return pass_on(tracer, call, given)


def _permute(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    if call.operation.dims[-1] != len(call.operation.dims):
        return None
    return pass_on(tracer, call, given)


def _normalize(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    layer, rank = call.operation, len(call.input_shape)
    if len(given) != 1 or layer.axis not in (-1, rank - 1):
        return None
    noted, first = tracer.enter(call, given[0])
    if first:
        noted.weight(layer.gamma, {0: (given[0], "scales")})
        for variable in (layer.beta, layer.moving_mean, layer.moving_variance):
            noted.weight(variable, {0: (given[0], "follows")})
    return given


def _prelu(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    layer, rank = call.operation, len(call.input_shape)
    noted, first = tracer.enter(call, given[0])
    if first:
        shared = rank - 1 in (layer.shared_axes or ())
        if not shared:
            noted.weight(layer.alpha, {-1: (given[0], "follows")})
        elements = math.prod(layer.alpha.shape[:-1])
        noted.bytes.append(Term(elements, () if shared else (given[0],)))
    return given


# ---- Layers that only move elements ----


def _reshape(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    """Columns of the new last axis are channels; elements that share a column are tied."""
    positions, width = _positions(call.input_shape), call.output_shape[-1]
    if len(given) != 1 or positions is None or not width or not _is_channels_last(call.operation):
        return None
    elements = np.tile(given[0], positions)
    column = tracer.book.tie_rows(elements.reshape(-1, width))
    if isinstance(call.operation, _layers.Reshape):
        target = tuple(call.operation.target_shape)
        noted, first = tracer.enter(call, column)
        if first and target[-1] != -1:
            noted.settings.append(Setting("target_shape", column, lambda n: (*target[:-1], n)))
    return (column,)


def _concatenate(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    rank = len(call.output_shape)
    if call.operation.axis in (-1, rank - 1):
        return (np.concatenate(given),)
    return (tracer.book.tie_rows(np.stack(given)),)


# ---- Layers that meet: element by element ----


def _merge(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    """Ties the inputs; one that is broadcast over the channels keeps its only channel."""
    width = call.output_shape[-1]
    wide = [lanes for lanes in given if len(lanes) == width]
    narrow = [lanes for lanes in given if len(lanes) != width]
    if not wide or any(len(lanes) != 1 for lanes in narrow):
        return None
    for lanes in narrow:
        tracer.book.pin(lanes, f"{call.path} spreads it over several channels")
    return (tracer.book.tie_rows(np.stack(wide)),)


# ---- Layers that read channels and make new ones ----


def _convolve(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    layer, positions = call.operation, _positions(call.output_shape)
    if positions is None or not _is_plain(layer):
        return None
    in_group = tracer.book.tie_rows(given[0].reshape(layer.groups, -1))
    noted, first = tracer.enter(call, given[0], layer.filters)
    if first:
        tracer.book.tie_rows(noted.makes.reshape(layer.groups, -1))
        _note_maker(tracer, noted, "filters")
        noted.weight(layer.kernel, {-2: (in_group, "reads"), -1: (noted.makes, "makes")})
        noted.bytes.append(Term(_taps(layer), (in_group, noted.makes)))
    noted.macs.append(Term(positions * _taps(layer), (in_group, noted.makes)))
    return (noted.makes,)


def _transpose_convolve(
    tracer: Tracer, call: Call, given: tuple[Lanes, ...]
) -> tuple[Lanes, ...] | None:
    layer, positions = call.operation, _positions(call.input_shape)
    if positions is None or not _is_plain(layer):
        return None
    noted, first = tracer.enter(call, given[0], layer.filters)
    if first:
        _note_maker(tracer, noted, "filters")
        noted.weight(layer.kernel, {-2: (noted.makes, "makes"), -1: (given[0], "reads")})
        noted.bytes.append(Term(_taps(layer), (given[0], noted.makes)))
    noted.macs.append(Term(positions * _taps(layer), (given[0], noted.makes)))
    return (noted.makes,)


def _convolve_depthwise(
    tracer: Tracer, call: Call, given: tuple[Lanes, ...]
) -> tuple[Lanes, ...] | None:
    layer, positions = call.operation, _positions(call.output_shape)
    if positions is None or not _is_plain(layer):
        return None
    noted, first = tracer.enter(call, given[0])
    made = np.repeat(noted.reads, layer.depth_multiplier)
    if first:
        noted.weight(layer.kernel, {-2: (given[0], "follows")})
        noted.weight(layer.bias, {0: (made, "follows")})
        noted.bytes.append(Term(_taps(layer) + CHANNEL_BYTES, (made,)))
        _pin_mixing(tracer, layer, call.path, made)
    noted.macs.append(Term(positions * _taps(layer), (made,)))
    return (made,)


def _convolve_separable(
    tracer: Tracer, call: Call, given: tuple[Lanes, ...]
) -> tuple[Lanes, ...] | None:
    layer, positions = call.operation, _positions(call.output_shape)
    if positions is None or not _is_plain(layer):
        return None
    between = np.repeat(given[0], layer.depth_multiplier)
    noted, first = tracer.enter(call, given[0], layer.filters)
    if first:
        _note_maker(tracer, noted, "filters")
        noted.weight(layer.depthwise_kernel, {-2: (given[0], "follows")})
        noted.weight(layer.pointwise_kernel, {-2: (between, "reads"), -1: (noted.makes, "makes")})
        noted.bytes.append(Term(_taps(layer) + CHANNEL_BYTES, (between,)))
        noted.bytes.append(Term(1, (between, noted.makes)))
    noted.macs.append(Term(positions * _taps(layer), (between,)))
    noted.macs.append(Term(positions, (between, noted.makes)))
    return (noted.makes,)


def _dense(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    layer, positions = call.operation, _positions(call.output_shape)
    if positions is None or not _is_plain(layer):
        return None
    noted, first = tracer.enter(call, given[0], layer.units)
    if first:
        _note_maker(tracer, noted, "units")
        noted.weight(layer.kernel, {0: (given[0], "reads"), 1: (noted.makes, "makes")})
        noted.bytes.append(Term(1, (given[0], noted.makes)))
    noted.macs.append(Term(positions, (given[0], noted.makes)))
    return (noted.makes,)


def _embed(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    layer = call.operation
    if not _is_plain(layer):
        return None
    tracer.book.pin(given[0], f"{call.path} looks it up")
    noted, first = tracer.enter(call, given[0][:0], layer.output_dim)
    if first:
        noted.settings.append(Setting("output_dim", noted.makes))
        noted.weight(layer.embeddings, {1: (noted.makes, "makes")})
        noted.bytes.append(Term(layer.input_dim, (noted.makes,)))
    return (noted.makes,)


def _recur(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
    """Counts a recurrent layer, whose channels stay."""
    layer, gates = call.operation, _GATES[type(call.operation)]
    if len(given) == 1 and call.input_shape[1] is not None:
        noted, first = tracer.enter(call, given[0])
        weights = gates * layer.units * (len(given[0]) + layer.units)
        noted.macs.append(Term(call.input_shape[1] * weights))
        if first:
            noted.bytes.append(Term(weights + gates * layer.units * CHANNEL_BYTES))
    return None


def _note_maker(tracer: Tracer, noted: Layer, key: str) -> None:
    """Notes what all layers that make channels have: their number, a bias, an activation."""
    noted.settings.append(Setting(key, noted.makes))
    noted.weight(noted.layer.bias, {0: (noted.makes, "follows")})
    noted.bytes.append(Term(CHANNEL_BYTES, (noted.makes,)))
    _pin_mixing(tracer, noted.layer, noted.path, noted.makes)


def _pin_mixing(tracer: Tracer, layer: Any, path: str, lanes: Lanes) -> None:
    activation = getattr(layer, "activation", None)
    if activation is not None and activation not in _CHANNELWISE_ACTIVATIONS:
        name = getattr(activation, "__name__", type(activation).__name__)
        tracer.book.pin(lanes, f"the activation {name} of {path} mixes channels")


# ---- What layers are like ----


def _is_channels_last(layer: Any) -> bool:
    return getattr(layer, "data_format", None) in (None, "channels_last")


def _is_plain(layer: Any) -> bool:
    """Tells whether channels come last and the weights are what the class says they are."""
    changed = getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False)
    return _is_channels_last(layer) and not changed


def _positions(shape: Shape) -> int | None:
    """Returns the number of elements of one channel, or None where it is not fixed."""
    sizes = [size for size in shape[1:-1] if size is not None]
    return math.prod(sizes) if len(sizes) == len(shape[1:-1]) else None


def _taps(layer: Any) -> int:
    return math.prod(layer.kernel_size)


def _named(names: str, rule: Rule, sizes: Iterable[str] = ("",)) -> dict[type, Rule]:
    every = [f"{name}{size}" for name in names.split() for size in sizes]
    return {getattr(_layers, name): rule for name in every if hasattr(_layers, name)}


_1D_TO_3D = ("1D", "2D", "3D")
_GATES = {_layers.LSTM: 4, _layers.GRU: 3, _layers.SimpleRNN: 1}
_RULES: dict[type, Rule] = {
    **_named("ActivityRegularization AlphaDropout Dropout GaussianDropout GaussianNoise", pass_on),
    **_named("ELU Identity LeakyReLU ReLU RepeatVector Resizing", pass_on),
    **_named("AveragePooling MaxPooling GlobalAveragePooling GlobalMaxPooling", pass_on, _1D_TO_3D),
    **_named("AdaptiveAveragePooling AdaptiveMaxPooling SpatialDropout", pass_on, _1D_TO_3D),
    **_named("UpSampling ZeroPadding Cropping", pass_on, _1D_TO_3D),
    **_named("Activation", _activation),
    **_named("Rescaling", _rescaling),
    **_named("Permute", _permute),
    **_named("BatchNormalization", _normalize),
    **_named("PReLU", _prelu),
    **_named("Flatten Reshape", _reshape),
    **_named("Concatenate", _concatenate),
    **_named("Add Subtract Multiply Maximum Minimum Average", _merge),
    **_named("Conv", _convolve, _1D_TO_3D),
    **_named("Conv1DTranspose Conv2DTranspose Conv3DTranspose", _transpose_convolve),
    **_named("DepthwiseConv", _convolve_depthwise, _1D_TO_3D),
    **_named("SeparableConv", _convolve_separable, _1D_TO_3D),
    **_named("Dense", _dense),
    **_named("Embedding", _embed),
    **_named("LSTM GRU SimpleRNN", _recur),
}
_MERGING_OPERATIONS = frozenset(("Add", "Subtract", "Multiply", "Maximum", "Minimum"))
_CHANNELWISE_OPERATIONS = frozenset(
    (
        *("Abs", "Absolute", "Clip", "Elu", "Exp", "Gelu", "HardSigmoid", "HardSilu", "LeakyRelu"),
        *("Negative", "Relu", "Relu6", "Selu", "Sigmoid", "Silu", "Softplus", "Softsign", "Sqrt"),
        *("Square", "Tanh"),
    )
)
_MULTIPLYING = frozenset(
    ("AdditiveAttention", "Attention", "Dot", "Einsum", "Inner", "Matmul", "Outer", "Tensordot")
)


def find_rule(operation: Any) -> Rule | None:
    """Returns the rule for a layer or an operation of Keras, or None where there is none."""
    kind = type(operation)
    if kind.__module__.startswith("keras.src.ops."):
        return _find_operation_rule(kind.__name__)
    return _RULES.get(kind)


def _find_operation_rule(name: str) -> Rule | None:
    if name in _MERGING_OPERATIONS:
        return _without_constants(_merge)
    return _without_constants(pass_on) if name in _CHANNELWISE_OPERATIONS else None


def _without_constants(rule: Rule) -> Rule:
    """Returns a rule that holds where other arguments are scalars and all ranks are equal."""

    def checked(tracer: Tracer, call: Call, given: tuple[Lanes, ...]) -> tuple[Lanes, ...] | None:
        constants = [each for each in call.arguments if not isinstance(each, keras.KerasTensor)]
        ranks = {len(tensor.shape) for tensor in call.inputs}
        if any(np.ndim(each) for each in constants) or len(ranks) != 1:
            return None
        return rule(tracer, call, given)

    return checked


def has_unknown_macs(operation: Any) -> bool:
    """Tells whether an operation for which there is no rule multiplies and accumulates."""
    if type(operation) in _GATES:
        return False
    weights = getattr(operation, "weights", ())
    return type(operation).__name__ in _MULTIPLYING or any(len(w.shape) > 1 for w in weights)
