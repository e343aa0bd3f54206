"""GATHER and GATHER_ND."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, as_int64
from edgekiln.export.ops.movement import ALL_TYPES, check_moved, expect_shape, positive_axis

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


def check_indices(op: Op, graph: Graph, limits: Array | int) -> None:
    """Checks the type of the indices and, where they are constant, their range.

    Args:
        op: The operator; its second input holds the indices.
        graph: Its graph.
        limits: How many indices there are, in the shape of the indices' last dimension.
    """
    indices = op.input(graph, 1)
    if indices.dtype is not DType.INT32:
        op.unsupported(graph, "type of the indices", indices.dtype.value, "int32")
    if indices.is_constant and np.any((indices.value < 0) | (indices.value >= limits)):
        op.reject(graph, "index out of range", indices.value.reshape(-1).tolist()[:8], limits)


@dataclass(frozen=True)
class Gather(Op):
    """Slices along one dimension, in the order of the indices.

    A computed index that is out of range stands for the nearest one that is not.
    """

    axis: int
    batch_dims: int

    name: ClassVar[str] = "GATHER"
    variants: ClassVar[str] = f"{ALL_TYPES}; int32 indices, constant or computed; batch dimensions"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("GatherOptions")
        axis, batch_dims = options.Axis(), options.BatchDims()
        return cls(reader.index, reader.inputs, reader.outputs, axis, batch_dims)

    def axis_and_batch(self, graph: Graph) -> tuple[int, int]:
        """Returns the dimension that is gathered from, and how many before it are batches."""
        x, indices = self.input(graph, 0), self.input(graph, 1)
        axis = positive_axis(self, graph, self.axis, len(x.shape))
        batch = self.batch_dims + (len(indices.shape) if self.batch_dims < 0 else 0)
        if not 0 <= batch <= min(axis, len(indices.shape)):
            allowed = f"0 to {min(axis, len(indices.shape))}"
            self.reject(graph, "number of batch dimensions", self.batch_dims, allowed)
        return axis, batch

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, indices, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        check_moved(self, graph, x, y)
        axis, batch = self.axis_and_batch(graph)
        if x.shape[:batch] != indices.shape[:batch]:
            self.reject(graph, "batches of the indices", indices.shape[:batch], x.shape[:batch])
        gathered = (*x.shape[:axis], *indices.shape[batch:], *x.shape[axis + 1 :])
        expect_shape(self, graph, y, gathered)
        check_indices(self, graph, x.shape[axis])

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        x, y = np.asarray(inputs[0]), self.output(graph)
        axis, batch = self.axis_and_batch(graph)
        indices = np.clip(as_int64(inputs[1]), 0, x.shape[axis] - 1)
        batches = math.prod(x.shape[:batch])
        rows = x.reshape(batches, *x.shape[batch:])
        chosen = indices.reshape(batches, -1)
        taken = [np.take(r, i, axis=axis - batch) for r, i in zip(rows, chosen, strict=True)]
        return (np.stack(taken).reshape(y.shape),)


@dataclass(frozen=True)
class GatherNd(Op):
    """Slices at tuples of indices into the first dimensions.

    A computed index that is out of range stands for the nearest one that is not.
    """

    name: ClassVar[str] = "GATHER_ND"
    variants: ClassVar[str] = f"{ALL_TYPES}; int32 indices, constant or computed"

    def depth(self, graph: Graph) -> int:
        """Returns the length of a tuple."""
        x, indices = self.input(graph, 0), self.input(graph, 1)
        depth = indices.shape[-1] if indices.shape else 0
        if not 1 <= depth <= len(x.shape):
            self.reject(graph, "indices per slice", depth, f"1 to {len(x.shape)}")
        return depth

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, indices, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        check_moved(self, graph, x, y)
        depth = self.depth(graph)
        expect_shape(self, graph, y, (*indices.shape[:-1], *x.shape[depth:]))
        check_indices(self, graph, np.array(x.shape[:depth]))

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        x, depth = np.asarray(inputs[0]), self.depth(graph)
        indices = np.clip(as_int64(inputs[1]), 0, np.array(x.shape[:depth]) - 1)
        return (x[tuple(np.moveaxis(indices, -1, 0))].reshape(self.output(graph).shape),)


def _lower_gather(op: Gather, graph: Graph) -> tuple[KernelCall, ...]:
    x, indices, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    axis, batch = op.axis_and_batch(graph)
    scalars = {
        "batches": math.prod(x.shape[:batch]),
        "outer": math.prod(x.shape[batch:axis]),
        "axis_size": x.shape[axis],
        "slice_bytes": math.prod(x.shape[axis + 1 :]) * x.dtype.bytes,
        "indices_per_batch": math.prod(indices.shape[batch:]),
    }
    inputs = (x.index, indices.index)
    return (KernelCall("ek_gather", "ek_gather.h", scalars, {}, inputs, y.index, bytewise=True),)


def _lower_gather_nd(op: GatherNd, graph: Graph) -> tuple[KernelCall, ...]:
    x, indices, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    depth = op.depth(graph)
    scalars = {
        "tuples": indices.elements // depth,
        "depth": depth,
        "slice_bytes": math.prod(x.shape[depth:]) * x.dtype.bytes,
    }
    arrays = {"sizes": np.array(x.shape[:depth], np.int32)}
    inputs = (x.index, indices.index)
    return (
        KernelCall(
            "ek_gather_nd", "ek_gather_nd.h", scalars, arrays, inputs, y.index, bytewise=True
        ),
    )


def _cost(op: Op, graph: Graph) -> float:
    return 20.0 * op.input(graph, 1).elements + op.output(graph).bytes / 4


Gather.kernels = (Kernel("gather", _lower_gather, _cost),)
GatherNd.kernels = (Kernel("gather_nd", _lower_gather_nd, _cost),)
