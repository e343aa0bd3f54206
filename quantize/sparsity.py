"""Which weights to prune and when: schedules, patterns and masks, with numpy alone.

A mask is True where a weight stays. Everywhere equal scores go in the order of memory, the first
ones first, so that counts are exact.

N:M and block patterns group weights along a kernel's *input axis*, the one that the layer sums
over. An int8 kernel stores its filters as OHWI, hence reads consecutive inputs of one output
consecutively, and can skip such a group as a whole.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError

Mask: TypeAlias = npt.NDArray[np.bool_]
Scores: TypeAlias = npt.NDArray[np.float32]

# Takes 1 - 3/4 times 4 for 1, and not for a little more.
_ROUNDING = 1e-9


def _require(holds: bool, name: str, got: object, allowed: str) -> None:
    if not holds:
        raise BadInputError(f"pruning: {name} is out of range", got=got, allowed=allowed)


@dataclass(frozen=True)
class ConstantSchedule:
    """The whole sparsity at once.

    Attributes:
        final_sparsity: Share of zeros from ``begin_step`` on, in [0, 1).
        begin_step: Step, counted from 0, of the first pruning.
        end_step: Last step at which the masks are drawn anew, at least ``begin_step``, which
            None stands for. A redraw lets in those weights that the one step of the
            optimizer before it has made larger than others which were kept.
        frequency: Steps between two updates of the masks.

    Raises:
        BadInputError: A value is out of its range.
    """

    final_sparsity: float
    begin_step: int = 0
    end_step: int | None = None
    frequency: int = 100

    def __post_init__(self) -> None:
        _check_steps(self.final_sparsity, self.begin_step, self.last_step, self.frequency)

    @property
    def last_step(self) -> int:
        """The step of the last update."""
        return self.begin_step if self.end_step is None else self.end_step

    def sparsity_at(self, step: int) -> float:
        """Returns the share of zeros wanted after ``step`` steps."""
        return self.final_sparsity if step >= self.begin_step else 0.0

    def updates_at(self, step: int) -> bool:
        """Tells whether the masks are to be drawn anew after ``step`` steps."""
        return _updates_at(self, step)

    def with_final(self, sparsity: float) -> ConstantSchedule:
        """Returns the same schedule with another ``final_sparsity``."""
        return replace(self, final_sparsity=sparsity)


@dataclass(frozen=True)
class PolynomialSchedule:
    """Sparsity that rises fast at first and slowly at the end.

    ``s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** power``, formula 1
    of Zhu and Gupta, "To prune, or not to prune" (arXiv:1710.01878), where the power is 3.

    Attributes:
        final_sparsity: Share of zeros from ``end_step`` on, in [0, 1).
        begin_step: Step, counted from 0, of the first pruning.
        end_step: Step at which ``final_sparsity`` is reached, at least ``begin_step``.
        frequency: Steps between two updates of the masks.
        initial_sparsity: Share of zeros at ``begin_step``, in [0, ``final_sparsity``].
        power: Exponent, above zero.

    Raises:
        BadInputError: A value is out of its range.
    """

    final_sparsity: float
    begin_step: int
    end_step: int
    frequency: int = 100
    initial_sparsity: float = 0.0
    power: float = 3.0

    def __post_init__(self) -> None:
        _check_steps(self.final_sparsity, self.begin_step, self.end_step, self.frequency)
        _require(
            0 <= self.initial_sparsity <= self.final_sparsity,
            "initial_sparsity",
            self.initial_sparsity,
            f"0 to final_sparsity, {self.final_sparsity}",
        )
        _require(0 < self.power < float("inf"), "power", self.power, "above 0")

    @property
    def last_step(self) -> int:
        """The step of the last update."""
        return self.end_step

    def sparsity_at(self, step: int) -> float:
        """Returns the share of zeros wanted after ``step`` steps."""
        if step < self.begin_step:
            return 0.0
        if step >= self.end_step:
            return self.final_sparsity
        left = 1.0 - (step - self.begin_step) / (self.end_step - self.begin_step)
        change = self.initial_sparsity - self.final_sparsity
        return float(self.final_sparsity + change * left**self.power)

    def updates_at(self, step: int) -> bool:
        """Tells whether the masks are to be drawn anew after ``step`` steps."""
        return _updates_at(self, step)

    def with_final(self, sparsity: float) -> PolynomialSchedule:
        """Returns the same schedule with another ``final_sparsity``, which caps the initial one."""
        initial = min(self.initial_sparsity, sparsity)
        return replace(self, final_sparsity=sparsity, initial_sparsity=initial)


_MASKS_PER_EPOCH = 10


def ramp_schedule(sparsity: float, steps: int, steps_per_epoch: int) -> PolynomialSchedule:
    """Returns the schedule that reaches ``sparsity`` after ``steps``, with ten masks an epoch."""
    frequency = math.ceil(steps_per_epoch / _MASKS_PER_EPOCH)
    return PolynomialSchedule(sparsity, begin_step=0, end_step=steps, frequency=frequency)


Schedule: TypeAlias = ConstantSchedule | PolynomialSchedule


def _check_steps(final_sparsity: float, begin_step: int, end_step: int, frequency: int) -> None:
    _require(0 <= final_sparsity < 1, "final_sparsity", final_sparsity, "[0, 1)")
    _require(begin_step >= 0, "begin_step", begin_step, "0 or more")
    allowed = f"begin_step, {begin_step}, or more"
    _require(end_step >= begin_step, "end_step", end_step, allowed)
    _require(frequency >= 1, "frequency", frequency, "1 or more")


def _updates_at(schedule: Schedule, step: int) -> bool:
    if not schedule.begin_step <= step <= schedule.last_step:
        return False
    return step == schedule.last_step or (step - schedule.begin_step) % schedule.frequency == 0


class Pattern(ABC):
    """Which weights of a kernel may become zero together."""

    @property
    @abstractmethod
    def group(self) -> int:
        """Inputs that a layer must have; one with fewer is left dense."""

    @property
    def fixed_sparsity(self) -> float | None:
        """The only sparsity that the pattern can end at, or None where any can be reached."""
        return None

    @abstractmethod
    def masks(
        self, kernels: Sequence[npt.ArrayLike], axes: Sequence[int], sparsity: float
    ) -> list[Mask]:
        """Returns the masks of kernels that share one sparsity, hence one threshold.

        Args:
            kernels: Weights, each of any shape.
            axes: The input axis of each.
            sparsity: Share to prune, in [0, 1].
        """


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Each weight by itself, scored by its magnitude."""

    @property
    def group(self) -> int:
        """Any layer can be pruned."""
        return 1

    def masks(
        self, kernels: Sequence[npt.ArrayLike], axes: Sequence[int], sparsity: float
    ) -> list[Mask]:
        """Returns masks that drop the smallest weights of all the kernels together."""
        return _keep_largest([_magnitudes(kernel) for kernel in kernels], sparsity)


