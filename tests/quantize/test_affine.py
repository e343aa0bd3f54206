"""Affine quantization against exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from edgekiln.errors import BadInputError
from edgekiln.quantize.affine import dequantize_array, quantize_array

SCALES = st.floats(2.0**-20, 2.0**10, width=32)
REALS = st.floats(-(2.0**20), 2.0**20, width=32)


def reference(x: float, scale: float, zero_point: int, low: int, high: int) -> int:
    """Ties away from zero, on the float32 quotient, in exact arithmetic."""
    quotient = Fraction(float(np.float32(x) / np.float32(scale)))
    rounded = math.floor(abs(quotient) + Fraction(1, 2)) * (-1 if quotient < 0 else 1)
    return max(low, min(high, rounded + zero_point))


@given(st.lists(REALS, min_size=1, max_size=20), SCALES, st.integers(-128, 127))
def test_quantize_int8(values: list[float], scale: float, zero_point: int) -> None:
    codes = quantize_array(values, scale, zero_point, np.int8)
    assert codes.dtype == np.int8
    assert codes.tolist() == [reference(x, scale, zero_point, -128, 127) for x in values]


@given(st.lists(REALS, min_size=1, max_size=20), SCALES)
def test_quantize_int16(values: list[float], scale: float) -> None:
    codes = quantize_array(values, scale, 0, np.int16)
    assert codes.tolist() == [reference(x, scale, 0, -32768, 32767) for x in values]


@given(SCALES, st.integers(-128, 127))
def test_every_code_survives_the_round_trip(scale: float, zero_point: int) -> None:
    codes = np.arange(-128, 128, dtype=np.int8)
    real = dequantize_array(codes, scale, zero_point)
    assert real.dtype == np.float32
    np.testing.assert_array_equal(quantize_array(real, scale, zero_point, np.int8), codes)
    assert real[codes == zero_point] == 0.0


def test_ties_go_away_from_zero() -> None:
    codes = quantize_array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], 1.0, 0, np.int8)
    assert codes.tolist() == [-3, -2, -1, 1, 2, 3]


def test_just_below_a_tie_is_not_a_tie() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    assert quantize_array([below, -below], 1.0, 0, np.int8).tolist() == [0, 0]


def test_saturation() -> None:
    values = [-np.inf, -1e38, 1e38, np.inf]
    assert quantize_array(values, 1e-30, 3, np.int8).tolist() == [-128, -128, 127, 127]


def test_shape_is_kept() -> None:
    assert quantize_array(np.zeros((2, 0, 3)), 1.0, 0, np.int8).shape == (2, 0, 3)
    assert quantize_array(0.7, 0.1, 0, np.int8).shape == ()


def test_dequantize_does_not_overflow() -> None:
    assert dequantize_array(np.array([127], np.int8), 0.5, -128).tolist() == [127.5]
    assert dequantize_array(np.array([2**31 - 1], np.int32), 1.0, 0).tolist() == [2.0**31]


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-60])
def test_bad_scale(scale: float) -> None:
    with pytest.raises(BadInputError, match="scale is out of range"):
        quantize_array([1.0], scale, 0, np.int8)
    with pytest.raises(BadInputError, match="scale is out of range"):
        dequantize_array(np.zeros(1, np.int8), scale, 0)


@pytest.mark.parametrize(("zero_point", "dtype"), [(128, np.int8), (-129, np.int8), (-1, np.uint8)])
def test_bad_zero_point(zero_point: int, dtype: DTypeLike) -> None:
    with pytest.raises(BadInputError, match="zero_point is out of range"):
        quantize_array([1.0], 1.0, zero_point, dtype)


def test_nan_is_refused() -> None:
    with pytest.raises(BadInputError, match="hold a NaN"):
        quantize_array([1.0, np.nan], 1.0, 0, np.int8)
