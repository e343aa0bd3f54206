"""Channels as numbers: which elements of which tensors are one and the same channel.

Every tensor of a model has *lanes*: one number for each element of its last axis. A layer that
makes channels (a convolution, a dense layer) hands out new numbers; an addition ties the numbers
of its inputs, element by element; a concatenation puts them in a row; flattening repeats them.
Tied lanes are one channel: they go together or stay together. A pinned lane stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Lanes = npt.NDArray[np.intp]
"""intp [channels]: one number for each element of a tensor's last axis."""

NO_MAKER = -1


@dataclass(frozen=True, eq=False)
class Channels:
    """All channels of a model, numbered in the order in which they were first made.

    Attributes:
        of_lane: intp [lanes], the channel to which each lane belongs.
        makers: For each channel, (maker, lanes) pairs in the order of the makers: how many of
            its lanes each maker made. Lanes without a maker are left out.
        pins: For each channel, why it has to stay; empty where it may go.
    """

    of_lane: npt.NDArray[np.intp]
    makers: tuple[tuple[tuple[int, int], ...], ...]
    pins: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of channels."""
        return len(self.pins)


class LaneBook:
    """Hands out lanes, ties them and pins them; `channels` sums up (union-find)."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._makers: list[int] = []
        self._pins: dict[int, str] = {}

    def new(self, count: int, maker: int = NO_MAKER) -> Lanes:
        """Returns ``count`` new lanes made by the layer of number ``maker``."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        self._makers.extend([maker] * count)
        return np.arange(first, first + count, dtype=np.intp)

    def tie(self, a: Lanes, b: Lanes) -> None:
        """Makes each lane of ``a`` one channel with its partner in ``b``, of equal length."""
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            roots = sorted((self._root(one), self._root(other)))
            self._parents[roots[1]] = roots[0]

    def tie_rows(self, rows: Lanes) -> Lanes:
        """Ties the rows of an intp [rows, channels] array to its first, which is returned."""
        for row in rows[1:]:
            self.tie(rows[0], row)
        first: Lanes = rows[0]
        return first

    def pin(self, lanes: Lanes, why: str) -> None:
        """Keeps lanes from being removed; the first reason of a lane is remembered."""
        for lane in lanes.tolist():
            self._pins.setdefault(lane, why)

    def channels(self) -> Channels:
        """Returns the channels that all ties so far have left."""
        roots = np.array([self._root(lane) for lane in range(len(self._parents))], np.intp)
        _, of_lane = np.unique(roots, return_inverse=True)
        count = int(of_lane.max(initial=-1)) + 1
        made: list[dict[int, int]] = [{} for _ in range(count)]
        pins = [""] * count
        for lane, channel in enumerate(of_lane.tolist()):
            maker = self._makers[lane]
            if maker != NO_MAKER:
                made[channel][maker] = made[channel].get(maker, 0) + 1
            pins[channel] = pins[channel] or self._pins.get(lane, "")
        makers = tuple(tuple(sorted(counts.items())) for counts in made)
        return Channels(of_lane.astype(np.intp), makers, tuple(pins))

    def _root(self, lane: int) -> int:
        parents = self._parents
        while parents[lane] != lane:
            parents[lane] = parents[parents[lane]]
            lane = parents[lane]
        return lane
