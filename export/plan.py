"""The memory planner: where each activation lies in the arena, and why no less would do.

Lifetimes are exact. A tensor lives from the operator that writes it to the last one that
reads it; model inputs live from before the first operator, model outputs until after the
last; working memory lives during its operator. Tensors which an operator passes on unchanged
(RESHAPE) share one buffer.

Two buffers that are alive at one operator lie apart, with one exception: where an operator
reads a buffer for the last time, its output may lie over it, if the kernel's order of reads
and writes proves that no byte is overwritten before it was read. The proof is a distance at
which the output begins before the input, or, where the kernel can run backwards, after it
(`edgekiln.export.ops.base.Overlap`). The plan says which nodes have to run backwards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgekiln.export.ir import Graph
from edgekiln.export.lower import Node
from edgekiln.export.ops.base import Overlap

ALIGNMENT = 4
"""Every buffer begins at a multiple of it, so that kernels may load words."""

_SEARCH_ROUNDS = 3000

_SEARCH_PAIRS = 2_000_000
"""Pairs of buffers that the search looks at, at most: about a second, whatever the model."""


@dataclass(frozen=True)
class Buffer:
    """Bytes that tensors share, and when they are needed.

    Attributes:
        tensors: The tensors that lie in it, all at its beginning; () for working memory.
        bytes: Its size.
        first: Position of the first operator at which it is alive; -1 before the first.
        last: Position of the last operator at which it is alive; the number of operators
            for what must survive the run.
        alignment: Its offset is a multiple of this.
        scratch: For working memory, which of its operator's pieces it is; -1 otherwise.
    """

    tensors: tuple[int, ...]
    bytes: int
    first: int
    last: int
    alignment: int = ALIGNMENT
    scratch: int = -1

    def meets(self, other: Buffer) -> bool:
        """Tells whether both are alive at some operator."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets in the arena.

    Attributes:
        buffers: All buffers, in order of their first use.
        starts: Offset in bytes of each buffer.
        arena_bytes: Size of the arena.
        bound_bytes: What the operator with the largest need takes by itself, overlaps
            included: no plan can be smaller (but for a few bytes at an unaligned end).
        live_set_bytes: The largest sum of activations alive at one operator: the bound
            without overlaps and working memory.
        peak: Position of the operator that decides the bound; -1 before the first.
        offsets: Offset in bytes of each tensor that lies in the arena.
        scratch: Offset in bytes of working memory, by operator position and piece.
        backwards: Positions of the operators that have to run backwards.
    """

    buffers: tuple[Buffer, ...]
    starts: tuple[int, ...]
    arena_bytes: int
    bound_bytes: int
    live_set_bytes: int
    peak: int
    offsets: Mapping[int, int]
    scratch: Mapping[tuple[int, int], int]
    backwards: frozenset[int]


def alias_roots(graph: Graph, outside: Iterable[int] = ()) -> dict[int, int]:
    """Returns for each activation the tensor whose memory it shares (itself if none).

    Args:
        graph: The graph.
        outside: Tensors that the caller provides memory for.
    """
    external = frozenset(outside)
    root = {tensor: tensor for tensor in graph.activations()}
    for op in graph.ops:
        if not op.aliases_input or not op.activation_inputs(graph):
            continue
        source, result = root[op.inputs[0]], op.outputs[0]
        # Memory from two places cannot be one buffer: the operator then copies.
        if result in external and any(root[t] == source for t in external):
            continue
        if result in external:
            root.update({tensor: result for tensor, key in root.items() if key == source})
        else:
            root[result] = source
    return root


def find_buffers(
    graph: Graph,
    root: Mapping[int, int],
    nodes: Sequence[Node] = (),
    outside: Iterable[int] = (),
) -> tuple[Buffer, ...]:
    """Groups the activations into buffers with exact lifetimes, and adds working memory.

    Args:
        graph: The graph.
        root: For each activation the tensor whose memory it shares.
        nodes: The lowered operators, for their working memory.
        outside: Tensors that the caller provides memory for; they, and what shares their
            memory, are left out.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}

    def touch(tensor: int, position: int) -> None:
        key = root[tensor]
        first[key] = min(first.get(key, position), position)
        last[key] = max(last.get(key, position), position)

    for tensor in graph.inputs:
        touch(tensor, -1)
    for position, op in enumerate(graph.ops):
        for tensor in (*op.activation_inputs(graph), *op.outputs):
            touch(tensor, position)
    for tensor in graph.outputs:
        touch(tensor, len(graph.ops))

    members: dict[int, list[int]] = {}
    for tensor in graph.activations():
        members.setdefault(root[tensor], []).append(tensor)
    excluded = {root[tensor] for tensor in outside}
    tensors = tuple(
        Buffer(
            tuple(members[key]),
            max(graph.tensor(t).bytes for t in members[key]),
            first[key],
            last[key],
            max(ALIGNMENT, *(graph.tensor(t).dtype.bytes for t in members[key])),
        )
        for key in members
        if key not in excluded
    )
    scratch = tuple(
        Buffer((), piece.bytes, position, position, max(ALIGNMENT, piece.dtype.bytes), number)
        for position, node in enumerate(nodes)
        for number, piece in enumerate(node.scratch)
    )
    return tensors + scratch


