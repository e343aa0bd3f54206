"""ABS, NEG, SQRT, RSQRT, EXP, LOG, SIN, COS, SQUARE, ELU and HARD_SWISH, and roundings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from edgekiln.export.fixed_point import (
    Int64Array,
    Multiplier,
    doubling_high_mul,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    rounding_divide_by_pot,
    wrap_int32,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall
from edgekiln.export.ops.broadcasting import overlap_elementwise
from edgekiln.export.ops.elementwise import (
    Elementwise,
    real_kernel,
    table_kernel,
    table_through_f32,
)
from edgekiln.export.ops.real_functions import cos_f32, exp_f32, expm1_f32, log_f32, sin_f32
from edgekiln.export.ops.types import bounds, first_input_is

_INT8_AND_REAL = (DType.INT8, DType.FLOAT32)


class Abs(Elementwise):
    """The size of a number."""

    name: ClassVar[str] = "ABS"
    variants: ClassVar[str] = "int8, int16, float32"
    types: ClassVar[tuple[DType, ...]] = (DType.INT8, DType.INT16, DType.FLOAT32)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        x, y = self.input(graph, 0), self.output(graph)
        if x.dtype is DType.FLOAT32:
            return
        if x.dtype is DType.INT16 and (x.q.zero_point or y.q.zero_point):
            self.unsupported(graph, "zero point of an int16 tensor", allowed=0)
        if self.multiplier(graph).shift > 30:
            self.unsupported(graph, "the output's scale is too small", y.q.scale)

    def multiplier(self, graph: Graph) -> Multiplier:
        """Returns the ratio of the scales."""
        return quantize_multiplier(self.input(graph, 0).q.scale / self.output(graph).q.scale)

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes."""
        m, y = self.multiplier(graph), self.output(graph)
        size = np.abs(codes - self.input(graph, 0).q.zero_point)
        scaled = multiply_by_quantized_multiplier(size, m.multiplier, m.shift)
        return np.clip(wrap_int32(scaled + y.q.zero_point), *bounds(y.dtype))

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.abs(values)


class Real(Elementwise):
    """A function that the oracle has for float32 alone."""

    variants: ClassVar[str] = "float32"
    types: ClassVar[tuple[DType, ...]] = (DType.FLOAT32,)


class Neg(Real):
    """The number with the other sign."""

    name: ClassVar[str] = "NEG"

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return -values


class Square(Real):
    """The square of a number."""

    name: ClassVar[str] = "SQUARE"

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return values * values


class Sqrt(Real):
    """The square root, correctly rounded."""

    name: ClassVar[str] = "SQRT"

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.sqrt(values)


class Sin(Real):
    """The sine."""

    name: ClassVar[str] = "SIN"

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return sin_f32(values)


class Cos(Real):
    """The cosine."""

    name: ClassVar[str] = "COS"

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return cos_f32(values)


class Floor(Real):
    """The next smaller integer."""

    name: ClassVar[str] = "FLOOR"

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.floor(values)


class Ceil(Real):
    """The next larger integer."""

    name: ClassVar[str] = "CEIL"

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.ceil(values)


class Round(Real):
    """The nearest integer, halves to even."""

    name: ClassVar[str] = "ROUND"

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.rint(values)


class Exp(Elementwise):
    """The exponential function."""

    name: ClassVar[str] = "EXP"
    variants: ClassVar[str] = "int8, float32"
    types: ClassVar[tuple[DType, ...]] = _INT8_AND_REAL

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes."""
        return table_through_f32(self, graph, codes, _rounded(np.exp))

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return exp_f32(values)


class Log(Elementwise):
    """The natural logarithm."""

    name: ClassVar[str] = "LOG"
    variants: ClassVar[str] = "int8, float32"
    types: ClassVar[tuple[DType, ...]] = _INT8_AND_REAL

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes; what has no logarithm gets the smallest one."""
        y = self.output(graph).q
        lowest = np.float32(y.scale) * np.float32(-128 - y.zero_point)

        def function(values: Array) -> Array:
            positive = _rounded(np.log)(np.where(values > 0, values, np.float32(1)))
            return np.where(values > 0, positive, lowest)

        return table_through_f32(self, graph, codes, function)

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return log_f32(values)


