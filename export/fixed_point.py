"""The fixed-point arithmetic of TensorFlow Lite's int8 kernels, in numpy.

Everything here is exact integer arithmetic on int64 arrays that hold int32 values. The
formulas are those of gemmlowp (``fixedpoint.h``) and of TensorFlow Lite's
``quantization_util.cc`` with double rounding, as TensorFlow Lite Micro builds them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]

INT8_MIN, INT8_MAX = -128, 127
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


@dataclass(frozen=True)
class Multiplier:
    """A positive real number as ``multiplier * 2**(shift - 31)``.

    Attributes:
        multiplier: int32, 0 or in [2**30, 2**31).
        shift: In [-31, 30]; positive shifts left before the multiplication, negative
            shifts right after it.
    """

    multiplier: int
    shift: int


def quantize_multiplier(real: float) -> Multiplier:
    """Splits a non-negative real number (TensorFlow Lite ``QuantizeMultiplier``)."""
    if real == 0.0:
        return Multiplier(0, 0)
    fraction, shift = math.frexp(real)
    multiplier = round_half_away(fraction * (1 << 31))
    if multiplier == 1 << 31:
        multiplier //= 2
        shift += 1
    if shift < -31:
        return Multiplier(0, 0)
    return Multiplier(multiplier, shift)


def round_half_away(value: float) -> int:
    """Rounds to the nearest integer, halves away from zero (C ``round``)."""
    magnitude = math.floor(abs(value))
    if abs(value) - magnitude >= 0.5:
        magnitude += 1
    return -magnitude if value < 0 else magnitude


def round_half_away_f32(value: np.float32) -> int:
    """Rounds a float32 to the nearest integer, halves away from zero (C ``roundf``)."""
    return round_half_away(float(value))


def doubling_high_mul(a: Int64Array, b: Int64Array | int) -> Int64Array:
    """Rounds ``a * b / 2**31`` to the nearest, halves up (gemmlowp, b is not INT32_MIN).

    gemmlowp writes it as a truncating division with a nudge that depends on the sign; for
    a non-saturating product both forms give the same integer.
    """
    return (a * b + (1 << 30)) >> 31


def rounding_divide_by_pot(x: Int64Array, exponent: Int64Array | int) -> Int64Array:
    """Divides by ``2**exponent``, rounding to the nearest, halves away from zero."""
    mask = (np.int64(1) << np.asarray(exponent, np.int64)) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def multiply_by_quantized_multiplier(
    x: Int64Array, multiplier: Int64Array | int, shift: Int64Array | int
) -> Int64Array:
    """Scales int32 values by ``multiplier * 2**(shift - 31)`` with double rounding."""
    left = np.maximum(shift, 0)
    right = np.maximum(-np.asarray(shift, np.int64), 0)
    shifted = wrap_int32(x * (np.int64(1) << left))
    return rounding_divide_by_pot(doubling_high_mul(shifted, multiplier), right)


def reduce_multiplier(multiplier: Int64Array) -> Int64Array:
    """Rounds multipliers to the 15 bits with which 64-bit values are scaled."""
    return np.where(multiplier < 0x7FFF0000, (multiplier + (1 << 15)) >> 16, 0x7FFF)


def multiply_wide_by_quantized_multiplier(
    x: Int64Array, multiplier: Int64Array, shift: Int64Array
) -> Int64Array:
    """Scales values below 2**47 by ``multiplier * 2**(shift - 31)`` with one rounding.

    TensorFlow Lite's overload for 64-bit values: 15 bits of the multiplier take part, shifts
    are at most 7, and the result is the low 32 bits.
    """
    right = 15 - np.asarray(shift, np.int64)
    product = x * reduce_multiplier(np.asarray(multiplier, np.int64))
    return wrap_int32((product + (np.int64(1) << (right - 1))) >> right)


def wrap_int32(x: Int64Array) -> Int64Array:
    """Reduces to the int32 that a wrapping 32-bit register would hold."""
    return ((x + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)


def input_radius(integer_bits: int, left_shift: int, total_signed_bits: int = 31) -> int:
    """Largest input difference that stays in range (``CalculateInputRadius``)."""
    bound = ((1 << integer_bits) - 1) * (1 << (total_signed_bits - integer_bits))
    return math.floor(bound / (1 << left_shift))


# gemmlowp's fixed-point functions. A name such as x_q5 means a value with 5 integer bits:
# the int32 stands for x / 2**(31 - 5).

_ONE_Q0 = INT32_MAX  # gemmlowp represents 1.0 in Q0 by the largest int32
_ONE_Q2 = 1 << 29


def _saturating_shift_left(x: Int64Array, bits: int) -> Int64Array:
    return np.clip(x * (1 << bits), INT32_MIN, INT32_MAX)


def exp_on_negative_values(x: Int64Array, integer_bits: int) -> Int64Array:
    """Computes exp(x) for x <= 0: Q``integer_bits`` in (at most 5), Q0 out."""
    fractional_bits = 31 - integer_bits
    quarter = 1 << (fractional_bits - 2)
    reduced = (x & (quarter - 1)) - quarter
    result = _exp_between_minus_quarter_and_zero(_saturating_shift_left(reduced, integer_bits))
    remainder = reduced - x
    # exp(-2**exponent) in Q0
    factors = {
        -2: 1672461947,
        -1: 1302514674,
        0: 790015084,
        1: 290630308,
        2: 39332535,
        3: 720401,
        4: 242,
    }
    for exponent, factor in factors.items():
        if exponent < integer_bits:
            bit_is_set = (remainder & (1 << (fractional_bits + exponent))) != 0
            result = np.where(bit_is_set, doubling_high_mul(result, factor), result)
    return np.where(x == 0, _ONE_Q0, result)


def _exp_between_minus_quarter_and_zero(a: Int64Array) -> Int64Array:
    """Computes exp(a) for Q0 a in [-1/4, 0) by a Taylor series around -1/8."""
    exp_minus_eighth, third = 1895147668, 715827883
    x = a + (1 << 28)
    x2 = doubling_high_mul(x, x)
    x3 = doubling_high_mul(x2, x)
    x4 = doubling_high_mul(x2, x2)
    x4_over_4 = rounding_divide_by_pot(x4, 2)
    tail = rounding_divide_by_pot(doubling_high_mul(x4_over_4 + x3, third) + x2, 1)
    return exp_minus_eighth + doubling_high_mul(x + tail, exp_minus_eighth)


def _newton_reciprocal_of_half_sum(a: Int64Array) -> Int64Array:
    """Returns 2 / (1 + a) in Q2 for Q0 a in [0, 1], by three Newton-Raphson steps."""
    total = a + _ONE_Q0
    half_denominator = np.where(total >= 0, (total + 1) >> 1, -((1 - total) >> 1))
    x = 1515870810 + doubling_high_mul(half_denominator, -1010580540)
    for _ in range(3):
        error = _ONE_Q2 - doubling_high_mul(half_denominator, x)
        x = x + _saturating_shift_left(doubling_high_mul(x, error), 2)
    return x


def one_over_one_plus(a: Int64Array) -> Int64Array:
    """Computes 1 / (1 + a): Q0 in [0, 1], Q0 out."""
    # Halving a Q2 value is exact as a Q1 value with the same bits; Q1 to Q0 shifts by one.
    return _saturating_shift_left(_newton_reciprocal_of_half_sum(a), 1)


def one_minus_over_one_plus(a: Int64Array) -> Int64Array:
    """Computes (1 - a) / (1 + a): Q0 in [0, 1], Q0 out."""
    return _saturating_shift_left(_newton_reciprocal_of_half_sum(a) - _ONE_Q2, 2)


def logistic(x: Int64Array, integer_bits: int) -> Int64Array:
    """Computes 1 / (1 + exp(-x)): Q``integer_bits`` in, Q0 out."""
    positive = one_over_one_plus(exp_on_negative_values(-np.abs(x), integer_bits))
    result = np.where(x > 0, positive, _ONE_Q0 - positive)
    return np.where(x == 0, 1 << 30, result)


def tanh(x: Int64Array, integer_bits: int) -> Int64Array:
    """Computes tanh(x): Q``integer_bits`` in (at most 4), Q0 out."""
    # 2x in the same bits has one integer bit more.
    negated = one_minus_over_one_plus(exp_on_negative_values(-np.abs(x), integer_bits + 1))
    return np.where(x == 0, 0, np.where(x < 0, -negated, negated))


def reciprocal(x: Int64Array, integer_bits: int) -> tuple[Int64Array, Int64Array]:
    """Returns ``(scale, bits)`` with 1 / x = scale * 2**(-31 - bits) (``GetReciprocal``).

    Args:
        x: Positive int32 with ``integer_bits`` integer bits.
        integer_bits: How many of its bits stand left of the binary point.
    """
    leading_zeros = 31 - np.floor(np.log2(x.astype(np.float64))).astype(np.int64)
    shifted_minus_one = (x << leading_zeros) - (1 << 31)
    return one_over_one_plus(shifted_minus_one), integer_bits - leading_zeros
