"""Cross-layer equalization: evens out the weights of successive layers without changing a model.

Between two layers with weights, where only positively homogeneous functions lie
(``f(s * x) = s * f(x)`` for ``s > 0``: ReLU, pooling, padding), each channel can be scaled down
in the first layer and up in the second. Nagel et al., "Data-Free Quantization Through Weight
Equalization and Bias Correction" (arXiv:1906.04721), section 4.1, choose the scales that give
every channel the same range in both layers.

ReLU6 is not homogeneous; `relax_relu6` turns it into ReLU where data show that it never clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.quantize.batch_norm import channel_shape, fold_batch_norm
from edgekiln.quantize.keras_graph import (
    Call,
    LayerCopies,
    LayerGraph,
    Value,
    build_model,
    copy_layer,
    read_graph,
)
from edgekiln.quantize.keras_run import run_batches
from edgekiln.quantize.lowering import (
    AVERAGING,
    MEANS,
    TRANSPARENT,
    WEIGHTED,
    lower_batch_norms,
    lower_model,
)
from edgekiln.quantize.representative import Array
from edgekiln.train.quiet_keras import keras

Reals = npt.NDArray[np.float64]

_layers = keras.layers
_activations = keras.activations
#: Homogeneous, and leave the last axis, the channels, as they are.
_PER_CHANNEL = (
    *AVERAGING,
    *MEANS,
    *TRANSPARENT,
    _layers.Cropping1D,
    _layers.Cropping2D,
    _layers.GlobalMaxPooling1D,
    _layers.GlobalMaxPooling2D,
    _layers.LeakyReLU,
    _layers.MaxPooling1D,
    _layers.MaxPooling2D,
    _layers.UpSampling2D,
    _layers.ZeroPadding1D,
    _layers.ZeroPadding2D,
)
_RELU6 = 6.0
_ROUNDS = 100
_CONVERGED = 1e-3
#: Channels weaker than this part of the layer's strongest stay as they are: a dead channel
#: would be scaled up without bound, and its bias with it.
_WEAKEST_CHANNEL = 2.0**-12


@dataclass(frozen=True)
class EqualizedPair:
    """Two layers that were equalized.

    Attributes:
        first: Name of the layer whose output channels were scaled.
        second: Name of the layer whose input channels were scaled the other way.
        least_factor: The least number that a channel of the first layer was multiplied by.
        greatest_factor: The greatest such number.
    """

    first: str
    second: str
    least_factor: float
    greatest_factor: float


@dataclass(frozen=True)
class Equalization:
    """A model with equalized weights.

    Attributes:
        model: A functional Keras model, of the same outputs as the one before but for rounding.
        pairs: What was equalized; empty if no two layers allow it.
    """

    model: Any
    pairs: tuple[EqualizedPair, ...]


@dataclass(frozen=True)
class _Pair:
    first: Call
    second: Call
    #: How often the channels repeat along the second layer's input: pixels that were flattened.
    repeats: int


def equalize_layers(model: Any) -> Equalization:
    """Equalizes the weights of all successive layers of a model.

    Batch normalization is folded first, nested models are flattened. Layers that are used
    several times, and tensors that several layers or the caller read, end a chain. Weights that
    are quantized per output channel need this less than such with one scale for the layer;
    activations, which have one scale a tensor, gain where channels differ much.

    Args:
        model: A trained functional or Sequential model; it is left as it is.

    Returns:
        The equalized model, and what was equalized.

    Raises:
        BadModelError: The model is subclassed, or a layer cannot be copied.
        UnsupportedOpError: A layer has no int8 form.
    """
    equalized = lower_batch_norms(fold_batch_norm(lower_model(model)))
    pairs = _find_pairs(read_graph(equalized))
    logarithms: list[Reals] = [np.zeros(1) for _ in pairs]
    # What one pair evens out a neighbour disturbs, less and less.
    for _ in range(_ROUNDS if pairs else 0):
        changes = [_equalize(pair) for pair in pairs]
        logarithms = [total + change for total, change in zip(logarithms, changes, strict=True)]
        if max(np.abs(change).max() for change in changes) < _CONVERGED:
            break
    return Equalization(
        equalized,
        tuple(
            EqualizedPair(
                pair.first.name,
                pair.second.name,
                least_factor=float(np.exp(total.min())),
                greatest_factor=float(np.exp(total.max())),
            )
            for pair, total in zip(pairs, logarithms, strict=True)
        ),
    )


def _find_pairs(graph: LayerGraph) -> list[_Pair]:
    consumers, outputs = graph.consumers(), set(graph.output_values())
    pairs = []
    for call in graph.calls:
        if not _can_scale_outputs(graph, call):
            continue
        (value,), repeats = call.outputs, 1
        while True:
            following = consumers.get(value, [])
            if len(following) != 1 or value in outputs:
                break
            (after,) = following
            if isinstance(after.layer, WEIGHTED):
                if _can_scale_inputs(graph, after):
                    pairs.append(_Pair(call, after, repeats))
                break
            more = _repeats(after, value)
            if more is None:
                break
            (value,), repeats = after.outputs, repeats * more
    return pairs


def _can_scale_outputs(graph: LayerGraph, call: Call) -> bool:
    layer = call.layer
    return (
        isinstance(layer, WEIGHTED)
        and graph.calls_of(layer) == 1
        and layer.activation in (_activations.linear, _activations.relu)
    )


def _can_scale_inputs(graph: LayerGraph, call: Call) -> bool:
    return graph.calls_of(call.layer) == 1 and getattr(call.layer, "groups", 1) == 1


def _repeats(call: Call, value: Value) -> int | None:
    """Returns how often a homogeneous layer repeats the channels; None for other layers."""
    layer = call.layer
    if isinstance(layer, _layers.ReLU):
        return 1 if layer.max_value is None and not layer.threshold else None
    if isinstance(layer, _PER_CHANNEL):
        return 1
    if isinstance(layer, _layers.Reshape | _layers.Flatten):
        channels, after = value.shape[-1], call.outputs[0].shape
        if channels is not None and after[-1] == channels:
            return 1
        if channels and len(after) == 2 and after[-1]:
            return after[-1] // channels
    return None


def _equalize(pair: _Pair) -> Reals:
    """Scales the channels between two layers; returns the logarithms of the first's factors.

    Formula 11 of the paper: ``s = sqrt(r1 * r2) / r2``; the first layer's weights and bias are
    divided by it, the second's weights multiplied.
    """
    first, second = pair.first.layer, pair.second.layer
    kernel, *bias = (weight.astype(np.float64) for weight in first.get_weights())
    following, *unchanged = (weight.astype(np.float64) for weight in second.get_weights())
    one, other = _output_ranges(first, kernel), _input_ranges(pair, following)
    alive = (one > _WEAKEST_CHANNEL * one.max()) & (other > _WEAKEST_CHANNEL * other.max())
    scale = np.sqrt(np.where(alive, one, 1.0) / np.where(alive, other, 1.0))
    kernel = kernel / scale.reshape(channel_shape(first, kernel.shape))
    bias = [values / scale for values in bias]
    following = following * _spread_over_inputs(pair, scale, following.shape)
    first.set_weights([kernel, *bias])
    second.set_weights([following, *unchanged])
    return -np.log(scale)


def _output_ranges(layer: Any, kernel: Reals) -> Reals:
    """Returns the largest magnitude of each output channel, float64 [channels]."""
    kept = channel_shape(layer, kernel.shape)
    reduced = tuple(axis for axis, size in enumerate(kept) if size == 1)
    ranges: Reals = np.abs(kernel).max(axis=reduced).reshape(-1)
    return ranges


def _input_ranges(pair: _Pair, kernel: Reals) -> Reals:
    """Returns the largest magnitude of each input channel, float64 [channels]."""
    axis = _input_axis(pair.second.layer, kernel.ndim)
    others = tuple(each for each in range(kernel.ndim) if each != axis)
    ranges: Reals = np.abs(kernel).max(axis=others).reshape(pair.repeats, -1).max(axis=0)
    return ranges


def _spread_over_inputs(pair: _Pair, scale: Reals, shape: tuple[int, ...]) -> Reals:
    ones = [1] * len(shape)
    axis = _input_axis(pair.second.layer, len(shape))
    ones[axis] = shape[axis]
    return np.tile(scale, pair.repeats).reshape(ones)


def _input_axis(layer: Any, rank: int) -> int:
    """Returns the axis of a kernel that runs over the input channels."""
    return rank - 1 if isinstance(layer, _layers.Conv2DTranspose) else rank - 2


def relax_relu6(model: Any, data: Mapping[str, Array]) -> Any:
    """Returns a model with ReLU in place of each ReLU6 that clips nothing on representative data.

    Args:
        model: A functional or Sequential model; it is left as it is.
        data: float32 [N, ...] for each input, by name.

    Raises:
        BadModelError: The model is subclassed, or a layer cannot be copied.
        UnsupportedOpError: A layer has no int8 form.
    """
    lowered = lower_batch_norms(fold_batch_norm(lower_model(model)))
    graph = read_graph(lowered)
    bounded = {call.name: call for call in graph.calls if _is_relu6(call.layer)}
    if not bounded:
        return lowered
    probe = keras.Model(lowered.input, {name: call.layer.output for name, call in bounded.items()})
    highest = dict.fromkeys(bounded, 0.0)
    for results in run_batches(probe, data):
        for name, values in results.items():
            highest[name] = max(highest[name], float(values.max()))
    return build_model(graph, _Relaxing({n for n in bounded if highest[n] < _RELU6}).rebuild)


def _is_relu6(layer: Any) -> bool:
    if isinstance(layer, _layers.ReLU):
        return bool(layer.max_value == _RELU6)
    return isinstance(layer, WEIGHTED) and layer.activation is _activations.relu6


class _Relaxing:
    """Rebuilds the calls of a graph with some ReLU6 as ReLU."""

    def __init__(self, relaxed: set[str]) -> None:
        self._relaxed = relaxed
        self._copies = LayerCopies()

    def rebuild(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if call.name not in self._relaxed:
            return self._copies.call(call, args, kwargs)
        relu: dict[str, Any] = {"activation": "relu"}
        if isinstance(call.layer, _layers.ReLU):
            relu = {"max_value": None}
        layer = copy_layer(call, self._copies.unique(call.name), **relu)
        result = layer(*args, **kwargs)
        layer.set_weights(call.layer.get_weights())
        return result
