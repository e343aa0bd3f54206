"""What each round of pruning is to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.costs import Costs, Measure
from edgekiln.quantize.channels.groups import (
    ChannelGroup,
    GroupKey,
    find_groups,
    prunable,
    require_makers,
)
from edgekiln.quantize.channels.plan import ChannelPruning
from edgekiln.quantize.channels.select import fewest_channels
from edgekiln.quantize.channels.tracer import Trace


@dataclass(frozen=True)
class Goal:
    """What one round is to reach.

    Attributes:
        fewest: Channels to leave at least in each group, by its key.
        measure: What is to be at most ``amount``; None where ``counts`` are given instead.
        amount: Steps or bytes.
        counts: Channels to leave, not rounded yet, by the key of a group.
    """

    fewest: Mapping[GroupKey, int]
    measure: Measure | None
    amount: int = 0
    counts: Mapping[GroupKey, float] = field(default_factory=dict)


def goals_of(traced: Trace, plan: ChannelPruning) -> list[Goal]:
    """Returns the goal of each round; what is left falls by the same factor from each to the next.

    With the share ``r`` wanted after ``n`` rounds, round ``i`` leaves ``r ** (i / n)``.

    Raises:
        BadInputError: Nothing may go, or the plan names a layer that it cannot.
    """
    shares = [number / plan.rounds for number in range(1, plan.rounds + 1)]
    kept = _kept_shares(traced, plan)
    fewest = fewest_of(traced, plan)
    everything = np.ones(traced.channels.count, np.bool_)
    if plan.macs_ratio is not None:
        macs = Costs(traced, "macs").total(everything)
        return [Goal(fewest, "macs", int(macs * plan.macs_ratio**share)) for share in shares]
    if plan.flash_bytes is not None:
        size = Costs(traced, "bytes").total(everything)
        ratio = min(1.0, plan.flash_bytes / size)
        amounts = [max(int(size * ratio**share), plan.flash_bytes) for share in shares]
        return [Goal(fewest, "bytes", amount) for amount in amounts]
    sizes = {group.key: len(group.channels) for group in free_groups(traced, plan)}
    return [
        Goal(fewest, None, counts={key: sizes[key] * kept[key] ** share for key in kept})
        for share in shares
    ]


def fewest_of(traced: Trace, plan: ChannelPruning) -> dict[GroupKey, int]:
    """Returns the channels to leave at least in each group that may shrink, by its key."""
    return {
        group.key: fewest_channels(len(group.channels), plan) for group in free_groups(traced, plan)
    }


def free_groups(traced: Trace, plan: ChannelPruning) -> tuple[ChannelGroup, ...]:
    """Returns the groups that may shrink under a plan.

    Raises:
        BadInputError: An excluded layer makes no channels, or there is no such group.
    """
    return prunable(traced, find_groups(traced, plan.exclude))


def _kept_shares(traced: Trace, plan: ChannelPruning) -> dict[GroupKey, float]:
    """Returns the share of each group to keep, by its key.

    Raises:
        BadInputError: A layer makes no channels, none that may go, or two layers whose channels
            are tied are to keep different shares.
    """
    require_makers(traced, plan.keep, "no such layer to keep a share of")
    kept: dict[GroupKey, float] = {}
    for name, share in plan.keep.items():
        own = [group for group in free_groups(traced, plan) if name in group.makers]
        if not own:
            pinned = [g for g in find_groups(traced, plan.exclude) if name in g.makers]
            raise BadInputError(
                "channels: none of the layer's channels can be removed",
                where=f"{traced.model.name}, {name}",
                got=pinned[0].pinned if pinned else "",
            )
        for group in own:
            if kept.setdefault(group.key, share) != share:
                raise BadInputError(
                    "channels: layers whose channels are tied are to keep different shares",
                    where=f"{traced.model.name}, {group.name}",
                    got=f"{kept[group.key]} and {share}",
                )
    return kept
