"""Reads the graph of a Keras model and builds it anew, layer by layer.

Nested models are flattened on the way: a layer ``conv`` of a nested model ``block`` has the path
``block/conv`` and becomes ``block_conv``. A layer that is called several times stays one layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgekiln.errors import BadModelError
from edgekiln.train.quiet_keras import keras


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer.

    Attributes:
        path: The layer's name, after those of the models it is nested in, joined by "/".
        layer: The layer, or the operation of ``keras.ops``.
        args: Positional arguments; tensors among them are `Value`.
        kwargs: Arguments by name, likewise.
        inputs: The values it takes, in order.
        outputs: The values it makes.
    """

    path: str
    layer: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def name(self) -> str:
        """The layer's name in a flattened model."""
        return flat_name(self.path)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its number, shape (None where it is free) and dtype."""

    index: int
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class LayerGraph:
    """A model as a list of calls.

    Attributes:
        name: The model's name.
        inputs: `Value`, in the structure that the model takes.
        input_names: Name of each input, in order.
        outputs: `Value`, in the structure that the model gives.
        calls: In an order in which they can be made.
    """

    name: str
    inputs: Any
    input_names: tuple[str, ...]
    outputs: Any
    calls: tuple[Call, ...]

    def consumers(self) -> dict[Value, list[Call]]:
        """Returns the calls that take each value; none for a value nobody takes."""
        found: dict[Value, list[Call]] = {}
        for call in self.calls:
            for value in dict.fromkeys(call.inputs):
                found.setdefault(value, []).append(call)
        return found

    def output_values(self) -> tuple[Value, ...]:
        """Returns the model's outputs, in order."""
        return tuple(keras.tree.flatten(self.outputs))

    def calls_of(self, layer: Any) -> int:
        """Returns how often a layer is called."""
        return sum(call.layer is layer for call in self.calls)

    def replay(self, rebuild: Rebuild, inputs: Any) -> Any:
        """Makes each call anew.

        Args:
            rebuild: Makes one call: takes it, and its arguments as symbolic tensors, and returns
                its output or outputs. `LayerCopies.call` makes the same call with a copy.
            inputs: Symbolic tensors, in the structure of `inputs`.

        Returns:
            Symbolic tensors, in the structure of `outputs`.
        """
        values, given = keras.tree.flatten(self.inputs), keras.tree.flatten(inputs)
        tensors: dict[Value, Any] = dict(zip(values, given, strict=True))

        def fill(structure: Any) -> Any:
            return keras.tree.map_structure(
                lambda leaf: tensors[leaf] if isinstance(leaf, Value) else leaf, structure
            )

        for call in self.calls:
            results = keras.tree.flatten(rebuild(call, fill(call.args), fill(dict(call.kwargs))))
            tensors.update(zip(call.outputs, results, strict=True))
        return fill(self.outputs)


Rebuild = Callable[[Call, tuple[Any, ...], Mapping[str, Any]], Any]


def flat_name(path: str) -> str:
    """Returns the name in a flattened model of the layer at ``path``, such as "block/conv"."""
    return path.replace("/", "_")


def read_graph(model: Any) -> LayerGraph:
    """Returns a functional or Sequential model as a graph, nested models flattened.

    Raises:
        BadModelError: The model is subclassed, or its input shape is not known.
    """
    model = functional_model(model, model.name)
    reader = _Reader()
    inputs = keras.tree.map_structure(reader.new_value, model.input)
    reader.read(model, "")
    return LayerGraph(
        name=model.name,
        inputs=inputs,
        input_names=tuple(_input_name(tensor) for tensor in model.inputs),
        outputs=keras.tree.map_structure(reader.value, model.output),
        calls=tuple(reader.calls),
    )


def read_composition(call: Call) -> LayerGraph:
    """Returns as a graph what a layer's ``call`` does, where that is to call other layers.

    Args:
        call: A call of a layer from outside Keras, with tensors for its positional arguments.

    Raises:
        Exception: Whatever the layer raises when it is given symbolic tensors.
    """
    inputs = keras.tree.map_structure(
        lambda value: keras.Input(value.shape[1:], dtype=value.dtype), call.args
    )
    function = keras.Function(inputs, call.layer.call(*inputs, **call.kwargs))
    reader = _Reader()
    values = keras.tree.map_structure(reader.new_value, inputs)
    reader.read(function, call.path + "/")
    return LayerGraph(
        name=call.path,
        inputs=values,
        input_names=(),
        outputs=keras.tree.map_structure(reader.value, function._outputs_struct),
        calls=tuple(reader.calls),
    )


def _input_name(tensor: Any) -> str:
    return str(tensor._keras_history.operation.name)


def functional_model(model: Any, path: str) -> Any:
    """Returns a Sequential model as the functional model that it wraps, others as they are.

    Raises:
        BadModelError: The model, named ``path`` in the message, is neither.
    """
    if isinstance(model, keras.Sequential):
        model = model._functional
    if model is None or not hasattr(model, "_nodes_by_depth"):
        raise BadModelError(
            "is not a functional or Sequential model whose input shape is known",
            where=f"model '{path}'",
            hint="build it with keras.Input and keras.Model(inputs, outputs)",
        )
    return model


