"""SPACE_TO_BATCH_ND and BATCH_TO_SPACE_ND."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op
from edgekiln.export.ops.movement import ALL_TYPES, check_moved, constant_integers, expect_shape


@dataclass(frozen=True)
class Geometry:
    """The sizes of both tensors as images, and how they lie to each other.

    Attributes:
        batches: Of the wide image.
        block: Rows and columns that go to batches of their own.
        before: Rows and columns of the wide image that the wide tensor lacks at its beginning.
        after: The same at its end.
        wide: Height and width of the wide tensor.
        deep: Height and width of the tensor with more batches.
        channels: Elements of a pixel.
    """

    batches: int
    block: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    wide: tuple[int, int]
    deep: tuple[int, int]
    channels: int


def _pair(values: Sequence[int], default: int) -> tuple[int, int]:
    """Returns one or two values as two."""
    return values[0], values[1] if len(values) > 1 else default


@dataclass(frozen=True)
class SpaceBatch(Op):
    """What both have in common: a wide tensor, one with more batches, blocks and borders.

    A tensor of three dimensions is an image of width 1.
    """

    variants: ClassVar[str] = f"{ALL_TYPES}; 3 or 4 dimensions; constant blocks and borders"

    def wide_and_deep(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the tensor with more pixels and the one with more batches."""
        raise AssertionError(f"{type(self).__name__} has no direction")

    def geometry(self, graph: Graph) -> Geometry:
        """Returns the sizes; to be called when all is checked but that they agree."""
        wide, deep = self.wide_and_deep(graph)
        spatial = len(wide.shape) - 2
        block = constant_integers(self, graph, 1, "block shape")
        borders = constant_integers(self, graph, 2, "borders")
        if len(block) != spatial or len(borders) != 2 * spatial:
            self.reject(graph, "sizes of block and borders", (block, borders), spatial)
        if min(block) < 1 or min(borders) < 0:
            self.reject(graph, "block and borders", (block, borders), "1 or more, 0 or more")
        return Geometry(
            wide.shape[0],
            _pair(block, 1),
            _pair(borders[::2], 0),
            _pair(borders[1::2], 0),
            _pair(wide.shape[1:-1], 1),
            _pair(deep.shape[1:-1], 1),
            wide.shape[-1],
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(3, 4))
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        self.check_rank(graph, x, (3, 4))
        self.check_rank(graph, y, (len(x.shape),))
        g = self.geometry(graph)
        deep = self.wide_and_deep(graph)[1]
        sizes = []
        for axis in range(len(x.shape) - 2):
            padded = g.wide[axis] + g.before[axis] + g.after[axis]
            if padded % g.block[axis]:
                self.reject(graph, f"size over axis {axis + 1}", padded, f"n * {g.block[axis]}")
            sizes.append(padded // g.block[axis])
        batches = g.batches * g.block[0] * g.block[1]
        expect_shape(self, graph, deep, (batches, *sizes, g.channels))


class SpaceToBatchNd(SpaceBatch):
    """Every block-th pixel, of rows and columns, in a batch of its own; zeros around.

    For int8 zero is the output's zero point.
    """

    name: ClassVar[str] = "SPACE_TO_BATCH_ND"

    def wide_and_deep(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the input and the output."""
        return self.input(graph, 0), self.output(graph)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        y = self.output(graph)
        if y.dtype in (DType.INT8, DType.UINT8):
            self.check_type(graph, y, y.dtype)

    def value(self, graph: Graph) -> int:
        """Returns the code that stands around the input."""
        y = self.output(graph)
        return y.q.zero_point if y.dtype in (DType.INT8, DType.UINT8) else 0

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        g, y = self.geometry(graph), self.output(graph)
        image = np.asarray(inputs[0]).reshape(g.batches, *g.wide, g.channels)
        borders = ((0, 0), *zip(g.before, g.after, strict=True), (0, 0))
        padded = np.pad(image, borders, constant_values=self.value(graph))
        (height, width), (rows, columns) = g.deep, g.block
        blocks = padded.reshape(g.batches, height, rows, width, columns, g.channels)
        return (blocks.transpose(2, 4, 0, 1, 3, 5).reshape(y.shape),)


class BatchToSpaceNd(SpaceBatch):
    """Batches laid out as every block-th pixel of rows and columns; borders are cut off."""

    name: ClassVar[str] = "BATCH_TO_SPACE_ND"

    def wide_and_deep(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Returns the output and the input."""
        return self.output(graph), self.input(graph, 0)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        g, y = self.geometry(graph), self.output(graph)
        (height, width), (rows, columns) = g.deep, g.block
        blocks = np.asarray(inputs[0]).reshape(rows, columns, g.batches, height, width, g.channels)
        image = blocks.transpose(2, 3, 0, 4, 1, 5)
        image = image.reshape(g.batches, height * rows, width * columns, g.channels)
        (top, left), (out_height, out_width) = g.before, g.wide
        cut = image[:, top : top + out_height, left : left + out_width]
        return (cut.reshape(y.shape),)


def _scalars(op: SpaceBatch, graph: Graph, sizes: tuple[int, int, int, int]) -> dict[str, int]:
    g = op.geometry(graph)
    names = ("input_height", "input_width", "output_height", "output_width")
    return {
        "batches": g.batches,
        "block_height": g.block[0],
        "block_width": g.block[1],
        **dict(zip(names, sizes, strict=True)),
        "pixel_bytes": g.channels * op.output(graph).dtype.bytes,
        "top": g.before[0],
        "left": g.before[1],
    }


def _lower_space_to_batch(op: SpaceToBatchNd, graph: Graph) -> tuple[KernelCall, ...]:
    g = op.geometry(graph)
    scalars = _scalars(op, graph, (*g.wide, *g.deep)) | {"value": op.value(graph)}
    return (_call(op, graph, "ek_space_to_batch", scalars),)


def _lower_batch_to_space(op: BatchToSpaceNd, graph: Graph) -> tuple[KernelCall, ...]:
    g = op.geometry(graph)
    return (_call(op, graph, "ek_batch_to_space", _scalars(op, graph, (*g.deep, *g.wide))),)


def _call(op: SpaceBatch, graph: Graph, kernel: str, scalars: dict[str, int]) -> KernelCall:
    x, y = op.input(graph, 0), op.output(graph)
    header = "ek_space_to_batch.h"
    return KernelCall(kernel, header, scalars, {}, (x.index,), y.index, bytewise=True)


def _cost(op: SpaceBatch, graph: Graph) -> float:
    y = op.output(graph)
    return 30.0 * y.elements / y.shape[-1] + y.bytes / 4


SpaceToBatchNd.kernels = (Kernel("space_to_batch", _lower_space_to_batch, _cost),)
BatchToSpaceNd.kernels = (Kernel("batch_to_space", _lower_batch_to_space, _cost),)
