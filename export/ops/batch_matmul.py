"""BATCH_MATMUL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.fixed_point import INT32_MAX
from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.activation import Activation
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, as_int64
from edgekiln.export.ops.convolution import (
    Requantization,
    check_finite,
    check_wide_shifts,
    per_channel_requantization,
    requantize,
)
from edgekiln.export.ops.types import SUFFIX, bounds

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_BATCH_DIMENSIONS = 3


@dataclass(frozen=True)
class _Operand:
    """A batch of matrices as the kernel goes through it.

    Attributes:
        batches: Sizes of the leading dimensions, ``_BATCH_DIMENSIONS`` of them.
        outer: Rows of the left, columns of the right operand.
        depth: The dimension that is summed over.
        outer_step: Elements from one row or column to the next.
        depth_step: Elements from one summand to the next.
    """

    batches: tuple[int, ...]
    outer: int
    depth: int
    outer_step: int
    depth_step: int

    def batch_steps(self) -> tuple[int, ...]:
        """Returns the elements between neighbours per leading dimension; 0 repeats a matrix."""
        matrix = self.outer * self.depth
        return tuple(
            0 if size == 1 else matrix * math.prod(self.batches[i + 1 :])
            for i, size in enumerate(self.batches)
        )


@dataclass(frozen=True)
class BatchMatmul(Op):
    """Products ``[..., n, d]`` times ``[..., d, m]``; leading dimensions of 1 are repeated.

    ``adj_x`` and ``adj_y`` tell that the last two dimensions of an operand are swapped.
    """

    adj_x: bool
    adj_y: bool

    name: ClassVar[str] = "BATCH_MATMUL"
    variants: ClassVar[str] = "int8, int16, float32; broadcasting, either operand transposed"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("BatchMatMulOptions")
        return cls(
            reader.index,
            reader.inputs,
            reader.outputs,
            adj_x=bool(options.AdjX()),
            adj_y=bool(options.AdjY()),
        )

    def operands(self, graph: Graph) -> tuple[_Operand, _Operand]:
        """Returns the left and the right operand."""
        return (
            _operand(self.input(graph, 0), outer_is_first=not self.adj_x),
            _operand(self.input(graph, 1), outer_is_first=self.adj_y),
        )

    def requantization(self, graph: Graph) -> Requantization:
        """Returns the multiplier of a quantized product."""
        x, w, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        return per_channel_requantization(x, w, y, wide=x.dtype is DType.INT16)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, w, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        self.check_type(graph, x, DType.INT8, DType.INT16, DType.FLOAT32)
        for tensor in (w, y):
            self.check_type(graph, tensor, x.dtype)
        for tensor in (x, w):
            self.check_rank(graph, tensor, (2, 3, 4, 5))
            if tensor.is_constant:
                check_finite(self, graph, tensor)
        left, right = self.operands(graph)
        if left.depth != right.depth or min(left.depth, left.outer, right.outer) < 1:
            self.reject(graph, "matrices do not go together", w.shape, x.shape)
        if any(
            a != b and 1 not in (a, b) for a, b in zip(left.batches, right.batches, strict=True)
        ):
            self.reject(graph, "leading dimensions do not go together", w.shape, x.shape)
        elements = math.prod(self._batches(graph)) * left.outer * right.outer
        if y.elements != elements:
            self.reject(graph, f"shape of '{y.name}'", y.shape, f"{elements} elements")
        if x.dtype is not DType.FLOAT32:
            self._check_quantized(graph, left.depth)

    def _check_quantized(self, graph: Graph, depth: int) -> None:
        tensors = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        wide = tensors[0].dtype is DType.INT16
        for tensor in tensors:
            if tensor.q.per_channel:
                self.unsupported(graph, f"'{tensor.name}' is quantized per channel")
            if wide and tensor.q.zero_point:
                self.unsupported(graph, "zero point of an int16 tensor", allowed=0)
        worst = depth
        for tensor in tensors[:2]:
            low, high = bounds(tensor.dtype)
            worst *= max(high - tensor.q.zero_point, tensor.q.zero_point - low)
        if worst > ((1 << 47) - 1 if wide else INT32_MAX):
            self.unsupported(graph, "the accumulator could overflow", worst)
        requant = self.requantization(graph)
        check_wide_shifts(self, graph, requant)
        if requant.shifts[0] > 30:
            self.unsupported(graph, "the output's scale is too small", tensors[2].q.scale)

    def _batches(self, graph: Graph) -> tuple[int, ...]:
        left, right = self.operands(graph)
        return tuple(max(a, b) for a, b in zip(left.batches, right.batches, strict=True))

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: exact sums, then rounded, or float32 sums in order."""
        x, w, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        left, right = (np.asarray(value) for value in inputs)
        left = np.swapaxes(left, -1, -2) if self.adj_x else left
        right = np.swapaxes(right, -1, -2) if self.adj_y else right
        if x.dtype is not DType.FLOAT32:
            left, right = as_int64(left) - x.q.zero_point, as_int64(right) - w.q.zero_point
        rows, depth, columns = left.shape[-2], left.shape[-1], right.shape[-1]
        total = np.zeros((*self._batches(graph), rows, columns), left.dtype)
        for k in range(depth):
            total += left[..., :, k, None] * right[..., None, k, :]
        total = total.reshape(y.shape)
        if x.dtype is DType.FLOAT32:
            return (total,)
        return (requantize(y, self.requantization(graph), Activation.NONE, total),)

    def macs(self, graph: Graph) -> int:
        """Counts one step per output and summand."""
        return self.output(graph).elements * self.operands(graph)[0].depth


def _operand(tensor: Tensor, outer_is_first: bool) -> _Operand:
    *batches, first, second = tensor.shape
    padded = (1,) * (_BATCH_DIMENSIONS - len(batches)) + tuple(batches)
    if outer_is_first:
        return _Operand(padded, first, second, second, 1)
    return _Operand(padded, second, first, 1, second)


def _lower(op: BatchMatmul, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    left, right = op.operands(graph)
    scalars: dict[str, int | float] = {
        "rows": left.outer,
        "columns": right.outer,
        "depth": left.depth,
        "row_step": left.outer_step,
        "left_step": left.depth_step,
        "column_step": right.outer_step,
        "right_step": right.depth_step,
    }
    sizes = (op._batches(graph), left.batch_steps(), right.batch_steps())
    for i, (batches, left_step, right_step) in enumerate(zip(*sizes, strict=True)):
        scalars |= {
            f"batches_{i}": batches,
            f"left_batch_step_{i}": left_step,
            f"right_batch_step_{i}": right_step,
        }
    if x.dtype is not DType.FLOAT32:
        tables = op.requantization(graph).as_c_arrays()
        scalars |= {
            "multiplier": int(tables["multiplier"][0]),
            "shift": int(tables["shift"][0]),
        }
    if x.dtype is DType.INT8:
        scalars |= {
            "left_offset": -x.q.zero_point,
            "right_offset": -op.input(graph, 1).q.zero_point,
            "output_zero_point": y.q.zero_point,
        }
    call = KernelCall(
        f"ek_batch_matmul_{SUFFIX[x.dtype]}",
        "ek_batch_matmul.h",
        scalars,
        {},
        op.inputs,
        y.index,
        specialise=("left_step", "right_step"),
    )
    return (call,)


def _cost(op: BatchMatmul, graph: Graph) -> float:
    return 8.0 * op.macs(graph) + 30.0 * op.output(graph).elements


BatchMatmul.kernels = (Kernel("batch_matmul", _lower, _cost),)
