"""Resolves variables: handles become states, their initialization becomes values.

A variable is named by VAR_HANDLE, in the main subgraph and in those that CALL_ONCE runs before
the first inference. It becomes a variable tensor of the graph. Its value before the first
inference is what CALL_ONCE assigns to it, which has to follow from constants; without an
assignment it is TensorFlow Lite Micro's default, the zero point in every byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadModelError, UnsupportedOpError
from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.base import Op
from edgekiln.export.ops.variables import AssignVariable, CallOnce, ReadVariable, VarHandle

Array = NDArray[Any]
_Key = tuple[str, str]
"""Container and name of a variable."""


def resolve_variables(main: Graph, further: Mapping[int, Graph]) -> Graph:
    """Returns the main subgraph without handles, its variables as states.

    Args:
        main: The first subgraph.
        further: The subgraphs that its CALL_ONCE operators run, by their number.

    Raises:
        BadModelError: Handles are wired wrongly, or types or sizes of a variable differ.
        UnsupportedOpError: An initial value does not follow from constants.
    """
    if not any(isinstance(op, VarHandle | CallOnce) for op in main.ops):
        _reject_handles(main)
        return main
    _check_order(main)
    graphs = (main, *further.values())
    variables = _find_variables(graphs)
    first = max(main.tensors) + 1
    states = {
        key: replace(tensor, index=first + number, data=None, is_variable=True)
        for number, (key, tensor) in enumerate(variables.items())
    }
    values = {key: _default_value(tensor) for key, tensor in states.items()}
    for graph in further.values():
        values |= _run_once(graph, states)
    handles = _handles(main)
    return _without_handles(
        main.replace(
            tensors={**main.tensors, **{t.index: t for t in states.values()}},
            ops=tuple(
                _with_state(op, main, handles, states)
                for op in main.ops
                if not isinstance(op, VarHandle | CallOnce)
            ),
            initial={**main.initial, **{states[key].index: values[key] for key in states}},
        )
    )


def _check_order(main: Graph) -> None:
    """Checks that CALL_ONCE comes before whatever uses a variable."""
    used = False
    for op in main.ops:
        if isinstance(op, CallOnce) and used:
            op.unsupported(
                main, "comes after a node that uses a variable", allowed="the first node"
            )
        used |= isinstance(op, ReadVariable | AssignVariable)


def _handles(graph: Graph) -> dict[int, _Key]:
    """Returns the variable that each handle's tensor stands for."""
    handles: dict[int, _Key] = {}
    for op in graph.ops:
        if isinstance(op, VarHandle):
            op.check_counts(graph, range(1))
            handles[op.outputs[0]] = (op.container, op.shared_name)
    return handles


def _find_variables(graphs: tuple[Graph, ...]) -> dict[_Key, Tensor]:
    """Returns a tensor like each variable: the first one that is assigned to it."""
    found: dict[_Key, Tensor] = {}
    for graph in graphs:
        handles = _handles(graph)
        for op in graph.ops:
            if isinstance(op, AssignVariable):
                op.check(graph)
                key = _variable_of(op, graph, handles)
                found.setdefault(key, replace(op.input(graph, 1), name=key[1] or "variable"))
    for graph in graphs:
        handles = _handles(graph)
        for op in graph.ops:
            if isinstance(op, ReadVariable | AssignVariable):
                op.check(graph)
                _check_fit(op, graph, found.get(_variable_of(op, graph, handles)))
    return found


def _variable_of(op: Op, graph: Graph, handles: Mapping[int, _Key]) -> _Key:
    if op.inputs[0] not in handles:
        op.reject(graph, "its first input is not the output of a VAR_HANDLE")
    return handles[op.inputs[0]]


def _check_fit(op: ReadVariable | AssignVariable, graph: Graph, variable: Tensor | None) -> None:
    if variable is None:
        op.reject(graph, "reads a variable that is never assigned")
    value = op.output(graph) if isinstance(op, ReadVariable) else op.input(graph, 1)
    if (value.dtype, value.elements) != (variable.dtype, variable.elements):
        op.reject(
            graph,
            f"the variable '{variable.name}' has another type or size",
            f"{value.dtype.value} {value.shape}",
            f"{variable.dtype.value} {variable.shape}",
        )


def _default_value(variable: Tensor) -> Array:
    zero_point = 0 if variable.quantization is None else variable.quantization.zero_point
    data = bytes([zero_point & 0xFF]) * variable.bytes
    return np.frombuffer(data, variable.dtype.value).reshape(variable.shape)


def _run_once(graph: Graph, states: Mapping[_Key, Tensor]) -> dict[_Key, Array]:
    """Returns the values that a subgraph assigns."""
    handles = _handles(graph)
    assigned: dict[_Key, Array] = {}
    known: dict[int, Array] = {}

    def value_of(op: Op, tensor: int) -> Array | None:
        if tensor < 0:
            return None
        value = known.get(tensor, graph.tensor(tensor).data)
        if value is None:
            op.unsupported(
                graph, "initialization does not follow from constants", graph.tensor(tensor).name
            )
        return value

    for op in graph.ops:
        if isinstance(op, VarHandle):
            continue
        if isinstance(op, AssignVariable):
            key = handles[op.inputs[0]]
            value = value_of(op, op.inputs[1])
            assigned[key] = np.asarray(value).reshape(states[key].shape)
            continue
        if isinstance(op, ReadVariable | CallOnce) or op.states(graph):
            op.unsupported(graph, "is not supported in an initialization")
        arguments = tuple(value_of(op, tensor) for tensor in op.inputs)
        op.check(graph)
        known.update(zip(op.outputs, op.define(graph, arguments), strict=True))
    return assigned


def _with_state(
    op: Op, graph: Graph, handles: Mapping[int, _Key], states: Mapping[_Key, Tensor]
) -> Op:
    if not isinstance(op, ReadVariable | AssignVariable):
        return op
    state = states[_variable_of(op, graph, handles)]
    return replace(op, inputs=(state.index, *op.inputs[1:]))


def _without_handles(graph: Graph) -> Graph:
    _reject_handles(graph)
    tensors = {i: t for i, t in graph.tensors.items() if t.dtype is not DType.RESOURCE}
    return graph.replace(tensors=tensors)


def _reject_handles(graph: Graph) -> None:
    """Checks that nothing is left which uses a handle."""
    for op in graph.ops:
        for tensor in (*op.inputs, *op.outputs):
            if tensor >= 0 and graph.tensor(tensor).dtype is DType.RESOURCE:
                raise UnsupportedOpError(
                    "uses a resource", where=op.where(graph), got=graph.tensor(tensor).name
                )
    for tensor in (*graph.inputs, *graph.outputs):
        if graph.tensor(tensor).dtype is DType.RESOURCE:
            raise BadModelError(
                "a model input or output is a resource",
                where=graph.name,
                got=graph.tensor(tensor).name,
            )
