"""CUMSUM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.fixed_point import (
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    wrap_int32,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import (
    Array,
    Kernel,
    KernelCall,
    Op,
    Overlaps,
    as_int64,
    overlap_in_place,
)
from edgekiln.export.ops.movement import constant_integers, positive_axis
from edgekiln.export.ops.types import SUFFIX, first_input_is

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_SUM_BITS = 19
"""Sums of codes are held times two to the power of this, as in the oracle."""


@dataclass(frozen=True)
class CumSum(Op):
    """The sum of all elements up to each one, along one dimension.

    For int8 the sum begins with minus the input's zero point, as in the oracle, and wraps at
    32 bits.
    """

    exclusive: bool
    backwards: bool

    name: ClassVar[str] = "CUMSUM"
    variants: ClassVar[str] = "int8, float32; constant axis; exclusive, reverse"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("CumsumOptions")
        exclusive, backwards = bool(options.Exclusive()), bool(options.Reverse())
        return cls(reader.index, reader.inputs, reader.outputs, exclusive, backwards)

    def axis(self, graph: Graph) -> int:
        """Returns the dimension that is summed along."""
        axis = constant_integers(self, graph, 1, "axis")
        if len(axis) != 1:
            self.reject(graph, "number of axes", len(axis), 1)
        return positive_axis(self, graph, axis[0], len(self.input(graph, 0).shape))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, x, DType.INT8, DType.FLOAT32)
        self.check_type(graph, y, DType.INT8, DType.FLOAT32)
        self.check_same_type(graph, x, y)
        self.check_same_shape(graph, x, y)
        self.axis(graph)
        if x.dtype is DType.INT8 and self.multiplier(graph).shift > 0:
            self.unsupported(graph, "the output's scale is too small", y.q.scale)

    def multiplier(self, graph: Graph) -> Multiplier:
        """Returns the scale from a sum to the output."""
        ratio = self.input(graph, 0).q.scale / self.output(graph).q.scale
        return quantize_multiplier(ratio / (1 << _SUM_BITS))

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        y = self.output(graph)
        rows = np.moveaxis(np.asarray(inputs[0]), self.axis(graph), 0)
        rows = rows[::-1] if self.backwards else rows
        summed = self._sums_f32(rows) if y.dtype is DType.FLOAT32 else self._sums(graph, rows)
        summed = summed[::-1] if self.backwards else summed
        return (np.ascontiguousarray(np.moveaxis(summed, 0, self.axis(graph))),)

    def _sums(self, graph: Graph, rows: Array) -> Array:
        x, y = self.input(graph, 0), self.output(graph)
        terms = as_int64(rows) - x.q.zero_point
        totals = terms.cumsum(axis=0) - x.q.zero_point
        if self.exclusive:
            totals = totals - terms
        m = self.multiplier(graph)
        sums = wrap_int32(totals << _SUM_BITS)
        scaled = multiply_by_quantized_multiplier(sums, m.multiplier, m.shift) + y.q.zero_point
        return np.asarray(np.clip(scaled, -128, 127).astype(np.int8))

    def _sums_f32(self, rows: Array) -> Array:
        totals = np.add.accumulate(rows, axis=0)
        if not self.exclusive:
            return totals
        return np.concatenate([np.zeros_like(rows[:1]), totals[:-1]])


def _lower(op: CumSum, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    axis = op.axis(graph)
    scalars = {
        "outer": math.prod(x.shape[:axis]),
        "axis_size": x.shape[axis],
        "inner": math.prod(x.shape[axis + 1 :]),
        "backwards": int(op.backwards),
        "exclusive": int(op.exclusive),
    }
    if x.dtype is DType.INT8:
        m = op.multiplier(graph)
        scalars |= {
            "input_offset": -x.q.zero_point,
            "multiplier": m.multiplier,
            "shift": m.shift,
            "output_zero_point": y.q.zero_point,
        }
    name = f"ek_cumsum_{SUFFIX[x.dtype]}"
    return (KernelCall(name, f"{name}.h", scalars, {}, (x.index,), y.index),)


def _cost(op: CumSum, graph: Graph) -> float:
    return 20.0 * op.output(graph).elements


def _overlap(op: CumSum, graph: Graph) -> Overlaps:
    """Along the last dimension and forwards, the kernel goes through memory in its order."""
    last = op.axis(graph) == len(op.input(graph, 0).shape) - 1
    return overlap_in_place(op, graph) if last and not op.backwards else {}


CumSum.kernels = tuple(
    Kernel(
        f"cumsum_{SUFFIX[dtype]}",
        _lower,
        _cost,
        accepts=first_input_is(dtype),
        overlap=_overlap,
    )
    for dtype in (DType.INT8, DType.FLOAT32)
)
