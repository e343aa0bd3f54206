"""Histograms of tensors, collected batch by batch, with numpy alone.

The bins lie on a grid of a power of two through zero, the finest one on which the values seen so
far fill at most `MAX_BINS` bins. A wider grid joins bins whole, so a histogram depends on the
values alone: not on their order, nor on how they came in batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError

#: More than half of them are used. TensorRT's calibrator takes 2048.
MAX_BINS = 2048

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Histogram:
    """How often which values were seen.

    Zeros are counted apart: they are many after a ReLU, and no range quantizes them wrong.

    Attributes:
        counts: int64 [bins]; bin ``i`` holds the values in
            ``[(first_bin + i) * width, (first_bin + i + 1) * width)``, less exact zeros.
        first_bin: Number of the first bin on the grid, 0 or less; the bins reach over zero.
        width: Width of a bin, a power of two.
        zeros: Number of exact zeros.
        minimum: Smallest value seen, or 0.0 if all are above zero.
        maximum: Largest value seen, or 0.0 if all are below zero.
    """

    counts: Counts
    first_bin: int
    width: float
    zeros: int
    minimum: float
    maximum: float

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Edges of the bins, float64 [bins + 1]."""
        return (self.first_bin + np.arange(len(self.counts) + 1.0)) * np.float64(self.width)

    @property
    def samples(self) -> int:
        """Number of values seen, zeros among them."""
        return int(self.counts.sum()) + self.zeros


#: The histogram of nothing.
EMPTY = Histogram(np.zeros(0, np.int64), 0, 0.0, 0, 0.0, 0.0)


def make_histogram(values: npt.ArrayLike, where: object = "") -> Histogram:
    """Returns the histogram of ``values``.

    Args:
        values: Real values, any shape.
        where: Name of the tensor, for messages.

    Raises:
        BadInputError: A value is NaN or infinite.
    """
    flat = np.asarray(values, np.float64).ravel()
    if not flat.size:
        return EMPTY
    minimum, maximum = min(float(flat.min()), 0.0), max(float(flat.max()), 0.0)
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        raise BadInputError(
            "values to calibrate on hold NaN or infinity",
            where=where,
            allowed="finite values",
            hint="check the data, and that the model's training did not diverge",
        )
    kept = flat[flat != 0.0]
    if not kept.size:
        return Histogram(EMPTY.counts, 0, 0.0, flat.size, 0.0, 0.0)
    width = _grid_width(minimum, maximum)
    first, last = math.floor(minimum / width), math.floor(maximum / width)
    bins = np.floor(kept / width).astype(np.int64) - first
    counts = np.bincount(bins, minlength=last - first + 1).astype(np.int64)
    return Histogram(counts, first, width, flat.size - kept.size, minimum, maximum)


def merge(one: Histogram, other: Histogram) -> Histogram:
    """Returns the histogram of all values of both."""
    minimum, maximum = min(one.minimum, other.minimum), max(one.maximum, other.maximum)
    zeros = one.zeros + other.zeros
    if minimum == maximum == 0.0:
        return Histogram(EMPTY.counts, 0, 0.0, zeros, 0.0, 0.0)
    width = _grid_width(minimum, maximum)
    first, last = math.floor(minimum / width), math.floor(maximum / width)
    counts = np.zeros(last - first + 1, np.int64)
    for part in (one, other):
        if part.counts.size:
            bins = part.first_bin + np.arange(len(part.counts))
            # Bins are numbered to 2048 at most, so 62 halvings are as good as any more.
            halvings = min(round(math.log2(width / part.width)), 62)
            np.add.at(counts, (bins >> halvings) - first, part.counts)
    return Histogram(counts, first, width, zeros, minimum, maximum)


def collect_histograms(tensors: Iterable[tuple[str, npt.ArrayLike]]) -> dict[str, Histogram]:
    """Returns the histograms of a model's tensors over a representative set.

    Args:
        tensors: Name and values, batch after batch.

    Raises:
        BadInputError: A value is NaN or infinite; the message names the tensor.
    """
    histograms: dict[str, Histogram] = {}
    for name, values in tensors:
        part = make_histogram(values, name)
        histograms[name] = merge(histograms.get(name, EMPTY), part)
    return histograms


def _grid_width(minimum: float, maximum: float) -> float:
    """Returns the least power of two at which ``minimum`` to ``maximum`` fit into the bins."""
    width = 2.0 ** math.floor(math.log2((maximum - minimum) / MAX_BINS))
    while math.floor(maximum / width) - math.floor(minimum / width) >= MAX_BINS:
        width *= 2.0
    return width
