"""What a user asks of structured channel pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

from edgekiln.errors import BadInputError

Importance = Literal["l1", "bn_scale", "taylor"]
Normalization = Literal["l2", "mean", "none"]
Allocation = Literal["global", "uniform"]


@dataclass(frozen=True)
class ChannelPruning:
    """How many channels to remove, which ones, and in how many rounds.

    Exactly one target is given: ``macs_ratio``, ``flash_bytes``, ``keep`` or
    ``max_drop_points``.

    Attributes:
        macs_ratio: Multiply-accumulate steps to leave, as a share of the model's, in (0, 1).
        flash_bytes: Bytes to leave of the constants of the compiled 8-bit model, as
            `edgekiln.quantize.channels.count_flash_bytes` counts them.
        keep: Share of the channels to leave, in (0, 1], by the name of the layer that makes
            them. The channels of other layers stay, unless they are tied to these.
        max_drop_points: Largest loss of accuracy, in percentage points; rounds go on until
            the next one loses more. For `prune_and_finetune` only.
        importance: Which channels matter. ``l1``: sum of the magnitudes of the weights that
            make the channel (Li et al. 2017, arXiv:1608.08710). ``bn_scale``: magnitude of its
            scale in batch normalization (Liu et al. 2017, arXiv:1708.06519); channels without
            one stay. ``taylor``: first-order estimate of what the loss would change by
            (Molchanov et al. 2019, arXiv:1906.10771); needs data.
        normalization: How the importances of different groups are made comparable. ``mean``:
            divided by their mean over the group; ``l2``: divided by their l2 norm (Molchanov et
            al. 2017, arXiv:1611.06440, section 2.2), by which channels of large groups go before
            those of small ones; ``none``.
        allocation: ``global``: the least important channels of the whole model go first.
            ``uniform``: every group is left with the same share.
        per_mac: Divide the importance of channels by the multiply-accumulate steps (for
            ``flash_bytes``: bytes) saved without them, so that costly ones go first.
        round_to: Channels are left in multiples of this, or all. The compiler's fast kernels
            take input channels by four and output channels by two.
        min_channels: Channels to leave at least in every group.
        min_share: Share of the channels to leave at least in every group, in [0, 1].
        rounds: Rounds of pruning and fine-tuning; for ``max_drop_points`` at most so many.
        round_ratio: For ``max_drop_points``: the share of the multiply-accumulate steps that
            one round leaves, in (0, 1).
        epochs: Epochs of fine-tuning after each round.
        final_epochs: Epochs after the last round, instead of ``epochs``; for
            ``max_drop_points`` they follow the rounds. None: no others.
        exclude: Names of layers whose channels stay.

    Raises:
        BadInputError: A value is out of its range, or there is not exactly one target.
    """

    macs_ratio: float | None = None
    flash_bytes: int | None = None
    keep: Mapping[str, float] = field(default_factory=dict)
    max_drop_points: float | None = None
    importance: Importance = "l1"
    normalization: Normalization = "mean"
    allocation: Allocation = "global"
    per_mac: bool = False
    round_to: int = 4
    min_channels: int = 1
    min_share: float = 0.1
    rounds: int = 1
    round_ratio: float = 0.8
    epochs: int = 1
    final_epochs: int | None = None
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", MappingProxyType(dict(self.keep)))
        object.__setattr__(self, "exclude", tuple(self.exclude))
        self._require_one_target()
        self._require_ranges()
        _require_choice("importance", self.importance, get_args(Importance))
        _require_choice("normalization", self.normalization, get_args(Normalization))
        _require_choice("allocation", self.allocation, get_args(Allocation))

    def __hash__(self) -> int:
        return hash((*sorted(self.keep.items()), self.macs_ratio, self.flash_bytes, self.exclude))

    def _require_one_target(self) -> None:
        targets = {
            "macs_ratio": self.macs_ratio is not None,
            "flash_bytes": self.flash_bytes is not None,
            "keep": bool(self.keep),
            "max_drop_points": self.max_drop_points is not None,
        }
        given = [name for name, is_given in targets.items() if is_given]
        if len(given) != 1:
            raise BadInputError(
                "channels: there must be one target",
                got=" and ".join(given) or "none",
                allowed=f"one of {', '.join(targets)}",
            )

    def _require_ranges(self) -> None:
        if self.macs_ratio is not None:
            _require(0 < self.macs_ratio < 1, "macs_ratio", self.macs_ratio, "in (0, 1)")
        if self.flash_bytes is not None:
            _require(self.flash_bytes > 0, "flash_bytes", self.flash_bytes, "above 0")
        if self.max_drop_points is not None:
            in_range = 0 <= self.max_drop_points < 100
            _require(in_range, "max_drop_points", self.max_drop_points, "in [0, 100)")
        for name, share in self.keep.items():
            _require(0 < share <= 1, f"keep of {name}", share, "in (0, 1]")
        _require(self.round_to >= 1, "round_to", self.round_to, "1 or more")
        _require(self.min_channels >= 1, "min_channels", self.min_channels, "1 or more")
        _require(0 <= self.min_share <= 1, "min_share", self.min_share, "in [0, 1]")
        _require(self.rounds >= 1, "rounds", self.rounds, "1 or more")
        _require(0 < self.round_ratio < 1, "round_ratio", self.round_ratio, "in (0, 1)")
        _require(self.epochs >= 0, "epochs", self.epochs, "0 or more")
        if self.final_epochs is not None:
            _require(self.final_epochs >= 0, "final_epochs", self.final_epochs, "0 or more")


def _require(holds: bool, name: str, got: float, allowed: str) -> None:
    if not holds:
        raise BadInputError(f"channels: {name} is out of range", got=got, allowed=allowed)


def _require_choice(name: str, got: str, allowed: tuple[str, ...]) -> None:
    if got not in allowed:
        raise BadInputError(f"channels: {name} is not known", got=got, allowed=", ".join(allowed))
