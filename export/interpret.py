"""Runs a graph by the numpy definitions of its operators: what the generated C must equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInputError
from edgekiln.export.ir import Graph

Array = NDArray[Any]


def run_graph(graph: Graph, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Computes the model's outputs.

    Args:
        graph: A verified graph.
        inputs: One value per model input, with the tensors' dtypes and shapes.

    Returns:
        One value per model output.

    Raises:
        BadInputError: An input has the wrong shape or dtype.
    """
    values = run_all_nodes(graph, inputs)
    return tuple(values[index] for index in graph.outputs)


def run_all_nodes(graph: Graph, inputs: Sequence[Array]) -> dict[int, Array]:
    """Computes every activation, by tensor index. Arguments and errors as in `run_graph`."""
    if len(inputs) != len(graph.inputs):
        raise BadInputError(
            "number of inputs", where=graph.name, got=len(inputs), allowed=len(graph.inputs)
        )
    values: dict[int, Array] = {}
    for index, value in zip(graph.inputs, inputs, strict=True):
        tensor = graph.tensor(index)
        if value.shape != tensor.shape or value.dtype != np.dtype(tensor.dtype.value):
            raise BadInputError(
                f"input '{tensor.name}'",
                where=graph.name,
                got=f"{value.dtype} {value.shape}",
                allowed=f"{tensor.dtype.value} {tensor.shape}",
            )
        values[index] = value
    for op in graph.ops:
        arguments = tuple(None if t < 0 else values.get(t, graph.tensor(t).data) for t in op.inputs)
        values.update(zip(op.outputs, op.define(graph, arguments), strict=True))
    return values
