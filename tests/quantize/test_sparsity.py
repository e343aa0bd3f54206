"""The arithmetic of magnitude pruning."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekiln.errors import BadInputError
from edgekiln.quantize.sparsity import PolynomialSchedule, magnitude_mask


def test_the_cubic_schedule_by_hand() -> None:
    schedule = PolynomialSchedule(0.8, begin_step=10, end_step=20, frequency=5)
    assert [schedule.sparsity_at(step) for step in (0, 9, 10)] == [0.0, 0.0, 0.0]
    assert schedule.sparsity_at(15) == pytest.approx(0.8 * (1 - 0.5**3))
    assert [schedule.sparsity_at(step) for step in (20, 21, 10**9)] == [0.8, 0.8, 0.8]
    assert [step for step in range(30) if schedule.updates_at(step)] == [10, 15, 20]


def test_a_schedule_may_start_above_zero_and_be_linear() -> None:
    schedule = PolynomialSchedule(0.9, 0, 10, initial_sparsity=0.5, power=1.0)
    assert schedule.sparsity_at(0) == 0.5
    assert schedule.sparsity_at(5) == pytest.approx(0.7)


def test_a_schedule_may_be_one_step() -> None:
    schedule = PolynomialSchedule(0.5, 7, 7)
    assert [schedule.sparsity_at(step) for step in (6, 7)] == [0.0, 0.5]
    assert [step for step in range(20) if schedule.updates_at(step)] == [7]


@given(
    final=st.floats(0, 0.999),
    begin=st.integers(0, 1000),
    length=st.integers(0, 1000),
    frequency=st.integers(1, 300),
)
def test_the_sparsity_rises_to_the_end(
    final: float, begin: int, length: int, frequency: int
) -> None:
    schedule = PolynomialSchedule(final, begin, begin + length, frequency)
    values = [schedule.sparsity_at(step) for step in range(begin + length + 3)]
    assert all(one <= two for one, two in itertools.pairwise(values))
    assert values[-1] == final
    assert schedule.updates_at(begin) and schedule.updates_at(begin + length)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_sparsity": 1.0}, r"final_sparsity is out of range; got 1\.0; allowed: \[0, 1\)"),
        ({"final_sparsity": -0.1}, "final_sparsity is out of range"),
        ({"final_sparsity": float("nan")}, "final_sparsity is out of range"),
        ({"initial_sparsity": 0.6}, r"initial_sparsity .* allowed: 0 to final_sparsity, 0\.5"),
        ({"initial_sparsity": -0.1}, "initial_sparsity is out of range"),
        ({"begin_step": -1}, "begin_step is out of range; got -1; allowed: 0 or more"),
        ({"begin_step": 11}, r"end_step .* got 10; allowed: begin_step, 11, or more"),
        ({"frequency": 0}, "frequency is out of range; got 0; allowed: 1 or more"),
        ({"power": 0.0}, "power is out of range"),
        ({"power": float("inf")}, "power is out of range"),
    ],
)
def test_nonsense_is_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"final_sparsity": 0.5, "begin_step": 0, "end_step": 10}
    PolynomialSchedule(**good)
    with pytest.raises(BadInputError, match=message):
        PolynomialSchedule(**{**good, **change})


WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=4, max_side=6),
    elements=st.floats(-2, 2, width=32),
)


@given(WEIGHTS, st.floats(0, 1))
def test_the_mask_is_exact_and_takes_the_smallest(weights: np.ndarray, sparsity: float) -> None:
    keep = magnitude_mask(weights, sparsity)
    assert keep.shape == weights.shape and keep.dtype == np.bool_
    assert np.count_nonzero(~keep) == round(sparsity * weights.size)
    if keep.any() and not keep.all():
        assert np.abs(weights[~keep]).max() <= np.abs(weights[keep]).min()


@given(WEIGHTS, st.floats(0, 0.5), st.floats(0, 0.5))
def test_zeros_stay_among_the_pruned(weights: np.ndarray, first: float, more: float) -> None:
    early = magnitude_mask(weights, first)
    late = magnitude_mask(np.where(early, weights, 0), first + more)
    assert not late[~early].any()


def test_equal_magnitudes_go_in_order() -> None:
    keep = magnitude_mask(np.array([[1.0, -1.0], [1.0, -1.0]]), 0.5)
    assert keep.tolist() == [[False, False], [True, True]]
