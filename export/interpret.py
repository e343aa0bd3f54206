"""Runs a graph by the numpy definitions of its operators: what the generated C must equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInputError
from edgekiln.export.ir import Graph

Array = NDArray[Any]


def run_graph(
    graph: Graph, inputs: Sequence[Array], states: dict[int, Array] | None = None
) -> tuple[Array, ...]:
    """Computes the model's outputs.

    Args:
        graph: A verified graph.
        inputs: One value per model input, with the tensors' dtypes and shapes.
        states: Value of each variable, by tensor index, updated in place; a fresh set of
            initial values by default.

    Returns:
        One value per model output.

    Raises:
        BadInputError: An input has the wrong shape or dtype.
    """
    values = run_all_nodes(graph, inputs, states)
    return tuple(values[index] for index in graph.outputs)


def initial_states(graph: Graph) -> dict[int, Array]:
    """Returns the value of each variable before the first inference."""
    return {index: graph.initial[index].copy() for index in graph.states()}


def run_all_nodes(
    graph: Graph, inputs: Sequence[Array], states: dict[int, Array] | None = None
) -> dict[int, Array]:
    """Computes every activation, by tensor index. Arguments and errors as in `run_graph`."""
    states = initial_states(graph) if states is None else states
    values = _check_inputs(graph, inputs)
    for op in graph.ops:
        arguments = tuple(_argument(graph, values, states, t) for t in op.inputs)
        with np.errstate(all="ignore"):  # overflow and division by zero are as in C
            results = op.define(graph, arguments)
        values.update(zip(op.outputs, results, strict=False))
        states.update(zip(op.states(graph), results[len(op.outputs) :], strict=True))
    return values


def _argument(
    graph: Graph, values: dict[int, Array], states: dict[int, Array], index: int
) -> Array | None:
    if index < 0:
        return None
    if index in states:
        return states[index]
    return values.get(index, graph.tensor(index).data)


def _check_inputs(graph: Graph, inputs: Sequence[Array]) -> dict[int, Array]:
    if len(inputs) != len(graph.inputs):
        raise BadInputError(
            "number of inputs", where=graph.name, got=len(inputs), allowed=len(graph.inputs)
        )
    for index, value in zip(graph.inputs, inputs, strict=True):
        tensor = graph.tensor(index)
        if value.shape != tensor.shape or value.dtype != np.dtype(tensor.dtype.value):
            raise BadInputError(
                f"input '{tensor.name}'",
                where=graph.name,
                got=f"{value.dtype} {value.shape}",
                allowed=f"{tensor.dtype.value} {tensor.shape}",
            )
    return dict(zip(graph.inputs, inputs, strict=True))
