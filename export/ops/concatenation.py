"""CONCATENATION."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import Graph
from edgekiln.export.ops.activation import Activation
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class Concatenation(Op):
    """``int8`` tensors one after the other along one dimension."""

    axis: int
    activation: Activation

    name: ClassVar[str] = "CONCATENATION"
    variants: ClassVar[str] = "int8; any axis; inputs of the output's scale"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("ConcatenationOptions")
        activation = reader.enum(Activation, options.FusedActivationFunction(), "activation")
        return cls(reader.index, reader.inputs, reader.outputs, options.Axis(), activation)

    def positive_axis(self, graph: Graph) -> int:
        """Returns the dimension along which the inputs are joined."""
        rank = len(self.output(graph).shape)
        if not -rank <= self.axis < rank:
            self.reject(graph, "axis out of range", self.axis, f"-{rank} to {rank - 1}")
        return self.axis % rank

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, len(self.inputs) + 1))
        y = self.output(graph)
        self.check_int8(graph, y)
        axis = self.positive_axis(graph)
        if self.activation is not Activation.NONE:
            self.unsupported(graph, "fused activation", self.activation, "NONE")
        joined = 0
        for position in range(len(self.inputs)):
            x = self.input(graph, position)
            self.check_int8(graph, x)
            self.check_same_quantization(graph, y, x)
            if len(x.shape) != len(y.shape) or any(
                x.shape[i] != y.shape[i] for i in range(len(y.shape)) if i != axis
            ):
                self.reject(graph, f"shape of '{x.name}'", x.shape, f"{y.shape} but for {axis}")
            joined += x.shape[axis]
        if joined != y.shape[axis]:
            self.reject(graph, f"size of '{y.name}' along axis {axis}", y.shape[axis], joined)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.concatenate([np.asarray(x) for x in inputs], axis=self.positive_axis(graph)),)


def _lower(op: Concatenation, graph: Graph) -> tuple[KernelCall, ...]:
    y = op.output(graph)
    axis = op.positive_axis(graph)
    element = y.dtype.bytes
    output_row = math.prod(y.shape[axis:]) * element
    calls, offset = [], 0
    for index in op.inputs:
        x = graph.tensor(index)
        row = math.prod(x.shape[axis:]) * element
        scalars = {
            "rows": math.prod(y.shape[:axis]),
            "row_bytes": row,
            "output_row_bytes": output_row,
        }
        calls.append(
            KernelCall(
                "ek_copy_rows",
                "ek_copy_rows.h",
                scalars,
                {},
                (index,),
                y.index,
                output_offset=offset,
                bytewise=True,
            )
        )
        offset += row
    return tuple(calls)


def _cost(op: Concatenation, graph: Graph) -> float:
    return 1.0 * op.output(graph).elements


Concatenation.kernels = (Kernel("copy_rows", _lower, _cost),)
