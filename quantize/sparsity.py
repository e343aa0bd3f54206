"""Which weights to prune and when: the arithmetic of magnitude pruning, with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError


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
        _require(0 <= self.final_sparsity < 1, "final_sparsity", self.final_sparsity, "[0, 1)")
        _require(
            0 <= self.initial_sparsity <= self.final_sparsity,
            "initial_sparsity",
            self.initial_sparsity,
            f"0 to final_sparsity, {self.final_sparsity}",
        )
        _require(self.begin_step >= 0, "begin_step", self.begin_step, "0 or more")
        _require(
            self.end_step >= self.begin_step,
            "end_step",
            self.end_step,
            f"begin_step, {self.begin_step}, or more",
        )
        _require(self.frequency >= 1, "frequency", self.frequency, "1 or more")
        _require(0 < self.power < float("inf"), "power", self.power, "above 0")

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
        if not self.begin_step <= step <= self.end_step:
            return False
        return step == self.end_step or (step - self.begin_step) % self.frequency == 0


def _require(holds: bool, name: str, got: float, allowed: str) -> None:
    if not holds:
        raise BadInputError(f"pruning: {name} is out of range", got=got, allowed=allowed)


def magnitude_mask(weights: npt.ArrayLike, sparsity: float) -> npt.NDArray[np.bool_]:
    """Returns which weights to keep: all but the ``round(sparsity * size)`` smallest.

    Among equal magnitudes the first ones in memory go, so the count is exact.

    Args:
        weights: Any shape.
        sparsity: Share to prune, in [0, 1].

    Returns:
        bool, of the shape of ``weights``; False where the weight becomes zero.
    """
    magnitudes = np.abs(np.asarray(weights))
    keep = np.ones(magnitudes.size, dtype=np.bool_)
    pruned = round(sparsity * magnitudes.size)
    keep[np.argsort(magnitudes, axis=None, kind="stable")[:pruned]] = False
    return keep.reshape(magnitudes.shape)