def plan_memory(
    graph: Graph, root: Mapping[int, int], nodes: Sequence[Node], outside: Iterable[int] = ()
) -> MemoryPlan:
    """Places all activations and all working memory.

    Args:
        graph: A verified graph.
        root: For each activation the tensor whose memory it shares.
        nodes: Its operators, lowered.
        outside: Tensors that the caller provides memory for.
    """
    buffers = find_buffers(graph, root, nodes, outside)
    overlaps = find_overlaps(buffers, root, nodes)
    bound, peak = _bound(buffers, overlaps, len(graph.ops))
    live_set, _ = _bound([b for b in buffers if b.scratch < 0], {}, len(graph.ops))
    starts = _Search(buffers, overlaps).run(bound)
    placed = list(zip(buffers, starts, strict=True))
    return MemoryPlan(
        buffers,
        tuple(starts),
        _height(buffers, starts),
        bound,
        live_set,
        peak,
        {tensor: start for buffer, start in placed for tensor in buffer.tensors},
        {(b.first, b.scratch): start for b, start in placed if b.scratch >= 0},
        frozenset(
            buffers[y].first
            for (x, y), overlap in overlaps.items()
            if overlap.before > starts[x] - starts[y]
            and starts[y] < starts[x] + buffers[x].bytes
            and starts[x] < starts[y] + buffers[y].bytes
        ),
    )


def find_overlaps(
    buffers: Sequence[Buffer], root: Mapping[int, int], nodes: Sequence[Node]
) -> dict[tuple[int, int], Overlap]:
    """Returns the pairs that may overlap, by the numbers of the input and the output buffer."""
    number = {b.tensors[0]: i for i, b in enumerate(buffers) if b.tensors}
    by_root = {root[tensor]: i for tensor, i in number.items()}
    overlaps: dict[tuple[int, int], Overlap] = {}
    for position, node in enumerate(nodes):
        y = by_root.get(root[node.op.outputs[0]]) if node.op.outputs else None
        if y is None or buffers[y].first != position:
            continue
        for tensor, overlap in node.overlap.items():
            x = by_root.get(root.get(tensor, -1))
            if x is not None and x != y and buffers[x].last == position:
                overlaps[x, y] = _aligned(overlap)
    return overlaps


