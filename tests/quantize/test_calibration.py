"""The choice of ranges: properties, and optima known from the literature."""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import BadInputError
from edgekiln.quantize.calibration import (
    CalibrationMethod,
    Range,
    choose_range,
    entropy_range,
    minmax_range,
    mse_range,
    percentile_range,
    quantization_errors,
)
from edgekiln.quantize.histogram import EMPTY, Histogram, make_histogram

RNG = np.random.default_rng(5)
NORMAL = RNG.normal(size=100_000)
VALUES = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40)
METHODS = st.sampled_from(CalibrationMethod)


def distribution(cdf: Callable[[float], float], reach: float) -> Histogram:
    """The histogram of very many values of a known distribution."""
    width = 2.0**-6
    bins = int(reach / width)
    edges = np.arange(-bins, bins + 1) * width
    shares = np.diff([cdf(edge) for edge in edges])
    return Histogram((shares * 1e12).round().astype(np.int64), -bins, width, 0, -reach, reach)


def laplace_cdf(x: float) -> float:
    return float(0.5 * np.exp(x) if x < 0 else 1 - 0.5 * np.exp(-x))


GAUSSIAN = distribution(NormalDist().cdf, 10.0)
LAPLACE = distribution(laplace_cdf, 15.0)


@given(VALUES, METHODS, st.sampled_from([4, 8, 16]), st.booleans())
def test_a_range_holds_zero_and_lies_within_the_values(
    values: list[float], method: CalibrationMethod, bits: int, symmetric: bool
) -> None:
    histogram = make_histogram(values)
    low, high = choose_range(histogram, method, bits=bits, symmetric=symmetric)
    reach = max(map(abs, values))
    assert -reach <= low <= 0.0 <= high <= reach
    if symmetric:
        assert low == -high
    else:
        assert histogram.minimum <= low and high <= histogram.maximum


@given(VALUES, METHODS, st.sampled_from([0.25, 2.0, 1024.0]))
def test_a_range_grows_with_the_values(
    values: list[float], method: CalibrationMethod, factor: float
) -> None:
    one = choose_range(make_histogram(values), method, bits=8)
    other = choose_range(make_histogram(np.multiply(values, factor)), method, bits=8)
    assert other == pytest.approx((one.low * factor, one.high * factor), rel=1e-9)


@pytest.mark.parametrize("method", CalibrationMethod)
def test_tensors_of_zeros_and_empty_ones(method: CalibrationMethod) -> None:
    for histogram in (EMPTY, make_histogram(np.zeros(9))):
        assert choose_range(histogram, method, bits=8) == Range(0.0, 0.0)


def test_minmax() -> None:
    assert minmax_range(make_histogram([-1.5, 0.25, 7.0])) == Range(-1.5, 7.0)
    assert minmax_range(make_histogram([3.0, 4.0])) == Range(0.0, 4.0)
    assert minmax_range(make_histogram([-3.0, -4.0])) == Range(-4.0, 0.0)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentiles_are_those_of_the_values(percentile: float) -> None:
    low, high = percentile_range(make_histogram(NORMAL), percentile)
    tail = (100 - percentile) / 2
    assert low == pytest.approx(np.percentile(NORMAL, tail), abs=0.01)
    assert high == pytest.approx(np.percentile(NORMAL, 100 - tail), abs=0.01)


def test_percentiles_after_a_relu_count_its_zeros() -> None:
    values = np.maximum(NORMAL, 0)
    low, high = percentile_range(make_histogram(values), 99.9)
    assert low == 0.0 and high == pytest.approx(np.percentile(values, 99.9), abs=0.01)
    assert percentile_range(make_histogram(-values), 99.9) == pytest.approx((-high, 0), rel=1e-3)


def test_the_hundredth_percentile_is_the_largest_value() -> None:
    histogram = make_histogram(NORMAL)
    assert percentile_range(histogram, 100.0) == minmax_range(histogram)


def test_more_zeros_than_the_percentile_leaves_nothing() -> None:
    assert percentile_range(make_histogram([0.0] * 9999 + [5.0]), 99.9) == Range(0.0, 0.0)


@pytest.mark.parametrize("percentile", [50.0, 100.01, -1.0, float("nan")])
def test_percentiles_out_of_range(percentile: float) -> None:
    with pytest.raises(BadInputError, match="percentile is out of range"):
        percentile_range(EMPTY, percentile)


@pytest.mark.parametrize(
    ("histogram", "bits", "expected"),
    [
        *[(GAUSSIAN, 2, 1.60), (GAUSSIAN, 4, 2.55), (GAUSSIAN, 6, 3.28), (GAUSSIAN, 8, 3.92)],
        *[(LAPLACE, 4, 5.03), (LAPLACE, 6, 7.45), (LAPLACE, 8, 9.89)],
    ],
)
def test_least_squared_error_is_where_theory_puts_it(
    histogram: Histogram, bits: int, expected: float
) -> None:
    """Banner et al., arXiv:1810.05723: optimal clipping values for the two distributions."""
    low, high = mse_range(histogram, bits)
    assert high == pytest.approx(expected, rel=0.025) and low == pytest.approx(-high, rel=0.02)


