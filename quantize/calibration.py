"""Which range of a tensor to quantize, chosen from its histogram.

A wide range rounds coarsely, a narrow one clips. Every function here returns a range that holds
zero, as affine quantization needs it, and lies within the values seen.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError
from edgekiln.quantize.histogram import Histogram

Reals = npt.NDArray[np.float64]

#: Searches go down to a 1024th of the range, in steps of a quarter of an octave, then refine.
_SHRINKS = 2.0 ** (-np.arange(41) / 4)
_REFINEMENTS = (np.linspace(-0.2, 0.2, 21), np.linspace(-0.02, 0.02, 11))
_ROUNDS = 8
_ENTROPY_CANDIDATES = 512


class CalibrationMethod(enum.StrEnum):
    """How to choose a range."""

    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"
    ENTROPY = "entropy"


class Range(NamedTuple):
    """Real values that the codes stand for: ``low <= 0 <= high``."""

    low: float
    high: float


def choose_range(
    histogram: Histogram,
    method: CalibrationMethod,
    *,
    bits: int,
    symmetric: bool = False,
    percentile: float = 99.99,
) -> Range:
    """Returns the range to quantize a tensor over.

    Args:
        histogram: Of the tensor over the representative set.
        method: How to choose.
        bits: Bits of a code.
        symmetric: Whether zero must have the code 0, as in int16 activations.
        percentile: Percent of the values that are not clipped, for `CalibrationMethod.PERCENTILE`.

    Raises:
        BadInputError: ``bits`` or ``percentile`` is out of its range.
    """
    if method == CalibrationMethod.PERCENTILE:
        chosen = percentile_range(histogram, percentile)
    elif method == CalibrationMethod.MSE:
        chosen = mse_range(histogram, bits, symmetric=symmetric)
    elif method == CalibrationMethod.ENTROPY:
        chosen = entropy_range(histogram, bits)
    else:
        chosen = minmax_range(histogram)
    if symmetric:
        reach = max(-chosen.low, chosen.high)
        return Range(-reach, reach)
    return chosen


def minmax_range(histogram: Histogram) -> Range:
    """Returns the range from the smallest to the largest value seen."""
    return Range(histogram.minimum, histogram.maximum)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Returns the range outside which lie ``100 - percentile`` percent of the values.

    Half of them lie at each end, or all at one end where no value has the other sign. Within a
    bin the values are taken to be spread evenly.

    Raises:
        BadInputError: ``percentile`` is not in (50, 100].
    """
    if not 50.0 < percentile <= 100.0:
        raise BadInputError("percentile is out of range", got=percentile, allowed="(50, 100]")
    clipped = (1.0 - percentile / 100.0) * histogram.samples
    if histogram.minimum < 0.0 < histogram.maximum:
        clipped /= 2.0
    below, above = _magnitudes(histogram)
    low = 0.0 - _cut_tail(below, clipped) * histogram.width
    high = _cut_tail(above, clipped) * histogram.width
    return Range(max(low, histogram.minimum), min(high, histogram.maximum))


def mse_range(histogram: Histogram, bits: int, *, symmetric: bool = False) -> Range:
    """Returns the range with the least mean squared error, as far as a search finds it.

    The search shrinks both ends together, then each in turn for as long as that helps. The
    error is never larger than that of `minmax_range`.

    Raises:
        BadInputError: ``bits`` is out of its range.
    """
    full = minmax_range(histogram)
    if full.low == full.high:
        return full

    def errors(ranges: Reals) -> Reals:
        return quantization_errors(histogram, ranges, bits, symmetric=symmetric)

    best = _shrink(errors, full, full, (True, True))
    for _ in range(_ROUNDS if full.low < 0.0 < full.high and not symmetric else 0):
        before = best
        for ends in ((False, True), (True, False)):
            best = _shrink(errors, full, best, ends)
        if best == before:
            break
    return best


def entropy_range(histogram: Histogram, bits: int) -> Range:
    """Returns the range that loses the least information.

    The threshold is the one at which the clipped distribution and its quantized form have the
    least Kullback-Leibler divergence: S. Migacz, "8-bit Inference with TensorRT", GTC 2017,
    slides 31 to 36. It is found for magnitudes; values of both signs share half of the codes
    each, while values of one sign (after a ReLU) have all of them. Where the bins are too few to
    tell codes apart, as with 16 bits, this is `minmax_range`.

    Raises:
        BadInputError: ``bits`` is out of its range.
    """
    _check_bits(bits)
    below, above = _magnitudes(histogram)
    one_sided = not (histogram.minimum < 0.0 < histogram.maximum)
    counts = np.zeros(max(len(below), len(above)), np.int64)
    counts[: len(below)] += below
    counts[: len(above)] += above
    threshold = histogram.width * _entropy_threshold(counts, 2 ** (bits if one_sided else bits - 1))
    return Range(max(histogram.minimum, -threshold), min(histogram.maximum, threshold))


