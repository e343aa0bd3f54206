"""TRANSPOSE, SPACE_TO_DEPTH and DEPTH_TO_SPACE."""

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
class Transpose(Movement):
    """A tensor with its dimensions in another order."""

    name: ClassVar[str] = "TRANSPOSE"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant order"

    def order(self, graph: Graph) -> tuple[int, ...]:
        """Returns for each dimension of the output the one of the input."""
        rank = len(self.input(graph, 0).shape)
        return tuple(
            positive_axis(self, graph, axis, rank)
            for axis in constant_integers(self, graph, 1, "order")
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        order = self.order(graph)
        if sorted(order) != list(range(len(x.shape))):
            self.reject(graph, "order", order, f"each of 0 to {len(x.shape) - 1} once")
        expect_shape(self, graph, y, tuple(x.shape[axis] for axis in order))
        self.check_copies(graph)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns the one copy."""
        source = View.of(self.input(graph, 0)).transposed(self.order(graph))
        return (Copy(source, View.of(self.output(graph))),)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.ascontiguousarray(np.transpose(np.asarray(inputs[0]), self.order(graph))),)


@dataclass(frozen=True)
class Blocks(Movement):
    """Pixels [N, H b, W b, C] laid out as channels [N, H, W, b b C], or the other way."""

    block: int

    options: ClassVar[str]

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options(cls.options)
        return cls(reader.index, reader.inputs, reader.outputs, options.BlockSize())

    def wide_and_deep(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the tensor with more pixels and the one with more channels."""
        raise AssertionError(f"{type(self).__name__} has no direction")

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        self.check_rank(graph, x, (4,))
        self.check_rank(graph, y, (4,))
        if self.block < 1:
            self.reject(graph, "block size", self.block, "1 or more")
        wide, deep = self.wide_and_deep(graph)
        batches, height, width, channels = wide.shape
        if height % self.block or width % self.block:
            self.reject(graph, f"size of '{wide.name}'", wide.shape, f"a multiple of {self.block}")
        area = self.block * self.block
        expected = (batches, height // self.block, width // self.block, channels * area)
        expect_shape(self, graph, deep, expected)
        self.check_copies(graph)

    def _blocks(self, wide: tuple[int, ...]) -> tuple[int, ...]:
        batches, height, width, channels = wide
        b = self.block
        return batches, height // b, width // b, b, b, channels


class DepthToSpace(Blocks):
    """Blocks of channels [N, H, W, b b C] laid out as pixels [N, H b, W b, C]."""

    name: ClassVar[str] = "DEPTH_TO_SPACE"
    options: ClassVar[str] = "DepthToSpaceOptions"

    def wide_and_deep(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the output and the input."""
        return self.output(graph), self.input(graph, 0)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns the one copy."""
        x, y = self.input(graph, 0), self.output(graph)
        source = View.of(x, self._blocks(y.shape)).transposed((0, 1, 3, 2, 4, 5))
        return (Copy(source, View.of(y, source.shape)),)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        shape = self.output(graph).shape
        blocks = np.asarray(inputs[0]).reshape(self._blocks(shape))
        return (blocks.transpose(0, 1, 3, 2, 4, 5).reshape(shape),)


class SpaceToDepth(Blocks):
    """Blocks of pixels [N, H b, W b, C] laid out as channels [N, H, W, b b C]."""

    name: ClassVar[str] = "SPACE_TO_DEPTH"
    options: ClassVar[str] = "SpaceToDepthOptions"

    def wide_and_deep(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the input and the output."""
        return self.input(graph, 0), self.output(graph)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns the one copy."""
        x, y = self.input(graph, 0), self.output(graph)
        n, h, w, row, column, c = self._blocks(x.shape)
        source = View.of(x, (n, h, row, w, column, c)).transposed((0, 1, 3, 2, 4, 5))
        return (Copy(source, View.of(y, source.shape)),)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        value = np.asarray(inputs[0])
        n, h, w, row, column, c = self._blocks(value.shape)
        blocks = value.reshape(n, h, row, w, column, c).transpose(0, 1, 3, 2, 4, 5)
        return (blocks.reshape(self.output(graph).shape),)


Transpose.kernels = MOVE
DepthToSpace.kernels = MOVE
SpaceToDepth.kernels = MOVE