def test_the_search_finds_what_trying_everything_finds() -> None:
    values = np.concatenate([RNG.normal(0.3, 0.5, 3000), RNG.normal(2, 3, 60)])
    histogram = make_histogram(values)
    low, high = minmax_range(histogram)
    steps = np.linspace(0.02, 1.0, 60)
    everything = np.array([(low * i, high * j) for i in steps for j in steps])
    found = quantization_errors(histogram, [mse_range(histogram, 4)], 4)[0]
    assert found <= 1.02 * quantization_errors(histogram, everything, 4).min()


@given(VALUES, st.sampled_from([2, 4, 8]), st.booleans())
def test_least_squared_error_is_never_worse_than_minmax(
    values: list[float], bits: int, symmetric: bool
) -> None:
    histogram = make_histogram(values)
    if any(values):
        ranges = [mse_range(histogram, bits, symmetric=symmetric), minmax_range(histogram)]
        found, full = quantization_errors(histogram, ranges, bits, symmetric=symmetric)
        assert found <= full


@pytest.mark.parametrize(
    ("low", "high", "bits"), [(-4.5, 4.5, 8), (-2.5, 2.5, 4), (-1.0, 3.0, 4), (0.0, 2.0, 3)]
)
def test_errors_are_those_of_quantizing(low: float, high: float, bits: int) -> None:
    scale = (high - low) / (2**bits - 1)
    zero_point = np.rint(-low / scale)
    codes = np.clip(np.rint(NORMAL / scale) + zero_point, 0, 2**bits - 1)
    expected = np.mean(((codes - zero_point) * scale - NORMAL) ** 2)
    measured = quantization_errors(make_histogram(NORMAL), [(low, high)], bits)
    assert measured == pytest.approx([expected], rel=2e-3)


def test_symmetric_errors_are_those_of_quantizing() -> None:
    scale = 3.0 / 7
    errors = (np.clip(np.rint(NORMAL / scale), -7, 7) * scale - NORMAL) ** 2
    measured = quantization_errors(make_histogram(NORMAL), [(-1, 3.0)], 4, symmetric=True)
    assert measured == pytest.approx([errors.mean()], rel=2e-3)


def test_steps_finer_than_bins_have_the_error_of_rounding() -> None:
    histogram = make_histogram(RNG.uniform(0, 1, 100_000))
    (error,) = quantization_errors(histogram, [(0.0, 1.0)], 16)
    assert error == pytest.approx((1 / 65535) ** 2 / 12, rel=0.01)


def test_entropy_cuts_rare_outliers_and_keeps_what_is_even() -> None:
    spoiled = np.concatenate([NORMAL, [-80.0, 100.0]])
    low, high = entropy_range(make_histogram(spoiled), 8)
    assert 2.0 < high < 25.0 and -25.0 < low < -2.0
    assert entropy_range(make_histogram(RNG.uniform(-1, 1, 100_000)), 8).high > 0.95


def test_entropy_cuts_sooner_with_fewer_codes() -> None:
    reaches = [entropy_range(GAUSSIAN, bits).high for bits in (2, 4, 8)]
    assert reaches == sorted(reaches) and reaches[0] < 0.6 * reaches[-1]


def test_entropy_after_a_relu_has_one_end_and_ignores_the_zeros() -> None:
    values = np.abs(np.append(NORMAL, 100.0))
    low, high = entropy_range(make_histogram(values), 8)
    assert low == 0.0 and high < 50.0
    assert entropy_range(make_histogram(np.append(values, np.zeros(10**6))), 8) == (low, high)
    assert entropy_range(make_histogram(-values), 8) == pytest.approx((-high, 0.0), rel=0.01)


def test_entropy_with_more_codes_than_bins_keeps_all() -> None:
    histogram = make_histogram(np.append(NORMAL, 100.0))
    assert entropy_range(histogram, 16) == minmax_range(histogram)


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_out_of_range(bits: int) -> None:
    histogram = make_histogram(NORMAL)
    for choose in (mse_range, entropy_range):
        with pytest.raises(BadInputError, match="bits of a code are out of range"):
            choose(histogram, bits)


def test_entropy_does_not_clip_what_lies_far_from_zero() -> None:
    """With nothing near zero, a range that clips every value must not count as no loss."""
    values = np.concatenate([RNG.uniform(0.4, 0.8, 300), RNG.uniform(-0.7, -0.4, 200)])
    low, high = entropy_range(make_histogram(values), 8)
    assert low < -0.65 and high > 0.75