@dataclass(frozen=True)
class Blocks(Pattern):
    """Blocks of consecutive weights along the input axis, as 1x4 blocks.

    A block's score is the sum of its magnitudes. Where the number of inputs is no multiple of
    ``width``, the last block is shorter and its sum is scaled up to a whole block's, so that it
    is judged by what each of its weights is worth. The sparsity counts blocks.

    Attributes:
        width: Weights in a block, 2 or more.

    Raises:
        BadInputError: The width is out of its range.
    """

    width: int = 4

    def __post_init__(self) -> None:
        _require(self.width >= 2, "width of a block", self.width, "2 or more")

    @property
    def group(self) -> int:
        """A layer needs inputs for one block."""
        return self.width

    def masks(
        self, kernels: Sequence[npt.ArrayLike], axes: Sequence[int], sparsity: float
    ) -> list[Mask]:
        """Returns masks that drop the blocks with the smallest scores of all the kernels."""
        rows = [_rows(kernel, axis) for kernel, axis in zip(kernels, axes, strict=True)]
        kept = _keep_largest([block_scores(row, self.width) for row in rows], sparsity)
        return [
            np.moveaxis(np.repeat(keep, self.width, axis=-1)[..., : row.shape[-1]], -1, axis)
            for keep, row, axis in zip(kept, rows, axes, strict=True)
        ]