def _aligned(overlap: Overlap) -> Overlap:
    before = -(-overlap.before // ALIGNMENT) * ALIGNMENT
    after = None if overlap.after is None else -(-overlap.after // ALIGNMENT) * ALIGNMENT
    return Overlap(before, after)


def _bound(
    buffers: Sequence[Buffer], overlaps: Mapping[tuple[int, int], Overlap], ops: int
) -> tuple[int, int]:
    """Returns the need of the most demanding operator, and its position."""
    needs = {}
    for position in range(-1, ops + 1):
        live = [i for i, b in enumerate(buffers) if b.first <= position <= b.last]
        need = sum(buffers[i].bytes for i in live)
        # What the pairs at this operator can save, but never more than the output itself.
        savings: dict[int, int] = {}
        for (x, y), overlap in overlaps.items():
            if buffers[y].first == position:
                apart = buffers[x].bytes + buffers[y].bytes
                over = max(buffers[y].bytes, max(overlap.before, 0) + buffers[x].bytes)
                if overlap.after is not None:
                    backwards = max(buffers[x].bytes, overlap.after + buffers[y].bytes)
                    over = min(over, backwards)
                saving = savings.get(y, 0) + max(apart - over, 0)
                savings[y] = min(saving, buffers[y].bytes)
        needs[position] = need - sum(savings.values())
    peak = max(needs, key=lambda position: needs[position])
    return needs[peak], min(peak, ops - 1)


class _Search:
    """Finds offsets: greedy placement in several orders, then in perturbed ones."""

    def __init__(
        self, buffers: Sequence[Buffer], overlaps: Mapping[tuple[int, int], Overlap]
    ) -> None:
        self.buffers = buffers
        self.overlaps = overlaps
        count = range(len(buffers))
        self.meets = [[j for j in count if j != i and buffers[i].meets(buffers[j])] for i in count]

    def run(self, bound: int) -> list[int]:
        best, best_order = self._best_greedy()
        generator = random.Random(0)
        pairs = sum(map(len, self.meets))
        for _ in range(min(_SEARCH_ROUNDS, _SEARCH_PAIRS // pairs) if pairs else 0):
            if _height(self.buffers, best) <= bound:
                break
            order = best_order.copy()
            for _ in range(generator.randint(1, 3)):
                a, b = generator.sample(range(len(order)), 2)
                order.insert(a, order.pop(b))
            starts = self.place(order)
            if _height(self.buffers, starts) <= _height(self.buffers, best):
                best, best_order = starts, order
        return best

    def _best_greedy(self) -> tuple[list[int], list[int]]:
        b = self.buffers
        keys: tuple[Callable[[int], tuple[int, ...]], ...] = (
            lambda i: (-b[i].bytes, b[i].first),
            lambda i: (-b[i].bytes * (b[i].last - b[i].first + 1), i),
            lambda i: (b[i].first - b[i].last, -b[i].bytes, i),
            lambda i: (b[i].first, -b[i].bytes, i),
            lambda i: (-b[i].last, -b[i].bytes, i),
        )
        orders = [sorted(range(len(b)), key=key) for key in keys]
        placed = [self.place(order) for order in orders]
        heights = [_height(b, starts) for starts in placed]
        best = heights.index(min(heights))
        return placed[best], orders[best]

    def place(self, order: Sequence[int]) -> list[int]:
        """Gives each buffer, in this order, the lowest offset that is allowed."""
        starts: list[int] = [-1] * len(self.buffers)
        for i in order:
            forbidden = sorted(
                self._forbidden(i, j, starts[j]) for j in self.meets[i] if starts[j] >= 0
            )
            start, alignment = 0, self.buffers[i].alignment
            for low, high in forbidden:
                if low < start < high:
                    start = -(-high // alignment) * alignment
            starts[i] = start
        return starts

    def _forbidden(self, i: int, j: int, start_j: int) -> tuple[int, int]:
        """Returns the open interval in which buffer i must not start, j being placed."""
        low = start_j - self.buffers[i].bytes
        high = start_j + self.buffers[j].bytes
        overlap = self.overlaps.get((j, i))
        if overlap is not None:  # i is the output, j the input under it
            low = max(low, min(start_j - overlap.before, high))
            if overlap.after is not None:
                high = min(high, max(start_j + overlap.after, low))
        overlap = self.overlaps.get((i, j))
        if overlap is not None:  # i is the input, j the output over it
            high = min(high, max(start_j + overlap.before, low))
            if overlap.after is not None:
                low = max(low, min(start_j - overlap.after, high))
        return low, high


def _height(buffers: Sequence[Buffer], starts: Sequence[int]) -> int:
    return max((o + b.bytes for b, o in zip(buffers, starts, strict=True)), default=0)
