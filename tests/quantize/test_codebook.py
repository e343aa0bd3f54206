"""The arithmetic of weight clustering."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekiln.quantize.codebook import Codebook, Init, find_codebook, packed_bits

INITS: tuple[Any, ...] = get_args(Init)
WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=3, max_side=8),
    elements=st.one_of(st.just(0.0), st.floats(-2, 2, width=32, allow_subnormal=False)),
)


def restored(book: Codebook) -> np.ndarray:
    array: np.ndarray = book.centroids[book.assignment]
    return array


@settings(max_examples=50)
@given(WEIGHTS, st.integers(2, 9), st.sampled_from(INITS), st.booleans())
def test_few_values_each_the_mean_of_its_members(
    weights: np.ndarray, clusters: int, init: Init, preserve_zeros: bool
) -> None:
    book = find_codebook(weights, clusters, init=init, preserve_zeros=preserve_zeros)
    assert book.assignment.shape == weights.shape
    assert book.centroids.dtype == np.float32 and book.assignment.dtype == np.int64
    assert len(np.unique(book.assignment)) == len(book.centroids) <= clusters
    assert np.all(np.diff(book.centroids) >= 0)
    for index, centroid in enumerate(book.centroids):
        members = weights[book.assignment == index].astype(np.float64)
        assert centroid == pytest.approx(members.mean(), rel=1e-6, abs=1e-30)
        assert book.fixed[index] <= np.all(members == 0)
    if preserve_zeros:
        assert np.array_equal(book.fixed[book.assignment], weights == 0)
        assert not restored(book)[weights == 0].any()
    else:
        assert not book.fixed.any()


@settings(max_examples=50)
@given(WEIGHTS, st.sampled_from(INITS))
def test_weights_that_are_few_enough_stay_as_they_are(weights: np.ndarray, init: Init) -> None:
    assert np.array_equal(restored(find_codebook(weights, 600, init=init)), weights)


@pytest.mark.parametrize("init", INITS)
def test_clear_clusters_are_found(init: Init) -> None:
    random = np.random.default_rng(3)
    centres = np.array([-3, -1, 0.5, 4], np.float32)
    members = random.integers(4, size=(20, 30))
    weights = centres[members] + random.normal(0, 0.01, members.shape).astype(np.float32)
    assert np.array_equal(find_codebook(weights, 4, init=init).assignment, members)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("clusters", [2, 16, 256])
def test_no_weight_is_nearer_to_another_centroid(init: Init, clusters: int) -> None:
    """Where k-means has come to rest; heavy tails leave some of the first centroids empty."""
    weights = np.random.default_rng(1).standard_t(3, size=(50, 60)).astype(np.float32)
    book = find_codebook(weights, clusters, init=init)
    assert len(book.centroids) == clusters
    distances = np.abs(weights[..., None] - book.centroids)
    assert np.array_equal(np.abs(weights - restored(book)), distances.min(axis=-1))


@pytest.mark.parametrize("init", INITS)
def test_the_error_is_near_the_best_there_is(init: Init) -> None:
    """Max, "Quantizing for minimum distortion" (1960): 16 levels of a normal distribution."""
    weights = np.random.default_rng(1).normal(size=(50, 600)).astype(np.float32)
    book = find_codebook(weights, 16, init=init)
    assert np.mean((weights - restored(book)) ** 2) < 1.1 * 0.009497


def test_the_seed_decides_k_means_plus_plus() -> None:
    weights = np.random.default_rng(2).normal(size=999)
    one, same, other = (
        find_codebook(weights, 8, init="k-means++", seed=seed).centroids for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_a_kernel_of_zeros() -> None:
    book = find_codebook(np.zeros((3, 4)), 2)
    assert book.centroids.tolist() == [0.0] and book.fixed.tolist() == [True]


@pytest.mark.parametrize(
    ("distinct", "bits"), [(1, 0), (2, 1), (3, 2), (16, 4), (17, 5), (32, 5), (256, 8)]
)
def test_packed_bits(distinct: int, bits: int) -> None:
    assert packed_bits(1000, distinct) == 1000 * bits + distinct * 32
    assert packed_bits(1000, distinct, value_bits=8) == 1000 * bits + distinct * 8
