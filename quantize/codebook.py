"""Few distinct weights: finding centroids and counting bits, without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Init: TypeAlias = Literal["linear", "density", "k-means++"]

Values: TypeAlias = npt.NDArray[np.float64]

# Where the last moves of k-means are far below what a weight means.
_MOST_ROUNDS = 1000


@dataclass(frozen=True)
class Codebook:
    """The distinct values of a tensor, and which of them each element has.

    Attributes:
        centroids: float32 [k], rising.
        assignment: int64, of the shape of the weights: indices into ``centroids``.
        fixed: bool [k]; True for the centroid of weights that are zero and stay so.
    """

    centroids: npt.NDArray[np.float32]
    assignment: npt.NDArray[np.int64]
    fixed: npt.NDArray[np.bool_]


def find_codebook(
    weights: npt.ArrayLike,
    clusters: int,
    *,
    init: Init = "linear",
    preserve_zeros: bool = True,
    seed: int = 0,
) -> Codebook:
    """Clusters weights by k-means: each to the nearest centroid, each centroid their mean.

    Minimises the sum of (w - c)**2 within clusters, formula 2 of Han et al., "Deep Compression"
    (arXiv:1510.00149), section 3.1.

    Args:
        weights: Any shape, finite.
        clusters: Most distinct values, k, 2 or more. There are fewer where the weights have
            fewer themselves.
        init: Where the centroids start, section 3.2: "linear": evenly between the smallest and
            the largest weight, which gives the rare large ones centroids of their own;
            "density": at evenly spaced quantiles; "k-means++": at random weights far from each
            other (Arthur and Vassilvitskii, 2007).
        preserve_zeros: Gives weights that are exactly zero, where there are any, a cluster of
            their own, one of the k.
        seed: Of "k-means++".
    """
    values = np.asarray(weights, dtype=np.float32)
    zeros = (values == 0) & preserve_zeros
    others = values[~zeros].astype(np.float64)
    centroids = _k_means(others, clusters - int(zeros.any()), init, seed)
    nearest = np.searchsorted(_midpoints(centroids), others, side="right")
    used, nearest = np.unique(nearest, return_inverse=True)
    means = np.bincount(nearest, weights=others) / np.bincount(nearest)
    if not zeros.any():
        assignment = nearest.reshape(values.shape)
        return Codebook(means.astype(np.float32), assignment, np.zeros(len(used), np.bool_))
    position = int(np.searchsorted(means, 0.0))
    assignment = np.full(values.shape, position)
    assignment[~zeros] = nearest + (nearest >= position)
    return Codebook(
        np.insert(means, position, 0.0).astype(np.float32),
        assignment,
        np.arange(len(used) + 1) == position,
    )


def packed_bits(weights: int, distinct: int, value_bits: int = 32) -> int:
    """Returns the bits that clustered weights take as a codebook and an index for each.

    ``n * ceil(log2(k)) + k * b``, the denominator of formula 1 of "Deep Compression"
    (arXiv:1510.00149), with n weights, k distinct values and b bits a value.

    Args:
        weights: Number of weights, n.
        distinct: Number of distinct values among them, k, zero included; 1 or more.
        value_bits: Bits of a value in the codebook, b.
    """
    return weights * (distinct - 1).bit_length() + distinct * value_bits


def _k_means(values: Values, clusters: int, init: Init, seed: int) -> Values:
    """Returns at most ``clusters`` centroids of a float64 [n], rising.

    Lloyd's iteration. In one dimension a cluster is a run of the sorted values, so that a round
    needs a binary search for each edge, and sums over runs, instead of all the distances.
    """
    points, counts = np.unique(values, return_counts=True)
    if len(points) <= clusters:
        return points
    runs = _Runs(points, counts)
    centroids = _start(points, counts, clusters, init, seed)
    for _ in range(_MOST_ROUNDS):
        moved = runs.means_near(centroids, clusters)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


class _Runs:
    """Sums over runs of sorted values.

    Args:
        points: The distinct values, float64 [n], rising.
        counts: How many of each there are, int64 [n].
    """

    def __init__(self, points: Values, counts: npt.NDArray[np.int64]) -> None:
        self._points = points
        moments = np.stack([counts, counts * points, counts * points**2])
        self._sums = np.pad(np.cumsum(moments, axis=1), [(0, 0), (1, 0)])

    def means_near(self, centroids: Values, wanted: int) -> Values:
        """Returns the mean of the values nearest to each centroid, float64, rising.

        Centroids without values are dropped. While fewer than ``wanted`` are left, the runs with
        the largest squared error get two: the mean plus and minus the standard deviation.
        """
        edges = np.searchsorted(self._points, _midpoints(centroids))
        edges = np.unique(np.concatenate([[0], edges, [len(self._points)]]))
        count, total, square = np.diff(self._sums[:, edges])
        means: Values = total / count
        missing = min(wanted - len(means), len(means))
        if not missing:
            return means
        errors = np.maximum(square - total * means, 0)
        split = np.argsort(-errors, kind="stable")[:missing]
        deviations = np.sqrt(errors[split] / count[split])
        second = means[split] + deviations
        means[split] -= deviations
        return np.sort(np.concatenate([means, second]))


def _midpoints(centroids: Values) -> Values:
    """Returns the borders between centroids; a value on a border goes to the upper one."""
    midpoints: Values = (centroids[1:] + centroids[:-1]) / 2
    return midpoints


def _start(
    points: Values, counts: npt.NDArray[np.int64], clusters: int, init: Init, seed: int
) -> Values:
    if init == "linear":
        return np.linspace(points[0], points[-1], clusters)
    if init == "density":
        shares = (np.cumsum(counts) - counts / 2) / counts.sum()
        return np.interp((np.arange(clusters) + 0.5) / clusters, shares, points)
    from sklearn.cluster import kmeans_plusplus

    chosen, _ = kmeans_plusplus(points[:, None], clusters, sample_weight=counts, random_state=seed)
    return np.sort(chosen[:, 0])
