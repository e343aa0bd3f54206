"""Builds the smaller model: the same layers with fewer channels, and the weights that are left."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.graph import calls
from edgekiln.quantize.channels.lanes import Lanes
from edgekiln.quantize.channels.tracer import Layer, Trace
from edgekiln.train.quiet_keras import keras


def remove_channels(trace: Trace, kept: npt.NDArray[np.bool_]) -> Any:
    """Returns a new model of the same layers, names and order, without some channels.

    Args:
        trace: The model with its channels.
        kept: bool [channels], False where a channel goes; pinned channels are True, and every
            layer keeps at least one.

    Returns:
        A Keras model, not compiled, that shares nothing with the original.

    Raises:
        BadInputError: A layer cannot be made anew from its config.
    """
    builder = _Builder(trace, kept)
    model = builder.clone_model(trace.model)
    for old, new in builder.pairs:
        _copy_weights(trace, kept, builder.known.get(id(old)), old, new)
    return model


class _Builder:
    """Clones layers, each once, with the numbers of channels that are left."""

    def __init__(self, trace: Trace, kept: npt.NDArray[np.bool_]) -> None:
        self._trace = trace
        self._kept = kept
        self._clones: dict[int, Any] = {}
        self.known = {id(layer.layer): layer for layer in trace.layers}
        self.pairs: list[tuple[Any, Any]] = []

    def clone_model(self, model: Any) -> Any:
        """Returns a model of the same graph; what it was compiled with is not carried over."""
        lanes = self._trace.inner_inputs.get(id(model)) or (None,) * len(model.inputs)
        inputs = [self._make_input(*pair) for pair in zip(model.inputs, lanes, strict=True)]
        if isinstance(model, keras.Sequential):
            made = keras.Sequential(
                [*inputs, *(self._clone_layer(layer) for layer in model.layers)], name=model.name
            )
        else:
            made = keras.Model(
                keras.tree.pack_sequence_as(model.input, inputs),
                keras.tree.pack_sequence_as(model.output, self._connect(model, inputs)),
                name=model.name,
            )
        if not model.trainable:
            made.trainable = False
        return made

    def _connect(self, model: Any, inputs: list[Any]) -> list[Any]:
        """Calls clones of a functional model's layers as the model calls its own."""
        tensors = {id(old): new for old, new in zip(model.inputs, inputs, strict=True)}
        for call in calls(model):
            given, named = call.fill_in(tensors)
            outputs = keras.tree.flatten(self._clone_layer(call.operation)(*given, **named))
            tensors.update((id(old), new) for old, new in zip(call.outputs, outputs, strict=True))
        return [tensors[id(tensor)] for tensor in model.outputs]

    def _make_input(self, tensor: Any, lanes: Lanes | None) -> Any:
        """Returns a new input; those of the whole model, without lanes, keep their shape."""
        layer = tensor._keras_history.operation
        shape = tuple(tensor.shape)
        if lanes is not None and len(lanes):
            shape = (*shape[:-1], self._count(lanes))
        return keras.Input(
            batch_shape=shape,
            dtype=tensor.dtype,
            sparse=layer.sparse,
            name=layer.name,
            optional=layer.optional,
        )

    def _count(self, lanes: Lanes) -> int:
        return int(self._trace.stay(lanes, self._kept).sum())

    def _clone_layer(self, layer: Any) -> Any:
        if id(layer) in self._clones:
            return self._clones[id(layer)]
        if id(layer) in self._trace.inner_inputs:
            clone = self.clone_model(layer)
        else:
            clone = self._make(layer)
            if isinstance(layer, keras.Layer):
                self.pairs.append((layer, clone))
        self._clones[id(layer)] = clone
        return clone

    def _make(self, layer: Any) -> Any:
        config = layer.get_config()
        known = self.known.get(id(layer))
        for setting in known.settings if known else ():
            config[setting.key] = setting.make(self._count(setting.lanes))
        try:
            return type(layer).from_config(config)
        except Exception as error:
            raise BadInputError(
                "channels: the layer cannot be made anew from its config",
                where=f"{self._trace.model.name}, {layer.name}",
                got=textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …"),
            ) from None


def _copy_weights(
    trace: Trace, kept: npt.NDArray[np.bool_], known: Layer | None, old: Any, new: Any
) -> None:
    for source, target in zip(old.variables, new.variables, strict=True):
        values = keras.ops.convert_to_numpy(source)
        for axis in known.axes if known else ():
            if axis.variable is source:
                values = np.compress(trace.stay(axis.lanes, kept), values, axis.axis)
        target.assign(values)
