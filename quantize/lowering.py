"""Rewrites a Keras model into the few layers that have an int8 form of their own.

What is left afterwards: Conv2D, DepthwiseConv2D, Conv2DTranspose and Dense with a linear, relu or
relu6 activation; Add, Subtract and Multiply of two tensors; Concatenate; ReLU, LeakyReLU, and
Activation with sigmoid, tanh or softmax; pooling, padding, cropping, upsampling, reshaping; layers
that do nothing at inference. The float outputs stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgekiln.errors import UnsupportedOpError
from edgekiln.quantize.batch_norm import (
    find_foldable,
    fold_batch_norm,
    folded_weights,
    norm_factors,
    remaining_batch_norms,
)
from edgekiln.quantize.keras_graph import (
    Call,
    LayerCopies,
    LayerGraph,
    build_model,
    copy_layer,
    is_from_keras,
    read_composition,
    read_graph,
)
from edgekiln.train.quiet_keras import keras

_layers = keras.layers
_activations = keras.activations

WEIGHTED = (_layers.Conv2D, _layers.DepthwiseConv2D, _layers.Conv2DTranspose, _layers.Dense)
ARITHMETIC = (_layers.Add, _layers.Subtract, _layers.Multiply)
#: Values go through as they are, perhaps fewer, or zeros with them.
MOVING = (
    _layers.Cropping1D,
    _layers.Cropping2D,
    _layers.Flatten,
    _layers.GlobalMaxPooling1D,
    _layers.GlobalMaxPooling2D,
    _layers.MaxPooling1D,
    _layers.MaxPooling2D,
    _layers.Permute,
    _layers.RepeatVector,
    _layers.Reshape,
    _layers.ZeroPadding1D,
    _layers.ZeroPadding2D,
)
#: Values between those that go in, or some of these.
AVERAGING = (
    _layers.AveragePooling1D,
    _layers.AveragePooling2D,
    _layers.Resizing,
    _layers.UpSampling2D,
)
MEANS = (_layers.GlobalAveragePooling1D, _layers.GlobalAveragePooling2D)
#: Nothing at inference.
TRANSPARENT = (
    _layers.ActivityRegularization,
    _layers.AlphaDropout,
    _layers.Dropout,
    _layers.GaussianDropout,
    _layers.GaussianNoise,
    _layers.Identity,
    _layers.SpatialDropout1D,
    _layers.SpatialDropout2D,
)
_COPIED = (
    _layers.AveragePooling1D,
    _layers.AveragePooling2D,
    _layers.BatchNormalization,
    _layers.Concatenate,
    _layers.LeakyReLU,
    *MEANS,
    *MOVING,
    *TRANSPARENT,
)
_FUSED = (_activations.linear, _activations.relu, _activations.relu6)
#: Operations of keras.ops that have a layer of the same meaning; the functions make `Call`s whose
#: layer is of an internal class, which only its name tells.
_OPERATIONS = {
    "Add": _layers.Add,
    "Subtract": _layers.Subtract,
    "Multiply": _layers.Multiply,
}
_RELUS = {None: _activations.relu, 6: _activations.relu6}
_FUNCTIONS = {
    "Relu": _activations.relu,
    "Relu6": _activations.relu6,
    "Sigmoid": _activations.sigmoid,
    "Silu": _activations.silu,
    "Tanh": _activations.tanh,
}


def lower_model(model: Any) -> Any:
    """Returns a functional model of the layers named above, with the same float outputs.

    Batch normalization is folded into the layer before it; where that cannot be, it becomes a
    depthwise 1x1 convolution.

    Raises:
        BadModelError: The model is subclassed, or a layer cannot be copied.
        UnsupportedOpError: A layer has no int8 form.
    """
    graph = read_graph(model)
    lowered = build_model(graph, _Lowering(graph).rebuild)
    if remaining_batch_norms(lowered):
        # Those in layers that were taken apart can be folded now.
        lowered = lower_batch_norms(fold_batch_norm(lowered))
    return lowered


def lower_batch_norms(model: Any) -> Any:
    """Returns a model with each BatchNormalization as a depthwise 1x1 convolution.

    Raises:
        UnsupportedOpError: One normalizes another axis than the last.
    """
    return build_model(read_graph(model), _Norms().rebuild)


class _Norms:
    def __init__(self) -> None:
        self._copies = LayerCopies()

    def rebuild(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if not isinstance(call.layer, _layers.BatchNormalization):
            return self._copies.call(call, args, kwargs)
        (x,) = args
        shape = tuple(x.shape[1:])
        if call.layer.axis not in (-1, len(shape)):
            raise unsupported(call, f"axis {call.layer.axis}", "the last axis")
        factor, shift = norm_factors(call.layer)
        layer = _layers.DepthwiseConv2D(1, name=self._copies.unique(call.name))
        y = x if len(shape) == 3 else self._reshape(x, (1,) * (3 - len(shape)) + shape, call)
        y = layer(y)
        layer.set_weights([factor.reshape(1, 1, -1, 1), shift])
        return y if len(shape) == 3 else self._reshape(y, shape, call)

    def _reshape(self, x: Any, shape: tuple[int, ...], call: Call) -> Any:
        return _layers.Reshape(shape, name=self._copies.unique(f"{call.name}_reshape"))(x)


class _Lowering:
    def __init__(self, graph: LayerGraph) -> None:
        self._copies = LayerCopies()
        self._norms = find_foldable(graph)
        self._gone = {id(norm) for norm in self._norms.values()}
        self._split: dict[tuple[int, str], Any] = {}
        #: What a one-dimensional convolution made, before it was reshaped, by the result's id.
        self._wide: dict[int, Any] = {}
        self._kept: list[Any] = []
        self._ways: tuple[tuple[Any, Callable[[Call, Any], Any]], ...] = (
            (_layers.SeparableConv2D, self._separable),
            ((_layers.Conv1D, _layers.DepthwiseConv1D), self._one_dimensional),
            (WEIGHTED, self._weighted),
            (_layers.Activation, lambda call, x: self._activate(call, x, call.layer.activation)),
            (_layers.Softmax, self._softmax),
            (_layers.ReLU, self._relu),
            (_layers.UpSampling2D, self._enlarge),
            (_layers.Resizing, self._resize),
        )

    def rebuild(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        layer = call.layer
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise unsupported(call, f"data_format {layer.data_format}", "channels_last")
        if not is_from_keras(layer):
            return self._inline(call, args, kwargs)
        if not isinstance(layer, keras.Layer):
            return self._operation(call, args)
        if len(args) != 1:
            raise unsupported(call, "tensors by name", "one tensor, or one list, by position")
        if isinstance(layer, ARITHMETIC):
            return self._chain(call, type(layer), args[0])
        if id(layer) in self._gone:
            return args[0]
        if isinstance(layer, _COPIED):
            return self._copies.call(call, args, kwargs)
        for kinds, lower in self._ways:
            if isinstance(layer, kinds):
                return lower(call, *args)
        raise unsupported(call)

    def _make(self, call: Call, suffix: str, kind: Any, **options: Any) -> Any:
        """Returns a layer that a call is split into: the same for each call of one layer."""
        key = (id(call.layer), suffix)
        if key not in self._split:
            name = self._copies.unique(call.name + suffix)
            self._split[key] = kind(name=name, **options)
        return self._split[key]

    def _weights(self, call: Call) -> list[Any]:
        """Returns a layer's weights, with the normalization that can be folded into it."""
        norm = self._norms.get(call)
        return list(call.layer.get_weights() if norm is None else folded_weights(call.layer, norm))

    def _has_bias(self, call: Call) -> bool:
        return bool(call.layer.use_bias or call in self._norms)

    def _weighted(self, call: Call, x: Any) -> Any:
        activation = call.layer.activation
        fused = activation in _FUSED
        layer = self._split.get((id(call.layer), ""))
        if layer is None:
            changes: dict[str, Any] = {} if fused else {"activation": "linear"}
            changes["use_bias"] = self._has_bias(call)
            layer = copy_layer(call, self._copies.unique(call.name), **changes)
            self._split[id(call.layer), ""] = layer
        y = layer(x)
        layer.set_weights(self._weights(call))
        return y if fused else self._activate(call, y, activation)

    def _separable(self, call: Call, x: Any) -> Any:
        layer = call.layer
        shared = {"padding": layer.padding, "strides": layer.strides}
        depthwise = self._make(
            call,
            "_depthwise",
            _layers.DepthwiseConv2D,
            kernel_size=layer.kernel_size,
            depth_multiplier=layer.depth_multiplier,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            **shared,
        )
        pointwise = self._make(
            call,
            "",
            _layers.Conv2D,
            filters=layer.filters,
            kernel_size=1,
            use_bias=self._has_bias(call),
        )
        y = pointwise(depthwise(x))
        first, *rest = self._weights(call)
        depthwise.set_weights([first])
        pointwise.set_weights(rest)
        return self._activate(call, y, layer.activation)

    def _one_dimensional(self, call: Call, x: Any) -> Any:
        """A convolution over [L, C] as one over [1, L, C]."""
        layer = call.layer
        length, channels = x.shape[1:]
        if length is None:
            raise unsupported(call, "input of free length", "a known shape")
        if layer.padding == "causal":
            left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            x = self._make(call, "_padding", _layers.ZeroPadding1D, padding=(left, 0))(x)
            length += left
        options: dict[str, Any] = {
            "kernel_size": (1, *layer.kernel_size),
            # Strides over a height of 1 have no effect, but depthwise ones must be square.
            "strides": layer.strides[0],
            "dilation_rate": (1, *layer.dilation_rate),
            "padding": "valid" if layer.padding == "causal" else layer.padding,
            "use_bias": self._has_bias(call),
        }
        if isinstance(layer, _layers.Conv1D):
            options |= {"filters": layer.filters, "groups": layer.groups}
            kind = _layers.Conv2D
        else:
            options |= {"depth_multiplier": layer.depth_multiplier}
            kind = _layers.DepthwiseConv2D
        flat = self._make(call, "", kind, **options)
        wide = _layers.Reshape((1, length, channels), name=self._unique(call, "_reshape"))
        y = flat(wide(x))
        kernel, *bias = self._weights(call)
        flat.set_weights([kernel[np.newaxis], *bias])
        return self._activate(call, self._narrow(call, y), layer.activation)

    def _narrow(self, call: Call, wide: Any) -> Any:
        """Returns [1, L, C] as [L, C]."""
        shape = tuple(wide.shape[2:])
        result = _layers.Reshape(shape, name=self._unique(call, "_reshape"))(wide)
        self._wide[id(result)] = wide
        self._kept.append(result)  # Alive, so that no other tensor gets its id.
        return result

    def _unique(self, call: Call, suffix: str) -> str:
        return self._copies.unique(call.name + suffix)

    def _activate(self, call: Call, x: Any, activation: Any) -> Any:
        """Applies an activation as layers of its own, named after the call's."""
        if activation is _activations.linear:
            return x
        if id(x) in self._wide:
            # Before the reshape, where it can be fused into the convolution.
            return self._narrow(call, self._activate(call, self._wide[id(x)], activation))
        kind = getattr(activation, "__name__", str(activation))
        alone = isinstance(call.layer, _layers.Activation | _layers.ReLU | _layers.Softmax)
        name = call.name if alone else f"{call.name}_{kind}"
        name = self._copies.unique(name)
        if activation is _activations.relu:
            return _layers.ReLU(name=name)(x)
        if activation is _activations.relu6:
            return _layers.ReLU(6.0, name=name)(x)
        if activation is _activations.leaky_relu:
            return _layers.LeakyReLU(0.2, name=name)(x)
        if activation is _activations.silu:
            gate = _layers.Activation("sigmoid", name=self._copies.unique(f"{name}_sigmoid"))(x)
            return _layers.Multiply(name=name)([x, gate])
        if activation in (_activations.sigmoid, _activations.tanh, _activations.softmax):
            return _layers.Activation(activation, name=name)(x)
        raise unsupported(
            call,
            f"activation {kind}",
            "linear, relu, relu6, leaky_relu, sigmoid, tanh, silu, softmax",
        )

    def _softmax(self, call: Call, x: Any) -> Any:
        if call.layer.axis not in (-1, len(x.shape) - 1):
            raise unsupported(call, f"axis {call.layer.axis}", "the last axis")
        return self._activate(call, x, _activations.softmax)

    def _enlarge(self, call: Call, x: Any) -> Any:
        if call.layer.interpolation != "nearest":
            return self._copies.call(call, (x,), {})
        # By one op where UpSampling2D makes five of it.
        factors = call.layer.size
        height, width = x.shape[1] * factors[0], x.shape[2] * factors[1]
        name = self._copies.unique(call.name)
        return _layers.Resizing(height, width, interpolation="nearest", name=name)(x)

    def _resize(self, call: Call, x: Any) -> Any:
        layer = call.layer
        if layer.interpolation not in ("nearest", "bilinear"):
            raise unsupported(call, f"interpolation {layer.interpolation}", "nearest, bilinear")
        if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio or layer.antialias:
            raise unsupported(call, "an option", "interpolation, height and width alone")
        return self._copies.call(call, (x,), {})

    def _relu(self, call: Call, x: Any) -> Any:
        layer = call.layer
        if layer.threshold == 0 and layer.max_value is None and layer.negative_slope:
            slope = float(layer.negative_slope)
            return _layers.LeakyReLU(slope, name=self._copies.unique(call.name))(x)
        if layer.threshold != 0 or layer.negative_slope or layer.max_value not in _RELUS:
            raise unsupported(
                call,
                f"max_value {layer.max_value}, negative_slope {layer.negative_slope}, "
                f"threshold {layer.threshold}",
                "max_value None or 6, or a negative_slope alone",
            )
        return self._activate(call, x, _RELUS[layer.max_value])

    def _operation(self, call: Call, args: tuple[Any, ...]) -> Any:
        """Replaces an operation of ``keras.ops`` by the layer of the same meaning."""
        name = type(call.layer).__name__
        if name in _FUNCTIONS:
            return self._activate(call, args[0], _FUNCTIONS[name])
        if name not in _OPERATIONS:
            raise unsupported(call)
        tensors = [each for each in args if isinstance(each, keras.KerasTensor)]
        if len(tensors) != 2:
            raise unsupported(call, "an argument that is not computed", "two tensors")
        return self._chain(call, _OPERATIONS[name], tensors)

    def _chain(self, call: Call, kind: Any, tensors: list[Any]) -> Any:
        """Combines any number of tensors two by two, as the int8 operators do."""
        result, *others = tensors
        for other in others:
            result = kind(name=self._copies.unique(call.name))([result, other])
        return result

    def _inline(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Replaces a layer from outside Keras by the layers that its ``call`` calls."""
        try:
            inner = read_composition(call)
        except Exception:
            # Whatever the layer raises on symbolic tensors: it does more than call layers.
            raise unsupported(call, "code", "Keras layers, and layers that call these") from None
        return inner.replay(self.rebuild, args)


def unsupported(call: Call, got: str = "", allowed: str = "") -> UnsupportedOpError:
    """Returns the error for a layer that cannot be quantized."""
    return UnsupportedOpError(
        "has no fake-quantized form",
        where=f"layer '{call.path}' ({type(call.layer).__name__})",
        got=got,
        allowed=allowed,
        hint="" if allowed else "replace the layer",
    )