class _Reader:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._values: dict[int, Value] = {}
        self._tensors: list[Any] = []

    def new_value(self, tensor: Any) -> Value:
        shape = tuple(tensor.shape)
        value = Value(len(self._tensors), shape, str(tensor.dtype))
        self._values[id(tensor)] = value
        self._tensors.append(tensor)  # Alive, so that no other tensor gets its id.
        return value

    def value(self, tensor: Any) -> Value:
        return self._values[id(tensor)]

    def read(self, model: Any, prefix: str) -> None:
        """Appends the calls inside ``model``, whose inputs have their values already."""
        for node in _ordered_nodes(model):
            if isinstance(node.operation, keras.Model):
                self._read_nested(node, prefix)
            else:
                self._append(node, prefix)

    def _append(self, node: Any, prefix: str) -> None:
        args, kwargs = keras.tree.map_structure(
            lambda leaf: self.value(leaf) if isinstance(leaf, keras.KerasTensor) else leaf,
            (node.arguments.args, node.arguments.kwargs),
        )
        self.calls.append(
            Call(
                path=prefix + node.operation.name,
                layer=node.operation,
                args=tuple(args),
                kwargs=kwargs,
                inputs=tuple(self.value(tensor) for tensor in node.input_tensors),
                outputs=tuple(self.new_value(tensor) for tensor in node.output_tensors),
            )
        )

    def _read_nested(self, node: Any, prefix: str) -> None:
        path = prefix + node.operation.name
        inner = functional_model(node.operation, path)
        for tensor, argument in zip(inner.inputs, node.input_tensors, strict=True):
            self._values[id(tensor)] = self.value(argument)
            self._tensors.append(tensor)
        self.read(inner, path + "/")
        for tensor, result in zip(inner.outputs, node.output_tensors, strict=True):
            self._values[id(result)] = self.value(tensor)
            self._tensors.append(result)


def _ordered_nodes(model: Any) -> Iterator[Any]:
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


Prepare = Callable[[Value, Any], Any]


def build_model(graph: LayerGraph, rebuild: Rebuild, prepare: Prepare | None = None) -> Any:
    """Builds a functional model by making each call of a graph anew; see `LayerGraph.replay`.

    All of it computes in float32, also where the old model was one of mixed precision.

    Args:
        graph: The calls.
        rebuild: Makes one of them.
        prepare: Takes an input of the model, with its symbolic tensor, and returns the tensor
            that the calls are to take instead.

    Returns:
        A model with the name of the old one, and the names and structure of its inputs.
    """
    names = iter(graph.input_names)
    with _float32_layers():
        inputs = keras.tree.map_structure(
            lambda value: keras.Input(value.shape[1:], dtype=value.dtype, name=next(names)),
            graph.inputs,
        )
        taken = inputs
        if prepare is not None:
            taken = keras.tree.map_structure(prepare, graph.inputs, inputs)
        return keras.Model(inputs, graph.replay(rebuild, taken), name=graph.name)


@contextlib.contextmanager
def _float32_layers() -> Iterator[None]:
    """Lets new layers compute in float32 within a ``with``, whatever the global policy is."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def is_from_keras(layer: Any) -> bool:
    """Tells whether a layer's class, or an operation's, is Keras's own."""
    return type(layer).__module__.split(".")[0] == "keras"


class LayerCopies:
    """Copies of layers with their weights, one for each layer however often it is called."""

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}
        self._names: set[str] = set()

    def call(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Makes a call with a copy of its layer."""
        if not isinstance(call.layer, keras.Layer):
            return call.layer(*args, **kwargs)
        copy = self._copies.get(id(call.layer))
        if copy is not None:
            return copy(*args, **kwargs)
        copy = self._copies[id(call.layer)] = copy_layer(call, self.unique(call.name))
        result = copy(*args, **kwargs)
        copy.set_weights(call.layer.get_weights())
        return result

    def unique(self, name: str) -> str:
        """Returns ``name``, with a number after it where it is taken."""
        unused, number = name, 1
        while unused in self._names:
            number += 1
            unused = f"{name}_{number}"
        self._names.add(unused)
        return unused


def copy_layer(call: Call, name: str, kind: Any = None, **changes: Any) -> Any:
    """Returns a fresh layer with the configuration of the one that is called, not yet built.

    It computes in float32: half precision holds neither codes times scales nor their sums.

    Args:
        call: What to copy.
        name: The new layer's name.
        kind: Its class, where it is to be another one.
        changes: Configuration to change.

    Raises:
        BadModelError: The layer's configuration is incomplete.
    """
    try:
        config = {**call.layer.get_config(), "name": name, "dtype": "float32", **changes}
        return (kind or type(call.layer)).from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BadModelError(
            "cannot be copied from its configuration",
            where=f"layer '{call.path}' ({type(call.layer).__name__})",
            got=error,
            hint="give it a complete get_config",
        ) from None
