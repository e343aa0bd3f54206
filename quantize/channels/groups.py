"""Groups of channels: those that the same layers make, of which any number may go."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.tracer import Trace

GroupKey = tuple[tuple[int, int], ...]
"""(number of a maker, how many of its lanes make up one channel), in the makers' order."""


class NothingToRemoveError(BadInputError):
    """A target that no choice of channels reaches, or a model of which none can be removed."""


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that are made by the same layers.

    Attributes:
        key: What sets the group apart; the same in every smaller model made from this one.
        makers: Paths of the layers that make them. Each channel of the group has lanes in
            every one of these, so a channel goes from all of them or from none.
        channels: intp [channels], their numbers in the trace, in the order of the first maker.
        pinned: Why all of them stay, or empty.
    """

    key: GroupKey
    makers: tuple[str, ...]
    channels: npt.NDArray[np.intp]
    pinned: str = ""

    @property
    def name(self) -> str:
        """The makers, for messages."""
        return " + ".join(self.makers)


def find_groups(trace: Trace, exclude: Iterable[str] = ()) -> tuple[ChannelGroup, ...]:
    """Returns the groups of a model's channels, in the order in which they are made.

    Args:
        trace: The model with its channels.
        exclude: Paths of layers; the channels they make are pinned.

    Raises:
        BadInputError: An excluded layer makes no channels.
    """
    excluded = frozenset(exclude)
    require_makers(trace, excluded, "no such layer to exclude")
    members: dict[tuple[GroupKey, bool], list[int]] = {}
    for channel, makers in enumerate(trace.channels.makers):
        if makers:
            is_pinned = bool(trace.channels.pins[channel])
            members.setdefault((makers, is_pinned), []).append(channel)
    groups = []
    for (makers, _), channels in members.items():
        paths = tuple(trace.layers[number].path for number, _ in makers)
        pinned = trace.channels.pins[channels[0]]
        if excluded.intersection(paths):
            pinned = pinned or "it is excluded"
        groups.append(ChannelGroup(makers, paths, np.array(channels, np.intp), pinned))
    return tuple(groups)


def require_makers(trace: Trace, names: Iterable[str], what: str) -> None:
    """Checks that layers of these names make channels.

    Raises:
        BadInputError: One does not; ``what`` says what is wrong.
    """
    known = [layer.path for layer in trace.layers if len(layer.makes)]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise BadInputError(
            f"channels: {what}",
            where=trace.model.name,
            got=", ".join(unknown),
            allowed=textwrap.shorten(", ".join(known), 300, placeholder=" …"),
        )


def prunable(trace: Trace, groups: Sequence[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """Returns the groups whose channels may go.

    Raises:
        NothingToRemoveError: There are none; the message says why for each.
    """
    free = tuple(group for group in groups if not group.pinned and len(group.channels) > 1)
    if not free:
        reasons = [f"{group.name}: {group.pinned or 'one channel'}" for group in groups]
        raise NothingToRemoveError(
            "channels: no channel can be removed",
            where=trace.model.name,
            got=textwrap.shorten("; ".join(reasons) or "no layer that makes any", 400),
        )
    return free
