"""RESHAPE, SQUEEZE, EXPAND_DIMS and SHAPE: nothing runs for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op
from edgekiln.export.ops.movement import ALL_TYPES, check_moved, expect_shape


@dataclass(frozen=True)
class Reshape(Op):
    """The same bytes under another shape.

    The output's shape is the one in the model file; a second input that repeats it is not read.
    """

    name: ClassVar[str] = "RESHAPE"
    variants: ClassVar[str] = f"{ALL_TYPES}; costs nothing"
    aliases_input: ClassVar[bool] = True

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 3))
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        if x.elements != y.elements:
            self.reject(graph, "the number of elements changes", y.shape, x.shape)

    def activation_inputs(self, graph: Graph) -> tuple[int, ...]:
        """Returns the first input alone: the shape is known ahead of time."""
        found = super().activation_inputs(graph)
        return tuple(t for t in found if t == self.inputs[0])

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.asarray(inputs[0]).reshape(self.output(graph).shape),)


class Squeeze(Reshape):
    """A tensor without some of its dimensions of size 1."""

    name: ClassVar[str] = "SQUEEZE"


class ExpandDims(Reshape):
    """A tensor with one more dimension of size 1."""

    name: ClassVar[str] = "EXPAND_DIMS"


@dataclass(frozen=True)
class Shape(Op):
    """The shape of a tensor, which is always known ahead of time."""

    name: ClassVar[str] = "SHAPE"
    variants: ClassVar[str] = "any type; int32 or int64 out; costs nothing where it is folded"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, y, DType.INT32, DType.INT64)
        expect_shape(self, graph, y, (len(x.shape),))
        if not x.shape:
            self.unsupported(graph, f"tensor '{y.name}' is empty", y.shape)

    def activation_inputs(self, graph: Graph) -> tuple[int, ...]:
        """Returns nothing: the values of the input do not matter."""
        return ()

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.array(self.input(graph, 0).shape, self.output(graph).dtype.value),)


def _lower_shape(op: Shape, graph: Graph) -> tuple[KernelCall, ...]:
    (value,) = op.define(graph, (None,))
    table = np.frombuffer(value.tobytes(), np.int8)
    return (
        KernelCall(
            "ek_constant",
            "ek_constant.h",
            {"bytes": table.size},
            {"value": table},
            (),
            op.output(graph).index,
            bytewise=True,
        ),
    )


Shape.kernels = (Kernel("constant", _lower_shape, lambda _op, _graph: 1.0),)
