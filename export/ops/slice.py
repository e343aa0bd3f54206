"""SLICE, STRIDED_SLICE and REVERSE_V2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import Graph
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
class Range:
    """Indices of one dimension: ``count`` of them from ``start`` on, ``step`` apart."""

    start: int
    count: int
    step: int

    def as_slice(self) -> slice:
        """Returns the same as a Python slice."""
        stop = self.start + self.count * self.step
        return slice(self.start, None if stop < 0 else stop, self.step)


@dataclass(frozen=True)
class Ranges(Movement):
    """Some indices of each dimension of the first input."""

    def ranges(self, graph: Graph) -> tuple[Range, ...]:
        """Returns which indices are kept, per dimension."""
        raise AssertionError(f"{type(self).__name__} has no ranges")

    def kept(self, graph: Graph) -> tuple[int, ...]:
        """Returns the output's shape, from the ranges."""
        return tuple(r.count for r in self.ranges(graph))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        for axis, (r, size) in enumerate(zip(self.ranges(graph), x.shape, strict=True)):
            last = r.start + (r.count - 1) * r.step
            if r.count < 0 or not (0 <= r.start < size and 0 <= last < size):
                self.reject(graph, f"range of dimension {axis}", r, f"indices below {size}")
        expect_shape(self, graph, y, self.kept(graph))
        self.check_copies(graph)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns the one copy."""
        source = View.of(self.input(graph, 0))
        for axis, r in enumerate(self.ranges(graph)):
            source = source.sliced(axis, r.start, r.count, r.step)
        return (Copy(source, View.of(self.output(graph), source.shape)),)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        index = tuple(r.as_slice() for r in self.ranges(graph))
        return (np.asarray(inputs[0])[index].reshape(self.output(graph).shape),)


@dataclass(frozen=True)
class Slice(Ranges):
    """A block of a tensor."""

    name: ClassVar[str] = "SLICE"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant begin and size"

    def ranges(self, graph: Graph) -> tuple[Range, ...]:
        """Returns which indices are kept, per dimension; a size of -1 keeps all the others."""
        shape = self.input(graph, 0).shape
        begin = constant_integers(self, graph, 1, "begin")
        size = constant_integers(self, graph, 2, "size")
        if not len(begin) == len(size) == len(shape):
            self.reject(graph, "number of begins and sizes", (len(begin), len(size)), len(shape))
        return tuple(
            Range(b, n - b if s == -1 else s, 1) for b, s, n in zip(begin, size, shape, strict=True)
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(3, 4))
        super().check(graph)


@dataclass(frozen=True)
class StridedSlice(Ranges):
    """Indices of each dimension from begin to end, a stride apart, as in numpy.

    A mask has one bit for each entry of begin, end and strides.
    """

    begin_mask: int
    end_mask: int
    ellipsis_mask: int
    new_axis_mask: int
    shrink_axis_mask: int
    offset: bool

    name: ClassVar[str] = "STRIDED_SLICE"
    oracle: ClassVar[str] = "LiteRT (BUILTIN_REF) for new axes and ellipses"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant begin, end and strides; all masks"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("StridedSliceOptions")
        return cls(
            reader.index,
            reader.inputs,
            reader.outputs,
            begin_mask=options.BeginMask(),
            end_mask=options.EndMask(),
            ellipsis_mask=options.EllipsisMask(),
            new_axis_mask=options.NewAxisMask(),
            shrink_axis_mask=options.ShrinkAxisMask(),
            offset=bool(options.Offset()),
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(4, 5))
        super().check(graph)

    def _entries(self, graph: Graph) -> list[tuple[int | None, int]]:
        """Returns (dimension of the input, number of the entry) in the output's order.

        A new axis has no dimension; a dimension without an entry of its own, which is kept
        whole, has entry -1.
        """
        rank = len(self.input(graph, 0).shape)
        count = len(constant_integers(self, graph, 1, "begin"))
        for position, what in ((2, "end"), (3, "strides")):
            found = len(constant_integers(self, graph, position, what))
            if found != count:
                self.reject(graph, f"number of {what}", found, count)
        ellipsis = [i for i in range(count) if self.ellipsis_mask >> i & 1]
        if len(ellipsis) > 1:
            self.reject(graph, "more than one ellipsis", ellipsis)
        new = [i for i in range(count) if self.new_axis_mask >> i & 1 and i not in ellipsis]
        missing = rank - (count - len(ellipsis) - len(new))
        if missing < 0:
            self.reject(graph, "more indices than dimensions", count, rank)
        entries: list[tuple[int | None, int]] = []
        dimension = 0
        for i in range(count):
            if i in new:
                entries.append((None, i))
                continue
            wide = missing if i in ellipsis else 1
            for _ in range(wide):
                entries.append((dimension, -1 if i in ellipsis else i))
                dimension += 1
        entries += [(d, -1) for d in range(dimension, rank)]
        return entries

    def ranges(self, graph: Graph) -> tuple[Range, ...]:
        """Returns which indices are kept, per dimension of the input."""
        return tuple(
            self._range(graph, entry, self.input(graph, 0).shape[dimension])
            for dimension, entry in self._entries(graph)
            if dimension is not None
        )

    def _range(self, graph: Graph, entry: int, size: int) -> Range:
        """Clamps one entry as the oracle does (``StartForAxis``, ``StopForAxis``)."""
        if entry < 0:
            return Range(0, size, 1)
        begin = constant_integers(self, graph, 1, "begin")[entry]
        end = constant_integers(self, graph, 2, "end")[entry]
        stride = constant_integers(self, graph, 3, "strides")[entry]
        if stride == 0:
            self.reject(graph, "stride", 0, "not 0")
        low, high = (0, size) if stride > 0 else (-1, size - 1)
        start = begin + size if begin < 0 else begin
        if self.begin_mask >> entry & 1:
            start = low if stride > 0 else high
        start = min(max(start, low), high)
        if self.shrink_axis_mask >> entry & 1:
            return Range(start, 1, 1)
        if self.offset:
            end += start
        stop = end + size if end < 0 else end
        if self.end_mask >> entry & 1:
            stop = high if stride > 0 else low
        stop = min(max(stop, low), high)
        return Range(start, max(-((start - stop) // stride), 0), stride)

    def kept(self, graph: Graph) -> tuple[int, ...]:
        """Returns the output's shape: with new axes, without those that shrink."""
        ranges = self.ranges(graph)
        return tuple(
            1 if dimension is None else ranges[dimension].count
            for dimension, entry in self._entries(graph)
            if dimension is None or entry < 0 or not self.shrink_axis_mask >> entry & 1
        )


@dataclass(frozen=True)
class Reverse(Ranges):
    """A tensor with some dimensions in the opposite order."""

    name: ClassVar[str] = "REVERSE_V2"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant axes"

    def ranges(self, graph: Graph) -> tuple[Range, ...]:
        """Returns the indices of each dimension, from the last to the first where reversed."""
        shape = self.input(graph, 0).shape
        axes = {
            positive_axis(self, graph, axis, len(shape))
            for axis in constant_integers(self, graph, 1, "axes")
        }
        return tuple(
            Range(size - 1, size, -1) if axis in axes else Range(0, size, 1)
            for axis, size in enumerate(shape)
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        super().check(graph)


Slice.kernels = MOVE
StridedSlice.kernels = MOVE
Reverse.kernels = MOVE
