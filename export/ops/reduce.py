"""MEAN, SUM, REDUCE_MAX and REDUCE_MIN: one value for all along some dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.fixed_point import (
    INT32_MAX,
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlap, Overlaps, as_int64
from edgekiln.export.ops.movement import positive_axis
from edgekiln.export.ops.types import SUFFIX, bounds, first_input_is

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

Runs = tuple[int, int, int, int, int]
"""Sizes of the merged dimensions: kept, reduced, kept, reduced, kept."""


@dataclass(frozen=True)
class Reduction(Op):
    """One value for all elements along some dimensions."""

    keep_dims: bool

    variants: ClassVar[str] = "int8, int16, float32; constant axes, in two groups of neighbours"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("ReducerOptions")
        return cls(reader.index, reader.inputs, reader.outputs, bool(options.KeepDims()))

    def axes(self, graph: Graph) -> frozenset[int]:
        """Returns the reduced dimensions."""
        rank = len(self.input(graph, 0).shape)
        values = self.input(graph, 1).value.reshape(-1).tolist()
        return frozenset(positive_axis(self, graph, int(axis), rank) for axis in values)

    def runs(self, graph: Graph) -> Runs:
        """Merges neighbours that are all reduced, or all kept."""
        axes = self.axes(graph)
        runs = [(False, 1)]
        for axis, size in enumerate(self.input(graph, 0).shape):
            reduced = axis in axes
            if size == 1:
                continue
            if runs[-1][0] == reduced:
                runs[-1] = (reduced, runs[-1][1] * size)
            else:
                runs.append((reduced, size))
        sizes = [size for _, size in runs]
        if len(sizes) > 5:
            self.unsupported(graph, "axes in more than two groups", sorted(axes))
        outer, first, middle, second, inner = sizes + [1] * (5 - len(sizes))
        return outer, first, middle, second, inner

    def count(self, graph: Graph) -> int:
        """Returns how many elements lead to one value."""
        _, first, _, second, _ = self.runs(graph)
        return first * second

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, x, DType.INT8, DType.INT16, DType.FLOAT32)
        self.check_type(graph, y, DType.INT8, DType.INT16, DType.FLOAT32)
        self.check_same_type(graph, x, y)
        if self.constant(graph, 1, "axes").dtype is not DType.INT32:
            self.reject(graph, "type of the axes", self.input(graph, 1).dtype.value, "int32")
        outer, _, middle, _, inner = self.runs(graph)
        if x.elements == 0 or y.elements != outer * middle * inner:
            self.reject(graph, f"shape of '{y.name}'", y.shape, f"{outer * middle * inner} values")

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        y = self.output(graph)
        # [values, elements of each], both in memory order.
        blocks = np.asarray(inputs[0]).reshape(self.runs(graph)).transpose(0, 2, 4, 1, 3)
        values = self.reduce(graph, blocks.reshape(y.elements, self.count(graph)))
        return (values.astype(y.dtype.value).reshape(y.shape),)

    def reduce(self, graph: Graph, blocks: Array) -> Array:
        """Computes one value for each row of ``[values, elements]``."""
        raise AssertionError(f"{type(self).__name__} has no definition")

    def scalars(self, graph: Graph) -> dict[str, int | float]:
        """Returns what the kernel needs to know besides the sizes."""
        raise AssertionError(f"{type(self).__name__} has no kernel")


class Sum(Reduction):
    """The sum, at the scale of the output."""

    name: ClassVar[str] = "SUM"

    def divisor(self, graph: Graph) -> int:
        """Returns what the sum is divided by."""
        return 1

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        x = self.input(graph, 0)
        if x.dtype is DType.FLOAT32:
            return
        low, high = bounds(x.dtype)
        largest = max(high, -low) + max(high - x.q.zero_point, x.q.zero_point - low)
        if largest * self.count(graph) > INT32_MAX:
            worst = largest * self.count(graph)
            self.unsupported(graph, "the sum could overflow 32 bits", worst, INT32_MAX)
        if self.multiplier(graph).shift > 30:
            self.unsupported(graph, "the output's scale is too small", self.output(graph).q.scale)

    def multiplier(self, graph: Graph) -> Multiplier:
        """Returns the scale, with the division by the count in it (``QuantizedMeanOrSum``)."""
        m = quantize_multiplier(self.input(graph, 0).q.scale / self.output(graph).q.scale)
        divisor = self.divisor(graph)
        shift = min(divisor.bit_length() - 1, 32, 31 + m.shift)
        return Multiplier((m.multiplier << shift) // divisor, m.shift - shift)

    def reduce(self, graph: Graph, blocks: Array) -> Array:
        """Computes the output from the exact sum; for float32 it is added up in memory order."""
        x, y = self.input(graph, 0), self.output(graph)
        if y.dtype is DType.FLOAT32:
            total = np.add.accumulate(blocks, axis=1)[:, -1]
            return np.asarray(total / np.float32(self.divisor(graph)))
        sums = as_int64(blocks).sum(axis=1) - x.q.zero_point * blocks.shape[1]
        m = self.multiplier(graph)
        scaled = multiply_by_quantized_multiplier(sums, m.multiplier, m.shift) + y.q.zero_point
        return np.asarray(np.clip(scaled, *bounds(y.dtype)))

    def scalars(self, graph: Graph) -> dict[str, int | float]:
        """Returns the offset of the sum and the scale."""
        x, y = self.input(graph, 0), self.output(graph)
        if y.dtype is DType.FLOAT32:
            return {"divisor": float(self.divisor(graph))}
        m = self.multiplier(graph)
        return {
            "sum_offset": -self.count(graph) * x.q.zero_point,
            "multiplier": m.multiplier,
            "shift": m.shift,
            "output_zero_point": y.q.zero_point,
        }


class Mean(Sum):
    """The average, at the scale of the output."""

    name: ClassVar[str] = "MEAN"

    def divisor(self, graph: Graph) -> int:
        """Returns what the sum is divided by."""
        return self.count(graph)


class ReduceMax(Reduction):
    """The largest element. NaN counts only where there is nothing else."""

    name: ClassVar[str] = "REDUCE_MAX"
    minimum: ClassVar[bool] = False

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        if self.output(graph).dtype is not DType.FLOAT32:
            self.check_same_quantization(graph, self.input(graph, 0), self.output(graph))

    def reduce(self, graph: Graph, blocks: Array) -> Array:
        """Computes the output, beginning with the lowest or highest finite number."""
        info = np.finfo(blocks.dtype) if blocks.dtype.kind == "f" else np.iinfo(blocks.dtype)
        if self.minimum:
            return np.asarray(np.fmin.reduce(blocks, axis=1, initial=info.max))
        return np.asarray(np.fmax.reduce(blocks, axis=1, initial=info.min))

    def scalars(self, graph: Graph) -> dict[str, int | float]:
        """Returns the direction."""
        return {"minimum": int(self.minimum)}


class ReduceMin(ReduceMax):
    """The smallest element. NaN counts only where there is nothing else."""

    name: ClassVar[str] = "REDUCE_MIN"
    minimum: ClassVar[bool] = True


def _lower(op: Reduction, graph: Graph, kernel: str) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    names = ("outer", "reduced_0", "middle", "reduced_1", "inner")
    scalars = dict(zip(names, op.runs(graph), strict=True)) | op.scalars(graph)
    name = f"{kernel}_{SUFFIX[x.dtype]}"
    specialise = ("minimum",) if "minimum" in scalars else ()
    call = KernelCall(name, f"{name}.h", scalars, {}, (x.index,), y.index, specialise=specialise)
    return (call,)


def lower_sum(op: Sum, graph: Graph) -> tuple[KernelCall, ...]:
    """Lowers to the kernel for any core."""
    return _lower(op, graph, "ek_sum")


def _lower_extreme(op: ReduceMax, graph: Graph) -> tuple[KernelCall, ...]:
    return _lower(op, graph, "ek_reduce_max")


def _cost(op: Reduction, graph: Graph) -> float:
    return 5.0 * op.input(graph, 0).elements + 30.0 * op.output(graph).elements


def overlap_reduction(op: Reduction, graph: Graph) -> Overlaps:
    """Proves that the output may begin where the input does.

    With sizes (O, R, M, S, I), output (o, m, i) is element (o M + m) I + i, and is written when
    all that leads to it was read. What is read later begins at element (o R M + m') S I + i' of
    the input, for a place (m', i') after (m, i), or in block o + 1: never before that element.
    """
    return {0: Overlap(0)}


SUM = tuple(
    Kernel(
        f"sum_{SUFFIX[t]}", lower_sum, _cost, accepts=first_input_is(t), overlap=overlap_reduction
    )
    for t in (DType.INT8, DType.INT16, DType.FLOAT32)
)
EXTREME = tuple(
    Kernel(
        f"reduce_max_{SUFFIX[t]}",
        _lower_extreme,
        _cost,
        accepts=first_input_is(t),
        overlap=overlap_reduction,
    )
    for t in (DType.INT8, DType.INT16, DType.FLOAT32)
)
Sum.kernels = SUM
Mean.kernels = SUM
ReduceMax.kernels = EXTREME
ReduceMin.kernels = EXTREME
