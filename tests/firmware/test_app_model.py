from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import BadInputError
from edgekiln.firmware.app_model import DecimalScale, decimal_scale


def printed(how: DecimalScale, steps: int) -> Fraction:
    """What the application prints for so many steps, as main.c works it out."""
    half = 1 << (how.shift - 1) if how.shift else 0
    product = steps * how.multiplier + half
    assert product < 2**32
    return Fraction(product >> how.shift, 10**how.decimals)


@given(scale=st.floats(1e-12, 6e4), steps=st.integers(0, 65535))
def test_codes_of_16_bits_fit_the_printer_too(scale: float, steps: int) -> None:
    how = decimal_scale(scale, 65535)
    exact = Fraction(scale) * steps
    unit = Fraction(1, 10**how.decimals)
    value = (steps * how.multiplier + (1 << how.shift >> 1)) >> how.shift
    assert value < 2**32
    error = abs(Fraction(value, 10**how.decimals) - exact)
    assert error <= unit / 2 + exact / 2**21 + unit * Fraction(65535, 2**31)


@given(scale=st.floats(1e-12, 8e6), steps=st.integers(0, 255))
def test_printed_values_are_right_to_the_last_decimal_that_23_bits_give(
    scale: float, steps: int
) -> None:
    how = decimal_scale(scale)
    assert 0 <= how.shift <= 31
    assert 0 <= how.decimals <= 9
    exact = Fraction(scale) * steps
    unit = Fraction(1, 10**how.decimals)
    assert abs(printed(how, steps) - exact) <= unit / 2 + exact / 2**21 + unit * Fraction(
        255, 2**31
    )


@pytest.mark.parametrize(
    ("scale", "decimals"),
    [(1 / 256, 3), (0.5, 3), (1e-3, 3), (0.0009, 4), (1e-6, 6), (1e-12, 9), (9000.0, 2), (8e6, 0)],
)
def test_three_decimals_unless_the_step_is_finer_or_the_numbers_too_large(
    scale: float, decimals: int
) -> None:
    assert decimal_scale(scale).decimals == decimals


def test_softmax_scale_prints_exact_halves_upwards() -> None:
    how = decimal_scale(1 / 256)
    for steps in range(256):
        exact = Fraction(steps, 256)
        assert printed(how, steps) == Fraction(math.floor(exact * 1000 + Fraction(1, 2)), 1000)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, 1e8])
def test_a_scale_that_cannot_be_printed_is_refused(scale: float) -> None:
    with pytest.raises(BadInputError, match="scale"):
        decimal_scale(scale)