@dataclass(frozen=True)
class NofM(Pattern):
    """At most n of every m consecutive weights along the input axis are not zero.

    In each group the n largest magnitudes stay. Where the number of inputs is no multiple of
    m, the last group has r < m weights, of which ceil(r * n / m) stay: the same share, rounded
    up, which is never more than n. 2:4 is the pattern of Mishra et al., "Accelerating Sparse
    Deep Neural Networks" (arXiv:2104.08378), section 3.

    While a schedule's sparsity s rises, ceil(m * (1 - s)) weights of a group stay, so the
    groups lose one weight after another.

    Attributes:
        n: Weights that stay in a group, 1 to m - 1.
        m: Weights in a group, 2 or more.

    Raises:
        BadInputError: A value is out of its range.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        _require(self.m >= 2, "m of n:m", self.m, "2 or more")
        _require(1 <= self.n < self.m, "n of n:m", self.n, f"1 to {self.m - 1}")

    @property
    def group(self) -> int:
        """A layer needs inputs for one whole group."""
        return self.m

    @property
    def fixed_sparsity(self) -> float:
        """The share of zeros in a whole group, 1 - n/m."""
        return 1.0 - self.n / self.m

    def masks(
        self, kernels: Sequence[npt.ArrayLike], axes: Sequence[int], sparsity: float
    ) -> list[Mask]:
        """Returns masks that drop the smallest weights of each group."""
        keep = max(self.n, math.ceil(self.m * (1.0 - sparsity) - _ROUNDING))
        return [
            n_of_m_mask(kernel, keep, self.m, axis=axis)
            for kernel, axis in zip(kernels, axes, strict=True)
        ]


def magnitude_mask(weights: npt.ArrayLike, sparsity: float) -> Mask:
    """Returns which weights to keep: all but the ``round(sparsity * size)`` smallest.

    Args:
        weights: Any shape.
        sparsity: Share to prune, in [0, 1].

    Returns:
        bool, of the shape of ``weights``; False where the weight becomes zero.
    """
    return _keep_largest([_magnitudes(weights)], sparsity)[0]


def n_of_m_mask(weights: npt.ArrayLike, n: int, m: int, *, axis: int) -> Mask:
    """Returns which weights to keep: the n largest of every m consecutive ones along an axis.

    Of a shorter last group of r weights, ceil(r * n / m) are kept.

    Args:
        weights: Any shape.
        n: Weights to keep in a group, 0 to ``m``.
        m: Weights in a group.
        axis: Where the groups lie; the input axis of the kernel.

    Returns:
        bool, of the shape of ``weights``.
    """
    rows = _rows(weights, axis)
    length = rows.shape[-1]
    groups = math.ceil(length / m)
    # What fills up the last group ranks below every weight.
    padding = [(0, 0)] * (rows.ndim - 1) + [(0, groups * m - length)]
    grouped = np.pad(rows, padding, constant_values=-1.0).reshape(*rows.shape[:-1], groups, m)
    order = np.argsort(grouped, axis=-1, kind="stable")
    ranks = np.argsort(order, axis=-1, kind="stable")
    sizes = np.minimum(length - m * np.arange(groups), m)
    kept = -(-sizes * n // m)
    keep = (ranks >= m - kept[:, None]).reshape(*rows.shape[:-1], groups * m)
    return np.moveaxis(keep[..., :length], -1, axis)


def block_scores(rows: Scores, width: int) -> Scores:
    """Returns the sum of magnitudes in each block of ``width`` weights along the last axis.

    Args:
        rows: Magnitudes, float32 [..., inputs].
        width: Weights in a block.

    Returns:
        float32 [..., blocks]; the sum of a shorter last block is scaled up by its length.
    """
    starts = np.arange(0, rows.shape[-1], width)
    sizes = np.minimum(rows.shape[-1] - starts, width)
    scales = (width / sizes).astype(np.float32)
    scores: Scores = np.add.reduceat(rows, starts, axis=-1) * scales
    return scores


def _keep_largest(scores: Sequence[Scores], sparsity: float) -> list[Mask]:
    """Returns where the scores stay, less the ``round(sparsity * count)`` smallest of all."""
    together = np.concatenate([one.ravel() for one in scores])
    pruned = round(sparsity * together.size)
    keep = np.ones(together.size, dtype=np.bool_)
    if pruned:
        threshold = np.partition(together, pruned - 1)[pruned - 1]
        keep = together > threshold
        ties = np.flatnonzero(together == threshold)
        keep[ties[pruned - np.count_nonzero(together < threshold) :]] = True
    ends = np.cumsum([one.size for one in scores])[:-1]
    parts = np.split(keep, ends)
    return [part.reshape(one.shape) for part, one in zip(parts, scores, strict=True)]


def _magnitudes(weights: npt.ArrayLike) -> Scores:
    return np.abs(np.asarray(weights, dtype=np.float32))


def _rows(weights: npt.ArrayLike, axis: int) -> Scores:
    rows: Scores = np.moveaxis(_magnitudes(weights), axis, -1)
    return rows


def parse_pattern(text: str) -> Pattern:
    """Returns the pattern that a plan names: ``unstructured``, ``2:4``, ``1x4``.

    Raises:
        BadInputError: It is none.
    """
    if text == "unstructured":
        return Unstructured()
    if match := re.fullmatch(r"(\d{1,3}):(\d{1,3})", text):
        return NofM(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"1x(\d{1,3})", text):
        return Blocks(int(match[1]))
    raise BadInputError(
        "pruning: unknown pattern", got=text or "''", allowed="unstructured, n:m or 1xw"
    )
