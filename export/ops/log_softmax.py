"""LOG_SOFTMAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekiln.export.fixed_point import (
    INT32_MAX,
    INT32_MIN,
    Int64Array,
    Multiplier,
    doubling_high_mul,
    exp_on_negative_values,
    input_radius,
    multiply_by_quantized_multiplier,
    one_over_one_plus,
    quantize_multiplier,
    rounding_divide_by_pot,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, as_int64
from edgekiln.export.ops.broadcasting import overlap_elementwise, value_of
from edgekiln.export.ops.real_functions import exp_f32, log_f32
from edgekiln.export.ops.types import first_input_is

_DIFF_INTEGER_BITS = 5
_SUM_INTEGER_BITS = 12
_OUTPUT_INTEGER_BITS = 4
_LONGEST = (1 << (_SUM_INTEGER_BITS - 1)) - 1

# The rational approximation of the logarithm, in Q0.
_LOG_2 = 1488522236
_SQRT_HALF = 1518500250
_ROOT_4_HALF = 1805811301
_ALPHA_N = 117049297
_ALPHA_D = 127690142
_ALPHA_I = 1057819769
_ALPHA_F = 638450708
_QUARTER_Q6 = 1 << 23


@dataclass(frozen=True)
class LogSoftmax(Op):
    """Logarithm of the softmax over the last dimension; the int8 output has scale 1/16."""

    name: ClassVar[str] = "LOG_SOFTMAX"
    variants: ClassVar[str] = "int8, float32; last dimension"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, x, DType.INT8, DType.FLOAT32)
        self.check_type(graph, y, DType.INT8, DType.FLOAT32)
        self.check_same_type(graph, x, y)
        self.check_same_shape(graph, x, y)
        if not x.shape or not 0 < x.shape[-1] <= _LONGEST:
            self.unsupported(graph, "size of the last dimension", x.shape, f"1 to {_LONGEST}")
        if x.dtype is DType.FLOAT32:
            return
        if (y.q.scale, y.q.zero_point) != (1 / 16, 127):
            got = f"{y.q.scale:.8g}, {y.q.zero_point}"
            self.unsupported(graph, "scale and zero point of the output", got, "0.0625, 127")
        if not x.q.scale * (1 << (31 - _DIFF_INTEGER_BITS)) > 1.0:
            self.unsupported(graph, "the input's scale is too small", x.q.scale)
        if self.reverse(graph).shift > 0:
            self.unsupported(graph, "the input's scale is too small", x.q.scale)

    def argument(self, graph: Graph) -> tuple[Multiplier, int]:
        """Returns the scale of a difference to Q5, and the smallest difference that counts."""
        real = self.input(graph, 0).q.scale * (1 << (31 - _DIFF_INTEGER_BITS))
        multiplier = quantize_multiplier(min(real, (1 << 31) - 1.0))
        return multiplier, -input_radius(_DIFF_INTEGER_BITS, multiplier.shift)

    def reverse(self, graph: Graph) -> Multiplier:
        """Returns the scale from Q5 to a difference."""
        multiplier, _ = self.argument(graph)
        return quantize_multiplier((1 << (31 - multiplier.shift)) / multiplier.multiplier)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        if self.input(graph, 0).dtype is DType.FLOAT32:
            return (self._define_f32(value_of(inputs[0])),)
        x = as_int64(inputs[0])
        m, diff_min = self.argument(graph)
        differences = x - x.max(axis=-1, keepdims=True)
        counts = differences >= diff_min
        scaled = multiply_by_quantized_multiplier(differences, m.multiplier, m.shift)
        exps = exp_on_negative_values(np.where(counts, scaled, 0), _DIFF_INTEGER_BITS)
        terms = np.where(counts, rounding_divide_by_pot(exps, _SUM_INTEGER_BITS), 0)
        log_sum = log_q12(terms.sum(axis=-1, keepdims=True))
        reverse = self.reverse(graph)
        smallest = multiply_by_quantized_multiplier(
            log_sum + INT32_MIN, reverse.multiplier, reverse.shift
        )
        shift = 31 - _DIFF_INTEGER_BITS - _OUTPUT_INTEGER_BITS
        codes = rounding_divide_by_pot(scaled - log_sum, shift) + 127
        valid = differences > np.maximum(diff_min - 1, smallest)
        return (np.where(valid, np.clip(codes, -128, 127), -128).astype(np.int8),)

    def _define_f32(self, x: Array) -> Array:
        """Computes the output; sums run in memory order."""
        with np.errstate(all="ignore"):
            centred = x - x.max(axis=-1, keepdims=True)
            total = np.add.accumulate(exp_f32(centred), axis=-1, dtype=np.float32)[..., -1:]
            return np.asarray(centred - log_f32(total))


def log_q12(x: Int64Array) -> Int64Array:
    """Computes ln(x) for x >= 1: Q12 in, Q5 out (``log_x_for_x_greater_than_or_equal_to_1``)."""
    zeros = 32 - np.frexp(x.astype(np.float64))[1].astype(np.int64)
    r_a = doubling_high_mul(x << (zeros - 1), _SQRT_HALF) * 2
    power_a = ((_SUM_INTEGER_BITS - zeros) << 25) + _QUARTER_Q6
    z_b = doubling_high_mul(x, _SQRT_HALF)
    headroom = 31 - np.frexp(z_b.astype(np.float64))[1].astype(np.int64)
    r_b = x << headroom
    r_b = np.minimum(r_b, INT32_MAX)
    power_b = ((_SUM_INTEGER_BITS - headroom) << 25) - _QUARTER_Q6
    r = np.minimum(np.minimum(r_a, INT32_MAX), r_b)
    power = np.maximum(power_a, power_b)

    total = r + _ROOT_4_HALF
    p = (total + 1) >> 1
    q = 2 * (r - _ROOT_4_HALF)
    square = doubling_high_mul(q, q)
    numerator = doubling_high_mul(q, r) + doubling_high_mul(doubling_high_mul(q, square), _ALPHA_N)
    denominator = doubling_high_mul(
        p, _ALPHA_I + q + doubling_high_mul(square, _ALPHA_D)
    ) + doubling_high_mul(q, _ALPHA_F)
    quotient = doubling_high_mul(
        rounding_divide_by_pot(numerator, 6), one_over_one_plus(denominator)
    )
    result = doubling_high_mul(power, _LOG_2) + quotient
    return np.asarray(np.clip(result * 2, INT32_MIN, INT32_MAX), np.int64)


def _rows(op: LogSoftmax, graph: Graph) -> dict[str, int | float]:
    x = op.input(graph, 0)
    return {"rows": x.elements // x.shape[-1], "depth": x.shape[-1]}


def _lower_s8(op: LogSoftmax, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    m, diff_min = op.argument(graph)
    reverse = op.reverse(graph)
    scalars = _rows(op, graph) | {
        "multiplier": m.multiplier,
        "shift": m.shift,
        "diff_min": diff_min,
        "reverse_multiplier": reverse.multiplier,
        "reverse_shift": reverse.shift,
    }
    call = KernelCall("ek_log_softmax_s8", "ek_log_softmax_s8.h", scalars, {}, (x.index,), y.index)
    return (call,)


def _lower_f32(op: LogSoftmax, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    scalars = _rows(op, graph)
    call = KernelCall(
        "ek_log_softmax_f32", "ek_log_softmax_f32.h", scalars, {}, (x.index,), y.index
    )
    return (call,)


LogSoftmax.kernels = (
    Kernel(
        "log_softmax_s8",
        _lower_s8,
        lambda op, graph: 150.0 * op.output(graph).elements,
        accepts=first_input_is(DType.INT8),
        overlap=overlap_elementwise,
    ),
    Kernel(
        "log_softmax_f32",
        _lower_f32,
        lambda op, graph: 150.0 * op.output(graph).elements,
        accepts=first_input_is(DType.FLOAT32),
        overlap=overlap_elementwise,
    ),
)
