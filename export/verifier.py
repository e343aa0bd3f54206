"""Checks that hold for every graph, after the reader and after each pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekiln.errors import BadModelError
from edgekiln.export.ir import DType, Graph

if TYPE_CHECKING:
    from edgekiln.export.ops.base import Op

_CODES = {DType.INT8: (-128, 127), DType.INT16: (-32768, 32767), DType.UINT8: (0, 255)}


def verify_graph(graph: Graph) -> None:
    """Checks the graph's wiring, then every operator by its own checker.

    Raises:
        BadModelError: The graph contradicts itself.
        UnsupportedOpError: A node uses what the compiler lacks.
    """
    verify_wiring(graph)
    for op in graph.ops:
        _verify_states(op, graph)
        op.check(graph)


def _verify_states(op: Op, graph: Graph) -> None:
    for position, index in enumerate(op.inputs):
        if index >= 0 and graph.tensor(index).is_variable and position not in op.state_inputs:
            op.unsupported(graph, f"reads the variable '{graph.tensor(index).name}'")


def verify_wiring(graph: Graph) -> None:
    """Checks what holds whatever the operators are: every tensor has one value, and in time.

    Raises:
        BadModelError: The graph contradicts itself.
    """
    if not graph.inputs or not graph.outputs:
        raise BadModelError("the model has no inputs or no outputs", where=graph.name)
    _verify_zero_points(graph)
    known = set(graph.inputs)
    if len(known) != len(graph.inputs):
        raise BadModelError("a tensor is a model input twice", where=graph.name)
    _verify_sizes(graph)
    for index in graph.inputs:
        if graph.tensor(index).is_constant or graph.tensor(index).is_variable:
            raise BadModelError(
                "a model input is a constant or a variable",
                where=graph.name,
                got=f"tensor {index} '{graph.tensor(index).name}'",
            )
    for op in graph.ops:
        for index in op.activation_inputs(graph):
            if index not in known:
                raise BadModelError(
                    "reads a tensor before it is written",
                    where=op.where(graph),
                    got=f"tensor {index} '{graph.tensor(index).name}'",
                )
        for index in op.outputs:
            tensor = graph.tensor(index)
            if index in known or tensor.is_constant or tensor.is_variable:
                raise BadModelError(
                    "writes a tensor that has a value",
                    where=op.where(graph),
                    got=f"tensor {index} '{graph.tensor(index).name}'",
                )
        known.update(op.outputs)
    for index in graph.outputs:
        if index not in known:
            raise BadModelError(
                "a model output is never written",
                where=graph.name,
                got=f"tensor {index} '{graph.tensor(index).name}'",
            )


def _verify_sizes(graph: Graph) -> None:
    for index in (*graph.inputs, *(t for op in graph.ops for t in op.outputs)):
        tensor = graph.tensor(index)
        if tensor.elements == 0:
            raise BadModelError(
                "a tensor has no elements",
                where=graph.name,
                got=f"tensor {index} '{tensor.name}' of shape {tensor.shape}",
            )


def _verify_zero_points(graph: Graph) -> None:
    for tensor in graph.tensors.values():
        low_high = _CODES.get(tensor.dtype)
        if tensor.quantization is None or low_high is None:
            continue
        low, high = low_high
        if any(not low <= z <= high for z in tensor.quantization.zero_points):
            raise BadModelError(
                f"zero point of tensor '{tensor.name}'",
                where=graph.name,
                got=tensor.quantization.zero_points[:4],
                allowed=f"{low} to {high}",
            )
