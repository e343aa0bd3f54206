"""Graph passes, one small file each. None of them changes a byte of what the model computes."""

from __future__ import annotations

from edgekiln.export.ir import Graph
from edgekiln.export.passes.fold_constants import fold_constants
from edgekiln.export.passes.remove_dead_ops import remove_dead_ops
from edgekiln.export.verifier import verify_graph

PASSES = (fold_constants, remove_dead_ops)


def run_passes(graph: Graph) -> Graph:
    """Applies all passes in order; the graph is verified before the first and after each."""
    verify_graph(graph)
    for apply in PASSES:
        graph = apply(graph)
        verify_graph(graph)
    return graph