def quantization_errors(
    histogram: Histogram, ranges: npt.ArrayLike, bits: int, *, symmetric: bool = False
) -> Reals:
    """Returns the mean squared error of quantizing a tensor over each of several ranges.

    The values are taken to be spread evenly within each bin, so bins need not be narrower than
    the steps of the codes. With ``n`` the code of ``x`` less the zero point, and
    ``u = x / s - n``, the integral of ``(x - n * s) ** 2`` is ``s ** 3 * (n / 12 + u ** 3 / 3)``,
    clipping included.

    Args:
        histogram: Of the tensor.
        ranges: float64 [N, 2], ``low <= 0 <= high``, not both zero.
        bits: Bits of a code.
        symmetric: As in `choose_range`.

    Returns:
        float64 [N].

    Raises:
        BadInputError: ``bits`` is out of its range.
    """
    _check_bits(bits)
    low, high = np.asarray(ranges, np.float64).T[..., np.newaxis]
    if symmetric:
        last = 2.0 ** (bits - 1) - 1.0
        first = -last
        scale = np.maximum(-low, high) / last
    else:
        scale = (high - low) / (2.0**bits - 1.0)
        first = -np.rint(-low / scale)
        last = first + 2.0**bits - 1.0
    steps = histogram.edges / scale
    codes = np.clip(np.rint(steps), first, last)
    integrals = scale**3 * (codes / 12.0 + (steps - codes) ** 3 / 3.0)
    means = np.diff(integrals, axis=-1) / histogram.width
    errors: Reals = means @ histogram.counts / max(histogram.samples, 1)
    return errors


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 16:
        raise BadInputError("bits of a code are out of range", got=bits, allowed="2 to 16")


def _magnitudes(
    histogram: Histogram,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the bins below and above zero, each from zero outwards."""
    below = histogram.counts[: -histogram.first_bin][::-1]
    return below, histogram.counts[-histogram.first_bin :]


def _cut_tail(counts: npt.NDArray[np.int64], clipped: float) -> float:
    """Returns where the bins must end so that ``clipped`` values lie beyond, in bins."""
    outside = np.cumsum(counts[::-1])
    whole = int(np.searchsorted(outside, clipped, side="right"))
    if whole == len(counts):
        return 0.0
    left = clipped - (outside[whole - 1] if whole else 0)
    return float(len(counts) - whole - left / counts[len(counts) - 1 - whole])


def _shrink(
    errors: Callable[[Reals], Reals], full: Range, start: Range, ends: tuple[bool, bool]
) -> Range:
    """Returns the best range with one or both ends of ``full`` shrunk, or ``start``."""
    moved = np.asarray(ends)

    def candidates(shrinks: Reals) -> Reals:
        return np.where(moved, shrinks[:, np.newaxis] * np.asarray(full), np.asarray(start))

    shrinks = _SHRINKS
    for refinement in (*_REFINEMENTS, np.zeros(1)):
        tried = candidates(shrinks)
        best = shrinks[int(np.argmin(errors(tried)))]
        shrinks = np.minimum(best * (1.0 + refinement), 1.0)
    found = candidates(np.array([best]))
    before, after = errors(np.stack([np.asarray(start), found[0]]))
    return Range(*(float(end) for end in found[0])) if after < before else start


def _entropy_threshold(counts: npt.NDArray[np.int64], levels: int) -> int:
    """Returns how many of the bins of magnitudes to keep."""
    bins = len(counts)
    if bins <= levels:
        return bins
    stride = max(1, (bins - levels) // _ENTROPY_CANDIDATES)
    candidates: list[int] = [*range(levels, bins, stride), bins]
    # Among equals the widest clips least.
    return min(candidates, key=lambda kept: (_divergence(counts, kept, levels), -kept))


def _divergence(counts: npt.NDArray[np.int64], kept: int, levels: int) -> float:
    """Returns the divergence between ``kept`` bins with the clipped ones, and ``levels`` levels.

    It is the generalized one, ``sum(p log(p / q) - p + q)``, of shares of all values. Scaled up
    to a sum of 1, the few values that are left inside would make up for those that are clipped,
    and to clip all of them would lose nothing.
    """
    inside = counts[:kept]
    reference = inside.astype(np.float64)
    reference[-1] += counts[kept:].sum()
    total = reference.sum()
    level = np.arange(kept) * levels // kept
    filled = inside > 0
    totals = np.bincount(level, inside, levels)
    shares = np.bincount(level, filled, levels)
    spread = np.where(filled, totals[level] / np.maximum(shares[level], 1), 0.0)
    seen = reference > 0.0
    # Clipped values may end up in an empty bin, which would make the divergence infinite; so
    # that bin counts as half a value.
    spread[-1] = max(spread[-1], 0.5)
    p, q = reference[seen] / total, spread[seen] / total
    return float(np.sum(p * np.log(p / q) - p + q))
