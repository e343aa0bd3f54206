"""The memory planner: where each activation lies in the arena, and why no less would do.

Lifetimes are exact. A tensor lives from the operator that writes it to the last one that
reads it; model inputs live from before the first operator, model outputs until after the
last. Tensors which an operator passes on unchanged (RESHAPE) share one buffer. The largest
sum of the buffers alive at one operator is a lower bound; the search for offsets stops when
it reaches that bound.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgekiln.export.ir import Graph

_SEARCH_ROUNDS = 2000
_PREFERRED_ALIGNMENT = 4


@dataclass(frozen=True)
class Buffer:
    """Bytes that tensors share, and when they are needed.

    Attributes:
        tensors: The tensors that lie in it, all at its beginning.
        bytes: Its size.
        first: Position of the first operator at which it is alive; -1 before the first.
        last: Position of the last operator at which it is alive; the number of operators
            for what must survive the run.
        alignment: Its offset is a multiple of this.
    """

    tensors: tuple[int, ...]
    bytes: int
    first: int
    last: int
    alignment: int = 1

    def meets(self, other: Buffer) -> bool:
        """Tells whether both are alive at some operator."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets in the arena.

    Attributes:
        buffers: All buffers, in order of their first use.
        offsets: Offset in bytes of each tensor that lies in the arena.
        arena_bytes: Size of the arena.
        bound_bytes: The largest sum of buffers alive at one operator.
        peak: Position of the operator that decides the bound; -1 before the first.
    """

    buffers: tuple[Buffer, ...]
    offsets: Mapping[int, int]
    arena_bytes: int
    bound_bytes: int
    peak: int


def find_buffers(graph: Graph, outside: Iterable[int] = ()) -> tuple[Buffer, ...]:
    """Groups the activations into buffers with exact lifetimes.

    Args:
        graph: The graph.
        outside: Tensors that the caller provides memory for; they, and what shares their
            memory, are left out.
    """
    root = _alias_roots(graph, frozenset(outside))
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
    return tuple(
        Buffer(
            tuple(tensors),
            max(graph.tensor(t).bytes for t in tensors),
            first[key],
            last[key],
            max(graph.tensor(t).dtype.bytes for t in tensors),
        )
        for key, tensors in members.items()
        if key not in excluded
    )


def alias_root(graph: Graph, outside: Iterable[int] = ()) -> dict[int, int]:
    """Returns for each activation the tensor whose memory it shares (itself if none)."""
    return _alias_roots(graph, frozenset(outside))


def _alias_roots(graph: Graph, outside: frozenset[int]) -> dict[int, int]:
    root = {tensor: tensor for tensor in graph.activations()}
    for op in graph.ops:
        if not op.aliases_input or not op.activation_inputs(graph):
            continue
        source, result = root[op.inputs[0]], op.outputs[0]
        # Memory from two places cannot be one buffer: the operator then copies.
        if result in outside and any(root[t] == source for t in outside):
            continue
        if result in outside:
            for tensor, key in root.items():
                if key == source:
                    root[tensor] = result
        else:
            root[result] = source
    return root


def plan_memory(graph: Graph, outside: Iterable[int] = ()) -> MemoryPlan:
    """Places all activations.

    Args:
        graph: A verified graph.
        outside: Tensors that the caller provides memory for.
    """
    buffers = find_buffers(graph, outside)
    bound, peak = _live_set_bound(buffers, len(graph.ops))
    aligned = [
        Buffer(b.tensors, b.bytes, b.first, b.last, max(b.alignment, _PREFERRED_ALIGNMENT))
        for b in buffers
    ]
    offsets = _search(aligned, bound)
    if _height(aligned, offsets) > bound:
        tight = _search(buffers, bound)
        if _height(buffers, tight) < _height(aligned, offsets):
            offsets = tight
    placed = {
        tensor: offset
        for buffer, offset in zip(buffers, offsets, strict=True)
        for tensor in buffer.tensors
    }
    return MemoryPlan(buffers, placed, _height(buffers, offsets), bound, peak)


def _live_set_bound(buffers: Sequence[Buffer], ops: int) -> tuple[int, int]:
    sums = {
        position: sum(b.bytes for b in buffers if b.first <= position <= b.last)
        for position in range(-1, ops + 1)
    }
    peak = max(sums, key=lambda position: sums[position])
    return sums[peak], min(peak, ops - 1)


def _search(buffers: Sequence[Buffer], bound: int) -> list[int]:
    """Finds offsets: greedy placement in several orders, then in perturbed ones."""
    keys: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda i: (-buffers[i].bytes, buffers[i].first),
        lambda i: (-buffers[i].bytes * (buffers[i].last - buffers[i].first + 1), i),
        lambda i: (buffers[i].first - buffers[i].last, -buffers[i].bytes, i),
        lambda i: (buffers[i].first, -buffers[i].bytes, i),
    )
    meets = [
        [j for j in range(len(buffers)) if j != i and buffers[i].meets(buffers[j])]
        for i in range(len(buffers))
    ]
    best_order: list[int] = []
    best: list[int] = []
    for key in keys:
        order = sorted(range(len(buffers)), key=key)
        offsets = _place(buffers, order, meets)
        if not best or _height(buffers, offsets) < _height(buffers, best):
            best, best_order = offsets, order
    generator = random.Random(0)
    for _ in range(_SEARCH_ROUNDS if len(buffers) > 1 else 0):
        if _height(buffers, best) <= bound:
            break
        order = best_order.copy()
        for _ in range(generator.randint(1, 3)):
            a, b = generator.sample(range(len(order)), 2)
            order.insert(a, order.pop(b))
        offsets = _place(buffers, order, meets)
        if _height(buffers, offsets) <= _height(buffers, best):
            best, best_order = offsets, order
    return best


def _place(
    buffers: Sequence[Buffer], order: Sequence[int], meets: Sequence[Sequence[int]]
) -> list[int]:
    """Gives each buffer, in this order, the lowest offset that is free while it is alive."""
    offsets: list[int] = [-1] * len(buffers)
    for i in order:
        taken = sorted(
            (offsets[j], offsets[j] + buffers[j].bytes) for j in meets[i] if offsets[j] >= 0
        )
        offset = 0
        for start, end in taken:
            if offset + buffers[i].bytes <= start:
                break
            offset = max(offset, -(-end // buffers[i].alignment) * buffers[i].alignment)
        offsets[i] = offset
    return offsets


def _height(buffers: Sequence[Buffer], offsets: Sequence[int]) -> int:
    return max((o + b.bytes for b, o in zip(buffers, offsets, strict=True)), default=0)
