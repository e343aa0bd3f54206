"""Folds batch normalization into the layer before it.

At inference ``gamma * (y - mean) / sqrt(variance + epsilon) + beta`` is ``factor * y + shift``
for each channel. With ``y = kernel * x + bias`` the factor goes into the kernel and both into
the bias, and the layer is gone: formulas 11 and 14 of Jacob et al. (arXiv:1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.quantize.keras_graph import (
    Call,
    LayerCopies,
    LayerGraph,
    build_model,
    copy_layer,
    read_graph,
)
from edgekiln.train.quiet_keras import keras

Array = npt.NDArray[Any]

_layers = keras.layers
_LINEAR_LAYERS = (
    _layers.Conv1D,
    _layers.Conv2D,
    _layers.DepthwiseConv1D,
    _layers.DepthwiseConv2D,
    _layers.SeparableConv1D,
    _layers.SeparableConv2D,
    _layers.Conv1DTranspose,
    _layers.Conv2DTranspose,
    _layers.Dense,
)


def fold_batch_norm(model: Any) -> Any:
    """Returns the model with batch normalization folded into the layers before it.

    A BatchNormalization goes into a convolution (of any kind), a transposed convolution or a
    Dense layer when it alone takes that layer's output, and nothing but that layer's linear
    output lies between. One that stands elsewhere, as after an Add, stays as it is;
    `remaining_batch_norms` names those.

    Args:
        model: A functional or Sequential Keras model; it is left as it is. Nested models are
            flattened.

    Returns:
        A functional model whose outputs at inference are the same but for float rounding. A
        bias is added to layers that had none; all other layers are copied with their weights.

    Raises:
        BadModelError: The model is subclassed, or a layer cannot be copied.
    """
    graph = read_graph(model)
    return build_model(graph, _Folding(graph).rebuild)


def remaining_batch_norms(model: Any) -> tuple[str, ...]:
    """Returns the paths of the BatchNormalization layers in a model, in order."""
    calls = read_graph(model).calls
    paths = [c.path for c in calls if isinstance(c.layer, _layers.BatchNormalization)]
    return tuple(dict.fromkeys(paths))


class _Folding:
    """Rebuilds the calls of a graph, less the normalizations that can be folded."""

    def __init__(self, graph: LayerGraph) -> None:
        self._copies = LayerCopies()
        self._norms = find_foldable(graph)
        self._gone = {id(norm) for norm in self._norms.values()}

    def rebuild(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if id(call.layer) in self._gone:
            return args[0]
        norm = self._norms.get(call)
        if norm is None:
            return self._copies.call(call, args, kwargs)
        layer = copy_layer(call, self._copies.unique(call.name), use_bias=True)
        result = layer(*args, **kwargs)
        layer.set_weights(folded_weights(call.layer, norm))
        return result


def find_foldable(graph: LayerGraph) -> dict[Call, Any]:
    """Returns the calls into whose layers a BatchNormalization can be folded, with that one."""
    consumers, outputs = graph.consumers(), set(graph.output_values())
    found = {}
    for call in graph.calls:
        if not _is_linear(call.layer) or graph.calls_of(call.layer) != 1:
            continue
        (value,) = call.outputs
        following = consumers.get(value, [])
        if len(following) != 1 or value in outputs:
            continue
        norm = following[0].layer
        if _normalizes_last_axis(norm, len(value.shape)) and graph.calls_of(norm) == 1:
            found[call] = norm
    return found


def _is_linear(layer: Any) -> bool:
    return (
        isinstance(layer, _LINEAR_LAYERS)
        and layer.activation is keras.activations.linear
        and getattr(layer, "data_format", "channels_last") == "channels_last"
    )


def _normalizes_last_axis(layer: Any, rank: int) -> bool:
    return isinstance(layer, _layers.BatchNormalization) and layer.axis in (-1, rank - 1)


def norm_factors(norm: Any) -> tuple[Array, Array]:
    """Returns what a BatchNormalization computes at inference: ``factor * x + shift``.

    Returns:
        Factor and shift, float64 [C].
    """
    mean, variance = _array(norm.moving_mean), _array(norm.moving_variance)
    factor = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        factor = factor * _array(norm.gamma)
    shift = -mean * factor
    if norm.center:
        shift = shift + _array(norm.beta)
    return factor, shift


def folded_weights(layer: Any, norm: Any) -> list[Array]:
    """Returns the weights of a linear layer with the normalization after it.

    Args:
        layer: One of the layers named at `fold_batch_norm`, built.
        norm: The BatchNormalization that takes its output.

    Returns:
        float32: the layer's weights in Keras's order, a bias last.
    """
    factor, shift = norm_factors(norm)
    *before, kernel = [
        _array(weight) for weight in _kernels(layer)
    ]  # A separable convolution has two; the pointwise one comes last.
    bias = _array(layer.bias) if layer.use_bias else 0.0
    folded = kernel * factor.reshape(channel_shape(layer, kernel.shape))
    return [each.astype(np.float32) for each in (*before, folded, bias * factor + shift)]


def _kernels(layer: Any) -> tuple[Any, ...]:
    if hasattr(layer, "pointwise_kernel"):
        return layer.depthwise_kernel, layer.pointwise_kernel
    return (layer.kernel,)


def channel_shape(layer: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape in which one number for each output channel multiplies a kernel.

    Args:
        layer: The layer the kernel belongs to.
        shape: The kernel's shape, in Keras's layout.

    Returns:
        Ones, but for the axes that make up the output channels: the last one; the last but
        one of a transposed convolution; the last two of a depthwise convolution.
    """
    ones = (1,) * len(shape)
    if isinstance(layer, _layers.DepthwiseConv1D | _layers.DepthwiseConv2D):
        return (*ones[:-2], *shape[-2:])
    if isinstance(layer, _layers.Conv1DTranspose | _layers.Conv2DTranspose):
        return (*ones[:-2], shape[-2], 1)
    return (*ones[:-1], shape[-1])


def _array(weight: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(weight), dtype=np.float64)
