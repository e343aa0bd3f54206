"""VAR_HANDLE, READ_VARIABLE, ASSIGN_VARIABLE and CALL_ONCE: named values that are kept.

In the file a handle leads from VAR_HANDLE to the operators that read and write the variable.
`edgekiln.export.variables` resolves handles and initialization when a model is read: what is
left are reads and writes of states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op
from edgekiln.export.ops.movement import ALL_TYPES, MOVABLE

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class VarHandle(Op):
    """Names a variable; resolved when the model is read."""

    container: str
    shared_name: str

    name: ClassVar[str] = "VAR_HANDLE"
    variants: ClassVar[str] = ALL_TYPES

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("VarHandleOptions")
        container, shared_name = (
            (text or b"").decode("utf-8", "replace")
            for text in (options.Container(), options.SharedName())
        )
        return cls(reader.index, reader.inputs, reader.outputs, container, shared_name)


@dataclass(frozen=True)
class CallOnce(Op):
    """Runs another subgraph before the first inference; resolved when the model is read."""

    subgraph: int

    name: ClassVar[str] = "CALL_ONCE"
    variants: ClassVar[str] = "of a subgraph that assigns constants to variables, as the first node"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        subgraph = reader.options("CallOnceOptions").InitSubgraphIndex()
        return cls(reader.index, reader.inputs, reader.outputs, subgraph)


@dataclass(frozen=True)
class ReadVariable(Op):
    """Copies a variable to a tensor."""

    name: ClassVar[str] = "READ_VARIABLE"
    state_inputs: ClassVar[tuple[int, ...]] = (0,)
    variants: ClassVar[str] = ALL_TYPES

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        self.check_type(graph, self.output(graph), *MOVABLE)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Returns the value, and the unchanged variable."""
        value = np.asarray(inputs[0])
        return value.reshape(self.output(graph).shape).copy(), value


@dataclass(frozen=True)
class AssignVariable(Op):
    """Copies a tensor to a variable."""

    name: ClassVar[str] = "ASSIGN_VARIABLE"
    state_inputs: ClassVar[tuple[int, ...]] = (0,)
    variants: ClassVar[str] = ALL_TYPES

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3), outputs=0)
        value = self.input(graph, 1)
        self.check_type(graph, value, *MOVABLE)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Returns the variable's new value."""
        return (np.asarray(inputs[1]).reshape(self.input(graph, 0).shape).copy(),)


def _copy(graph: Graph, source: int, result: int) -> tuple[KernelCall, ...]:
    size = graph.tensor(result).bytes
    scalars = {"rows": 1, "row_bytes": size, "output_row_bytes": size}
    return (
        KernelCall("ek_copy_rows", "ek_copy_rows.h", scalars, {}, (source,), result, bytewise=True),
    )


def _lower_read(op: ReadVariable, graph: Graph) -> tuple[KernelCall, ...]:
    return _copy(graph, op.inputs[0], op.outputs[0])


def _lower_assign(op: AssignVariable, graph: Graph) -> tuple[KernelCall, ...]:
    return _copy(graph, op.inputs[1], op.inputs[0])


def _cost(op: Op, graph: Graph) -> float:
    return 1.0 * graph.tensor(op.inputs[0]).bytes


ReadVariable.kernels = (Kernel("copy_rows", _lower_read, _cost),)
AssignVariable.kernels = (Kernel("copy_rows", _lower_assign, _cost),)