class Elu(Elementwise):
    """The identity for positive numbers, exp(x) - 1 for negative ones."""

    name: ClassVar[str] = "ELU"
    variants: ClassVar[str] = "int8, float32"
    types: ClassVar[tuple[DType, ...]] = _INT8_AND_REAL

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes."""

        def function(values: Array) -> Array:
            below = _rounded(np.exp)(np.minimum(values, np.float32(0))) - np.float32(1)
            return np.where(values < 0, below, values)

        return table_through_f32(self, graph, codes, function)

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.where(values < 0, expm1_f32(values), values)


class HardSwish(Elementwise):
    """The number times a ramp that rises from 0 at -3 to 1 at 3."""

    name: ClassVar[str] = "HARD_SWISH"
    variants: ClassVar[str] = "int8, float32"
    types: ClassVar[tuple[DType, ...]] = _INT8_AND_REAL

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        if self.input(graph, 0).dtype is DType.INT8:
            output, ramp = self.multipliers(graph)
            if not -15 <= output.shift <= 0 or not -15 <= ramp.shift <= 30:
                self.unsupported(
                    graph,
                    "scales of the input and the output",
                    f"{self.input(graph, 0).q.scale:.8g}, {self.output(graph).q.scale:.8g}",
                )

    def multipliers(self, graph: Graph) -> tuple[Multiplier, Multiplier]:
        """Returns the scales to the output and to the ramp, to 16 bits (``HardSwishPrepare``)."""
        fine = self.input(graph, 0).q.scale / 128
        return _multiplier_s16(fine / self.output(graph).q.scale), _multiplier_s16(fine * 32768 / 3)

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes in 16 bits."""
        output, ramp = self.multipliers(graph)
        fine = (codes - self.input(graph, 0).q.zero_point) * (1 << 7)
        scaled = _doubling_high_mul_s16(fine, output.multiplier)
        factor = fine
        if ramp.shift > 0:
            factor = _clip_s16(factor * (1 << (ramp.shift - 1)))
        factor = _doubling_high_mul_s16(factor, ramp.multiplier)
        if ramp.shift > 0:
            factor = _clip_s16(factor * 2)
        if ramp.shift < 0:
            factor = rounding_divide_by_pot(factor, -ramp.shift)
        factor = (factor + (1 << 15)) >> 1
        product = factor * scaled
        result = np.sign(product) * (np.abs(product) >> 15)
        moved = rounding_divide_by_pot(result, -output.shift) + self.output(graph).q.zero_point
        return np.clip(moved, -128, 127)

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        ramp = np.minimum(np.maximum(values + np.float32(3), np.float32(0)), np.float32(6))
        return values * ramp / np.float32(6)


