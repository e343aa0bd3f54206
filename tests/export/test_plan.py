"""The memory planner: lifetimes, bound, and that no two live buffers overlap."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tflite_builder import BuiltOp, activation, build_model, constant

from edgekiln.export.ir import Graph
from edgekiln.export.lower import lower_graph
from edgekiln.export.passes import run_passes
from edgekiln.export.plan import MemoryPlan, alias_roots, find_buffers, plan_memory
from edgekiln.export.targets import find_target
from edgekiln.export.tflite_reader import read_tflite


def relu_graph(
    sizes: Sequence[int], edges: Sequence[tuple[int, int]], outputs: Sequence[int]
) -> Graph:
    """A graph of CONCATENATIONs: tensor i + 1 joins the tensors that ``edges`` name for it."""
    tensors = [activation((1, size), 0.1, 0) for size in sizes]
    ops = []
    for number in range(1, len(sizes)):
        inputs = [a for a, b in edges if b == number]
        ops.append(BuiltOp("CONCATENATION", inputs, [number], "ConcatenationOptions", {"Axis": 1}))
    return read_tflite(build_model(tensors, ops, [0], outputs), "m")


def plan_of(graph: Graph, outside: Sequence[int] = (), overlap: bool = False) -> MemoryPlan:
    """Plans with kernels that promise no order of reads and writes, or with what they promise."""
    root = alias_roots(graph, outside)
    nodes = lower_graph(graph, find_target("generic"), root)
    if not overlap:
        nodes = tuple(dataclasses.replace(node, overlap={}) for node in nodes)
    return plan_memory(graph, root, nodes, outside)


def assert_disjoint(plan: MemoryPlan) -> None:
    """Buffers that are alive together lie apart: for kernels that promise no order."""
    for (a, start_a), (b, start_b) in itertools.combinations(
        zip(plan.buffers, plan.starts, strict=True), 2
    ):
        if a.meets(b):
            assert start_a + a.bytes <= start_b or start_b + b.bytes <= start_a
    assert plan.arena_bytes >= plan.bound_bytes
    assert plan.bound_bytes == plan.live_set_bytes


def test_lifetimes_are_exact() -> None:
    graph = relu_graph([4, 4, 8, 8], [(0, 1), (0, 2), (1, 2), (2, 3)], [3])
    found = {b.tensors: (b.bytes, b.first, b.last) for b in find_buffers(graph, alias_roots(graph))}
    assert found == {(0,): (4, -1, 1), (1,): (4, 0, 1), (2,): (8, 1, 2), (3,): (8, 2, 3)}


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    graph = relu_graph([100, 100, 100, 100], [(0, 1), (1, 2), (2, 3)], [3])
    plan = plan_of(graph)
    assert (plan.arena_bytes, plan.bound_bytes, plan.peak) == (200, 200, 0)
    assert_disjoint(plan)


def test_reshape_shares_the_buffer_of_its_input() -> None:
    tensors = [
        activation((1, 4, 6), 0.1, 3),
        constant(np.array([1, 24], np.int32)),
        activation((1, 24), 0.1, 3),
        activation((1, 24), 0.1, 3),
    ]
    ops = [BuiltOp("RESHAPE", [0, 1], [2], "ReshapeOptions"), BuiltOp("RELU", [2], [3])]
    graph = run_passes(read_tflite(build_model(tensors, ops, [0], [3]), "m"))
    plan = plan_of(graph, overlap=True)
    assert plan.offsets[0] == plan.offsets[2] == plan.offsets[3]
    assert (plan.arena_bytes, plan.live_set_bytes) == (24, 48)


def test_memory_of_the_caller_is_left_out() -> None:
    graph = relu_graph([40, 40, 40], [(0, 1), (1, 2)], [2])
    plan = plan_of(graph, outside=(0, 2))
    assert plan.arena_bytes == 40
    assert set(plan.offsets) == {1}


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs in which every tensor is made from one to three earlier ones."""
    count = draw(st.integers(2, 14))
    sizes = [draw(st.integers(1, 40))]
    edges: list[tuple[int, int]] = []
    for number in range(1, count):
        sources = draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=3, unique=True))
        edges += [(source, number) for source in sources]
        sizes.append(sum(sizes[source] for source in sources) % 97 + 1)
    return relu_graph(sizes, edges, [count - 1])


@given(graphs())
def test_live_buffers_never_overlap(graph: Graph) -> None:
    plan = plan_of(graph)
    assert_disjoint(plan)
    assert plan == plan_of(graph)
