"""The arithmetic of magnitude pruning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekiln.errors import BadInputError
from edgekiln.quantize.sparsity import (
    Blocks,
    ConstantSchedule,
    NofM,
    PolynomialSchedule,
    Unstructured,
    block_scores,
    magnitude_mask,
    n_of_m_mask,
)


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


def test_the_constant_schedule_by_hand() -> None:
    schedule = ConstantSchedule(0.8, begin_step=10, end_step=25, frequency=10)
    assert [schedule.sparsity_at(step) for step in (0, 9, 10, 99)] == [0.0, 0.0, 0.8, 0.8]
    assert [step for step in range(40) if schedule.updates_at(step)] == [10, 20, 25]
    once = ConstantSchedule(0.8, begin_step=3, frequency=1)
    assert [step for step in range(9) if once.updates_at(step)] == [3]


def test_another_final_sparsity() -> None:
    ramp = PolynomialSchedule(0.8, 1, 9, 4, initial_sparsity=0.3, power=2.0)
    assert ramp.with_final(0.5) == PolynomialSchedule(0.5, 1, 9, 4, 0.3, 2.0)
    assert ramp.with_final(0.1) == PolynomialSchedule(0.1, 1, 9, 4, 0.1, 2.0)
    assert ConstantSchedule(0.8, 1, 9).with_final(0.2) == ConstantSchedule(0.2, 1, 9)
    with pytest.raises(BadInputError, match=r"final_sparsity is out of range; got 1"):
        ramp.with_final(1.0)


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
    if change.keys() <= {"final_sparsity", "begin_step", "frequency"}:
        with pytest.raises(BadInputError, match=message):
            ConstantSchedule(**{**good, **change})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NofM(0, 4), r"n of n:m is out of range; got 0; allowed: 1 to 3"),
        (lambda: NofM(4, 4), r"n of n:m is out of range; got 4; allowed: 1 to 3"),
        (lambda: NofM(1, 1), r"m of n:m is out of range; got 1; allowed: 2 or more"),
        (lambda: Blocks(1), r"width of a block is out of range; got 1; allowed: 2 or more"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(build: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        build()


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


def lines(array: np.ndarray, axis: int) -> Iterator[np.ndarray]:
    """Yields every line of an array along an axis."""
    for index in np.ndindex(*np.delete(array.shape, axis)):
        yield np.moveaxis(array, axis, -1)[index]


@st.composite
def kernels(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    weights = draw(WEIGHTS)
    return weights, draw(st.integers(0, weights.ndim - 1))


@given(kernels(), st.integers(1, 5), st.integers(0, 5))
def test_each_group_keeps_its_largest(kernel: tuple[np.ndarray, int], m: int, n: int) -> None:
    weights, axis = kernel
    n = min(n, m)
    keep = n_of_m_mask(weights, n, m, axis=axis)
    assert keep.shape == weights.shape and keep.dtype == np.bool_
    for line, kept in zip(lines(weights, axis), lines(keep, axis), strict=True):
        for start in range(0, len(line), m):
            group, chosen = np.abs(line[start : start + m]), kept[start : start + m]
            assert np.count_nonzero(chosen) == math.ceil(len(group) * n / m) <= n
            if chosen.any() and not chosen.all():
                assert group[~chosen].max() <= group[chosen].min()


@given(kernels(), st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 5)]))
def test_a_group_never_gets_back_what_it_lost(
    kernel: tuple[np.ndarray, int], pattern: tuple[int, int]
) -> None:
    """From sparsity to sparsity one weight after another goes, down to n:m and no further."""
    weights, axis = kernel
    n, m = pattern
    before = np.ones(weights.shape, np.bool_)
    for sparsity in np.linspace(0, 1, 2 * m + 1):
        (keep,) = NofM(n, m).masks([np.where(before, weights, 0)], [axis], float(sparsity))
        assert not keep[~before].any()
        before = keep
    assert np.array_equal(before, n_of_m_mask(weights, n, m, axis=axis))


def test_two_of_four_by_hand() -> None:
    weights = np.array([[1, -4, 3, 2, 5, 0, -6]], np.float32)
    (keep,) = NofM(2, 4).masks([weights], [1], 0.5)
    assert keep.astype(int).tolist() == [[0, 1, 1, 0, 1, 0, 1]]
    (keep,) = NofM(2, 4).masks([weights.T], [0], 0.25)
    assert keep[:, 0].astype(int).tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert (NofM(2, 4).fixed_sparsity, NofM(1, 4).fixed_sparsity) == (0.5, 0.75)


@given(kernels(), st.integers(2, 5), st.floats(0, 1))
def test_blocks_go_whole_and_the_smallest_first(
    kernel: tuple[np.ndarray, int], width: int, sparsity: float
) -> None:
    weights, axis = kernel
    (keep,) = Blocks(width).masks([weights], [axis], sparsity)
    assert keep.shape == weights.shape and keep.dtype == np.bool_
    kept, dropped = [], []
    for line, mask in zip(lines(weights, axis), lines(keep, axis), strict=True):
        for start in range(0, len(line), width):
            chosen = mask[start : start + width]
            assert chosen.all() or not chosen.any()
            mean = np.abs(line[start : start + width]).mean(dtype=np.float64)
            (kept if chosen.all() else dropped).append(mean)
    assert len(dropped) == round(sparsity * (len(kept) + len(dropped)))
    if kept and dropped:
        assert max(dropped) <= min(kept) * (1 + 1e-6)


def test_the_scores_of_blocks_by_hand() -> None:
    rows = np.array([[1, 2, 3, 4, 5, 1]], np.float32)
    assert block_scores(rows, 4).tolist() == [[10, 12]]
    (keep,) = Blocks(4).masks([-rows], [1], 0.5)
    assert keep.astype(int).tolist() == [[0, 0, 0, 0, 1, 1]]


@given(st.lists(WEIGHTS, min_size=1, max_size=4), st.floats(0, 1))
def test_one_threshold_over_all_kernels(weights: list[np.ndarray], sparsity: float) -> None:
    masks = Unstructured().masks(weights, [0] * len(weights), sparsity)
    keep = np.concatenate([mask.ravel() for mask in masks])
    together = np.concatenate([one.ravel() for one in weights])
    assert [mask.shape for mask in masks] == [one.shape for one in weights]
    assert np.array_equal(keep, magnitude_mask(together, sparsity))


def test_blocks_of_several_kernels_share_a_threshold() -> None:
    small, large = np.full((8, 2), 0.1, np.float32), np.full((4, 3), 2.0, np.float32)
    one, two = Blocks(4).masks([small, large], [0, 0], 4 / 7)
    assert not one.any() and two.all()