class Rsqrt(Elementwise):
    """One divided by the square root.

    The oracle stops with an error at a negative int8 number; here it gives the largest code,
    as 0 does there.
    """

    name: ClassVar[str] = "RSQRT"
    variants: ClassVar[str] = "int8, float32"
    types: ClassVar[tuple[DType, ...]] = _INT8_AND_REAL

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        if self.input(graph, 0).dtype is DType.INT8 and not -11 <= self.scale(graph).shift <= 30:
            self.unsupported(graph, "scales of the input and the output")

    def scale(self, graph: Graph) -> Multiplier:
        """Returns the scale of the result (``SetRsqrtOutputMultiplier``)."""
        x, y = self.input(graph, 0).q.scale, self.output(graph).q.scale
        return quantize_multiplier(1.0 / (math.sqrt(x) * y))

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes."""
        bits = 20
        y, m = self.output(graph).q, self.scale(graph)
        values = codes - self.input(graph, 0).q.zero_point
        result = np.full_like(codes, 127)
        for position in np.ndindex(values.shape):
            value = int(values[position])
            if value > 0:
                root = inverse_sqrt(value)
                one = np.array(1, np.int64)
                data = multiply_by_quantized_multiplier(one, root.multiplier, root.shift + bits)
                scaled = multiply_by_quantized_multiplier(data, m.multiplier, m.shift - bits)
                result[position] = min(max(int(scaled) + y.zero_point, -128), 127)
        return result

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.float32(1) / np.sqrt(values)


def inverse_sqrt(value: int) -> Multiplier:
    """Returns 1 / sqrt(value) for a positive int32 (``GetInvSqrtQuantizedMultiplierExp``)."""
    if value == 1:
        return Multiplier((1 << 31) - 1, 0)
    shift = 11
    while value >= 1 << 29:
        value //= 4
        shift += 1
    pairs = (32 - value.bit_length() - 1) // 2 - 1
    shift -= pairs
    a = np.array((value << (2 * pairs)) >> 1, np.int64)
    half = rounding_divide_by_pot(a, 1)
    x = np.array(1 << 28, np.int64)  # 1 in Q3
    three_halves = np.array((1 << 28) + (1 << 27), np.int64)
    for _ in range(5):
        cube = _shift_left_s32(doubling_high_mul(doubling_high_mul(x, x), x), 6)
        error = doubling_high_mul(three_halves, x) - doubling_high_mul(half, cube)
        x = _shift_left_s32(error, 3)
    multiplier = int(doubling_high_mul(x, 1518500250))  # sqrt(2) / 2 in Q0
    if shift < 0:
        multiplier, shift = int(wrap_int32(np.array(multiplier << -shift, np.int64))), 0
    return Multiplier(multiplier, -shift)


def _shift_left_s32(x: Int64Array, bits: int) -> Int64Array:
    return np.clip(x * (1 << bits), -(2**31), 2**31 - 1)


def _rounded(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Returns a function of float32 that is computed in float64 and rounded once."""
    return lambda values: function(values.astype(np.float64)).astype(np.float32)


def _multiplier_s16(real: float) -> Multiplier:
    """Splits a real number with 16 bits for the multiplier (``DownScaleInt32ToInt16…``)."""
    m = quantize_multiplier(real)
    if m.multiplier >= (1 << 31) - 1 - (1 << 15):
        return Multiplier((1 << 15) - 1, m.shift)
    return Multiplier((m.multiplier + (1 << 15)) >> 16, m.shift)


def _clip_s16(x: Int64Array) -> Int64Array:
    return np.clip(x, -(1 << 15), (1 << 15) - 1)


def _doubling_high_mul_s16(a: Int64Array, b: int) -> Int64Array:
    return (a * b + (1 << 14)) >> 15


def _lower_abs(op: Abs, graph: Graph) -> tuple[KernelCall, ...]:
    x, y, m = op.input(graph, 0), op.output(graph), op.multiplier(graph)
    scalars = {"length": y.elements, "multiplier": m.multiplier, "shift": m.shift}
    return (KernelCall("ek_abs_s16", "ek_abs_s16.h", scalars, {}, (x.index,), y.index),)


Abs.kernels = (
    table_kernel(),
    Kernel(
        "abs_s16",
        _lower_abs,
        lambda op, graph: 20.0 * op.output(graph).elements,
        accepts=first_input_is(DType.INT16),
        overlap=overlap_elementwise,
    ),
    real_kernel("abs"),
)
Neg.kernels = (real_kernel("neg"),)
Square.kernels = (real_kernel("square"),)
Sqrt.kernels = (real_kernel("sqrt"),)
Sin.kernels = (real_kernel("sin", "ek_trigonometry_f32.h"),)
Cos.kernels = (real_kernel("cos", "ek_trigonometry_f32.h"),)
Floor.kernels = (real_kernel("floor"),)
Ceil.kernels = (real_kernel("ceil"),)
Round.kernels = (real_kernel("round"),)
Exp.kernels = (table_kernel(), real_kernel("exp"))
Log.kernels = (table_kernel(), real_kernel("log"))
Elu.kernels = (table_kernel(), real_kernel("elu"))
HardSwish.kernels = (table_kernel(), real_kernel("hard_swish"))
Rsqrt.kernels = (table_kernel(), real_kernel("rsqrt"))
