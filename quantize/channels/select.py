"""Which channels to remove so that a target is met."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekiln.quantize.channels.costs import Costs
from edgekiln.quantize.channels.groups import ChannelGroup, NothingToRemoveError
from edgekiln.quantize.channels.importance import Scores
from edgekiln.quantize.channels.plan import ChannelPruning

Mask = npt.NDArray[np.bool_]
Order = Literal["importance", "importance_per_cost", "share"]


def fewest_channels(size: int, plan: ChannelPruning) -> int:
    """Returns the least number of channels that a plan leaves in a group of ``size`` channels."""
    # A share like 0.1 of 30 is not quite 3 in floating point.
    number = max(plan.min_channels, math.ceil(plan.min_share * size - 1e-9))
    return min(math.ceil(number / plan.round_to) * plan.round_to, size)


class Chooser:
    """Removes the least important channels of groups.

    Args:
        groups: The groups whose channels may go.
        scores: float64 [channels], comparable between groups.
        fewest: Channels to leave at least, for each group; see `fewest_channels`.
        round_to: Channels are left in multiples of this, or all.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        scores: Scores,
        fewest: Sequence[int],
        round_to: int,
    ) -> None:
        self._scores = scores
        self._fewest = fewest
        self._round_to = round_to
        self._width = len(scores)
        self._orders = [
            group.channels[np.argsort(scores[group.channels], kind="stable")] for group in groups
        ]

    def keep_counts(self, wanted: Mapping[int, float]) -> Mask:
        """Returns what is left, bool [channels], when groups keep about ``wanted`` channels.

        Args:
            wanted: Channels to keep, by the place of the group; rounded to the nearest number
                that is allowed, the larger of two.
        """
        counts = [len(order) for order in self._orders]
        for place, number in wanted.items():
            multiple = math.floor(number / self._round_to + 0.5) * self._round_to
            counts[place] = min(max(multiple, self._fewest[place]), counts[place])
        return self._mask(counts)

    def reach(self, costs: Costs, target: int, order: Order) -> Mask:
        """Removes channels, a step of ``round_to`` at a time, until the cost is at most ``target``.

        Args:
            costs: What channels cost.
            target: The cost to reach.
            order: Which group gives up the next step: ``importance``: the one in which its
                channels' mean importance is least; ``importance_per_cost``: the sum of their
                importances divided by what the step saves at that point; ``share``: the one
                with the largest share of its channels left after it.

        Raises:
            NothingToRemoveError: The target cannot be reached.
        """
        self._require_reachable(costs, target)
        counts = [len(channels) for channels in self._orders]
        now = costs.total(self._mask(counts))
        queue: list[tuple[float, int]] = []
        for place in range(len(counts)):
            self._push(queue, place, counts, costs, order)
        while now > target:
            given, place = heapq.heappop(queue)
            if order == "importance_per_cost":
                # What a step saves has fallen since, if other groups have shrunk.
                priority = self._priority(place, counts, costs, order)
                if queue and priority > max(given, queue[0][0]):
                    heapq.heappush(queue, (priority, place))
                    continue
            counts[place] = self._next(place, counts[place])
            now = costs.total(self._mask(counts))
            self._push(queue, place, counts, costs, order)
        return self._mask(counts)

    def _push(
        self,
        queue: list[tuple[float, int]],
        place: int,
        counts: list[int],
        costs: Costs,
        order: Order,
    ) -> None:
        if counts[place] > self._fewest[place]:
            priority = self._priority(place, counts, costs, order)
            heapq.heappush(queue, (priority, place))

    def _next(self, place: int, count: int) -> int:
        """Returns the largest allowed number of channels below ``count``."""
        return max((count - 1) // self._round_to * self._round_to, self._fewest[place])

    def _priority(self, place: int, counts: list[int], costs: Costs, order: Order) -> float:
        channels = self._orders[place]
        after = self._next(place, counts[place])
        if order == "share":
            return -after / len(channels)
        going = self._scores[channels[len(channels) - counts[place] : len(channels) - after]]
        if order == "importance":
            return float(np.mean(going))
        smaller = [*counts[:place], after, *counts[place + 1 :]]
        saved = costs.total(self._mask(counts)) - costs.total(self._mask(smaller))
        return float(np.sum(going)) / max(saved, 1)

    def _mask(self, counts: Sequence[int]) -> Mask:
        kept = np.ones(self._width, np.bool_)
        for order, count in zip(self._orders, counts, strict=True):
            kept[order[: len(order) - count]] = False
        return kept

    def _require_reachable(self, costs: Costs, target: int) -> None:
        smallest = costs.total(self._mask(self._fewest))
        if smallest > target:
            raise NothingToRemoveError(
                "channels: the target cannot be reached",
                got=f"{target:,} {costs.unit}",
                allowed=f"{smallest:,} or more, with the fewest channels in every group",
                hint="lower min_channels, min_share or round_to, or exclude fewer layers",
            )
