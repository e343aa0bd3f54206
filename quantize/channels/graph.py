"""The graph of a Keras model: its calls of layers, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgekiln.errors import BadInputError
from edgekiln.train.quiet_keras import keras

Shape = tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or of an operation such as ``x + y``.

    Attributes:
        operation: The Keras layer or operation.
        path: Its name; ``<model>/<layer>`` in a nested model.
        inputs: The KerasTensors among the arguments, in their order.
        outputs: The KerasTensors it returns.
        arguments: All arguments, flat: tensors and constants.
        first_argument: The first one, as it was passed.
        fill_in: Returns all of them, positional and named, with other tensors in the place of
            those whose ``id`` the dict holds.
    """

    operation: Any
    path: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    arguments: tuple[Any, ...]
    first_argument: Any
    fill_in: Callable[[dict[int, Any]], tuple[tuple[Any, ...], dict[str, Any]]]

    @property
    def input_shape(self) -> Shape:
        """Shape of the first input, batch first."""
        return tuple(self.inputs[0].shape)

    @property
    def output_shape(self) -> Shape:
        """Shape of the first output, batch first."""
        return tuple(self.outputs[0].shape)


def is_graph(model: Any) -> bool:
    """Tells whether ``model`` is a functional or a Sequential model that has been built."""
    if isinstance(model, keras.Sequential):
        return hasattr(model, "inputs")
    return isinstance(model, keras.Function) and isinstance(model, keras.Model)


def require_graph(model: Any) -> None:
    """Checks that the layers of ``model`` and its sizes can be known.

    Raises:
        BadInputError: It is subclassed, not built, or an input's size is not fixed.
    """
    where = getattr(model, "name", type(model).__name__)
    if isinstance(model, keras.Sequential) and not is_graph(model):
        raise BadInputError(
            "channels: the model has no input shape yet",
            where=where,
            hint="begin it with keras.Input, or call it once",
        )
    if not is_graph(model):
        raise BadInputError(
            "channels: the model's layers cannot be followed",
            where=where,
            got=f"a {type(model).__name__}",
            allowed="a functional or a Sequential Keras model",
        )
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise BadInputError(
                "channels: an input's size is not fixed",
                where=f"{where}, {tensor.name}",
                got=tuple(tensor.shape),
                allowed="None for the batch only",
            )


def calls(model: Any, prefix: str = "") -> list[Call]:
    """Returns the calls between a model's inputs and its outputs, each after those it needs.

    Args:
        model: A functional or Sequential model, built.
        prefix: What the paths begin with.
    """
    known = {id(tensor) for tensor in model.inputs}
    ordered: list[Call] = []
    pending = list(reversed(model.outputs))
    while pending:
        tensor = pending[-1]
        if id(tensor) in known:
            pending.pop()
            continue
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        needed = [each for each in node.arguments.keras_tensors if id(each) not in known]
        if needed:
            pending.extend(reversed(needed))
            continue
        known.update(id(output) for output in node.outputs)
        ordered.append(_read_call(node, prefix))
    return ordered


def _read_call(node: Any, prefix: str) -> Call:
    arguments, named = node.arguments.args, node.arguments.kwargs
    return Call(
        operation=node.operation,
        path=prefix + node.operation.name,
        inputs=tuple(node.arguments.keras_tensors),
        outputs=tuple(node.outputs),
        arguments=tuple(keras.tree.flatten((arguments, named))),
        first_argument=next(iter((*arguments, *named.values())), None),
        fill_in=node.arguments.fill_in,
    )
