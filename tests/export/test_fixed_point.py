"""The fixed-point arithmetic against its definitions, value by value."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from edgekiln.export import fixed_point as fp

INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIERS = st.integers(2**30, 2**31 - 1)


def round_half_away(value: Fraction) -> int:
    sign = -1 if value < 0 else 1
    return sign * math.floor(abs(value) + Fraction(1, 2))


def array(value: int) -> fp.Int64Array:
    return np.array([value], np.int64)


@given(INT32, st.integers(-(2**31) + 1, 2**31 - 1))
@example(-(2**30), 1)
@example(2**30, -1)
def test_doubling_high_mul_is_the_truncating_division_with_a_nudge(a: int, b: int) -> None:
    product = a * b
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    want = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)
    assert int(fp.doubling_high_mul(array(a), b)[0]) == want


@given(INT32, st.integers(0, 31))
def test_rounding_divide_by_pot_rounds_halves_away_from_zero(x: int, exponent: int) -> None:
    want = round_half_away(Fraction(x, 2**exponent))
    assert int(fp.rounding_divide_by_pot(array(x), exponent)[0]) == want


@given(st.floats(1e-9, 1000.0))
def test_a_multiplier_is_the_nearest_of_31_bits(real: float) -> None:
    m = fp.quantize_multiplier(real)
    assert 2**30 <= m.multiplier < 2**31
    assert -31 <= m.shift <= 30
    assert abs(m.multiplier * 2.0 ** (m.shift - 31) / real - 1.0) <= 2.0**-31


def test_tiny_and_zero_multipliers_vanish() -> None:
    assert fp.quantize_multiplier(0.0) == fp.Multiplier(0, 0)
    assert fp.quantize_multiplier(2.0**-33) == fp.Multiplier(0, 0)


@given(st.integers(-(2**22), 2**22), MULTIPLIERS, st.integers(-20, 6))
def test_scaling_rounds_twice(x: int, multiplier: int, shift: int) -> None:
    left, right = max(shift, 0), max(-shift, 0)
    high = math.floor(Fraction((x << left) * multiplier, 2**31) + Fraction(1, 2))
    want = round_half_away(Fraction(high, 2**right))
    got = fp.multiply_by_quantized_multiplier(array(x), multiplier, shift)
    assert int(got[0]) == want


def test_exp_logistic_tanh_and_reciprocal_are_close_to_the_real_functions() -> None:
    x = -np.linspace(0, 15.9, 5000)
    codes = (x * 2.0**26).astype(np.int64)  # Q5
    np.testing.assert_allclose(fp.exp_on_negative_values(codes, 5) / 2.0**31, np.exp(x), atol=2e-7)
    both = np.linspace(-7.9, 7.9, 5001)
    codes = (both * 2.0**27).astype(np.int64)  # Q4
    np.testing.assert_allclose(fp.logistic(codes, 4) / 2.0**31, 1 / (1 + np.exp(-both)), atol=1e-6)
    np.testing.assert_allclose(fp.tanh(codes, 4) / 2.0**31, np.tanh(both), atol=1e-6)
    sums = np.array([2**19, 2**19 + 1, 3 * 2**19, 10 * 2**19, 2**30])
    scale, bits = fp.reciprocal(sums, 12)
    np.testing.assert_allclose(scale * 2.0 ** (-31.0 - bits), 2.0**19 / sums, rtol=1e-6)
