"""Histograms: what they count, and that neither order nor batches matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import BadInputError
from edgekiln.quantize.histogram import (
    EMPTY,
    MAX_BINS,
    Histogram,
    collect_histograms,
    make_histogram,
    merge,
)

VALUES = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=30)


def assert_same(one: Histogram, other: Histogram) -> None:
    np.testing.assert_array_equal(one.counts, other.counts)
    for name in ("first_bin", "width", "zeros", "minimum", "maximum"):
        assert getattr(one, name) == getattr(other, name), name


@given(VALUES)
def test_every_value_lies_in_its_bin(values: list[float]) -> None:
    histogram = make_histogram(values)
    edges = histogram.edges
    assert histogram.samples == len(values)
    assert histogram.zeros == values.count(0.0)
    assert histogram.minimum == min([0.0, *values]) and histogram.maximum == max([0.0, *values])
    expected = [
        sum(low <= value < high and value != 0.0 for value in values)
        for low, high in itertools.pairwise(edges)
    ]
    assert histogram.counts.tolist() == expected
    assert len(histogram.counts) <= MAX_BINS


@given(VALUES, VALUES)
def test_joined_histograms_are_those_of_all_values(one: list[float], other: list[float]) -> None:
    joined = merge(make_histogram(one), make_histogram(other))
    assert_same(joined, make_histogram([*one, *other]))
    assert_same(joined, merge(make_histogram(other), make_histogram(one)))


@given(VALUES)
def test_nothing_added_changes_nothing(values: list[float]) -> None:
    histogram = make_histogram(values)
    assert_same(merge(EMPTY, histogram), histogram)
    assert_same(merge(histogram, make_histogram(np.zeros((0, 3)))), histogram)


def test_most_bins_are_used_and_zero_is_an_edge() -> None:
    values = np.random.default_rng(1).uniform(-0.3, 1.7, 500).astype(np.float32)
    histogram = make_histogram(values)
    assert MAX_BINS / 2 <= len(histogram.counts) <= MAX_BINS
    assert 0.0 in histogram.edges
    assert np.log2(histogram.width) % 1 == 0


def test_a_far_value_leaves_the_others_in_the_bins_beside_zero() -> None:
    histogram = merge(make_histogram([-1e-30, 1e-30, 2e-30]), make_histogram([1e30]))
    assert histogram.counts[-histogram.first_bin - 1] == 1
    assert histogram.counts[-histogram.first_bin] == 2
    assert histogram.counts[-1] == 1 and histogram.counts.sum() == 4


def test_tensors_are_collected_by_name() -> None:
    data = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    parts = [data[:7], data[7:30], data[30:]]
    collected = collect_histograms(
        tensor for part in parts for tensor in (("relu", np.maximum(part, 0)), ("double", 2 * part))
    )
    assert collected.keys() == {"relu", "double"}
    assert_same(collected["relu"], make_histogram(np.maximum(data, 0)))
    assert_same(collected["double"], make_histogram(2 * data))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_the_tensor(bad: float) -> None:
    with pytest.raises(BadInputError, match=r"^conv1: values to calibrate on hold NaN or infinity"):
        collect_histograms([("conv1", np.ones(3)), ("conv1", np.array([1.0, bad]))])
