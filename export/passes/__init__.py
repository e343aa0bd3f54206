"""Graph passes, one small file each. None of them changes a byte of what the model computes."""

from __future__ import annotations

from edgekiln.export.ir import Graph
from edgekiln.export.passes.fold_constants import fold_constants
from edgekiln.export.passes.fold_padding import fold_padding
from edgekiln.export.passes.merge_reshapes import merge_reshapes
from edgekiln.export.passes.remove_dead_ops import remove_dead_ops
from edgekiln.export.passes.rewrite_uint8 import rewrite_uint8
from edgekiln.export.passes.simplify_moves import simplify_moves
from edgekiln.export.verifier import verify_graph, verify_wiring

PASSES = (simplify_moves, merge_reshapes, fold_padding, remove_dead_ops)


def run_passes(graph: Graph) -> Graph:
    """Applies all passes in order; the graph is verified before the first and after each.

    Before constants are folded, only the wiring is verified: operators may read as constants
    what has still to be computed from constants.
    """
    verify_wiring(graph)
    graph = fold_constants(rewrite_uint8(graph))
    verify_graph(graph)
    for apply in PASSES:
        graph = apply(graph)
        verify_graph(graph)
    return graph
