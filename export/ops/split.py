"""SPLIT, SPLIT_V and UNPACK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import Graph, Tensor
from edgekiln.export.ops.base import Array
from edgekiln.export.ops.movement import (
    ALL_TYPES,
    MOVE,
    Copy,
    Movement,
    View,
    check_moved,
    constant_integers,
    expect_shape,
    positive_axis,
)

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class Split(Movement):
    """A tensor in equal parts along one dimension."""

    name: ClassVar[str] = "SPLIT"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant axis"
    axis_position: ClassVar[int] = 0
    data_position: ClassVar[int] = 1

    def data(self, graph: Graph) -> Tensor:
        """Returns the tensor that is split."""
        return self.input(graph, self.data_position)

    def positive_axis(self, graph: Graph) -> int:
        """Returns the dimension along which the input is split."""
        axis = constant_integers(self, graph, self.axis_position, "axis")
        if len(axis) != 1:
            self.reject(graph, "number of axes", len(axis), 1)
        return positive_axis(self, graph, axis[0], len(self.data(graph).shape))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3), max(len(self.outputs), 1))
        self._check_parts(graph)

    def _check_parts(self, graph: Graph) -> None:
        x, axis = self.data(graph), self.positive_axis(graph)
        joined = 0
        for position in range(len(self.outputs)):
            y = self.output(graph, position)
            check_moved(self, graph, x, y)
            size = y.shape[axis] if axis < len(y.shape) else 0
            expect_shape(self, graph, y, (*x.shape[:axis], size, *x.shape[axis + 1 :]))
            joined += size
        if joined != x.shape[axis]:
            self.reject(graph, f"parts of '{x.name}' along axis {axis}", joined, x.shape[axis])
        self.check_copies(graph)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns one copy for each output."""
        x, axis, start = View.of(self.data(graph)), self.positive_axis(graph), 0
        copies = []
        for tensor in self.outputs:
            y = View.of(graph.tensor(tensor))
            copies.append(Copy(x.sliced(axis, start, y.shape[axis]), y))
            start += y.shape[axis]
        return tuple(copies)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the outputs."""
        axis = self.positive_axis(graph)
        sizes = [graph.tensor(t).shape[axis] for t in self.outputs]
        value = np.asarray(inputs[self.data_position])
        parts = np.split(value, np.cumsum(sizes)[:-1].tolist(), axis=axis)
        return tuple(np.ascontiguousarray(part) for part in parts)


class SplitV(Split):
    """A tensor in parts of given sizes along one dimension.

    The sizes are those of the outputs; the input that repeats them is not read.
    """

    name: ClassVar[str] = "SPLIT_V"
    axis_position: ClassVar[int] = 2
    data_position: ClassVar[int] = 0

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(3, 4), max(len(self.outputs), 1))
        self._check_parts(graph)

    def activation_inputs(self, graph: Graph) -> tuple[int, ...]:
        """Returns the tensor that is split."""
        found = super().activation_inputs(graph)
        return tuple(t for t in found if t == self.inputs[0])


@dataclass(frozen=True)
class Unpack(Movement):
    """A tensor taken apart along one dimension, which the parts lack."""

    axis: int

    name: ClassVar[str] = "UNPACK"
    variants: ClassVar[str] = f"{ALL_TYPES}; any axis"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("UnpackOptions")
        return cls(reader.index, reader.inputs, reader.outputs, options.Axis())

    def positive_axis(self, graph: Graph) -> int:
        """Returns the dimension along which the input is taken apart."""
        return positive_axis(self, graph, self.axis, len(self.input(graph, 0).shape))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        x = self.input(graph, 0)
        axis = self.positive_axis(graph)
        self.check_counts(graph, range(1, 2), x.shape[axis])
        for position in range(len(self.outputs)):
            y = self.output(graph, position)
            check_moved(self, graph, x, y)
            expect_shape(self, graph, y, (*x.shape[:axis], *x.shape[axis + 1 :]))
        self.check_copies(graph)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns one copy for each output."""
        x, axis = View.of(self.input(graph, 0)), self.positive_axis(graph)
        return tuple(
            Copy(x.sliced(axis, i, 1), View.of(graph.tensor(t)).repeated(axis, 1))
            for i, t in enumerate(self.outputs)
        )

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the outputs."""
        value = np.moveaxis(np.asarray(inputs[0]), self.positive_axis(graph), 0)
        return tuple(np.ascontiguousarray(part).reshape(part.shape) for part in value)


Split.kernels = MOVE
SplitV.kernels = MOVE
Unpack.kernels = MOVE
