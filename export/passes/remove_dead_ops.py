"""Removes operators whose results nobody reads."""

from __future__ import annotations

from edgekiln.export.ir import Graph


def remove_dead_ops(graph: Graph) -> Graph:
    """Keeps the operators that a model output depends on, and those that write states."""
    needed = set(graph.outputs)
    kept = []
    for op in reversed(graph.ops):
        writes_state = not op.outputs and op.states(graph)
        if writes_state or needed.intersection(op.outputs):
            needed.update(op.activation_inputs(graph))
            kept.append(op)
    return graph.replace(ops=tuple(reversed(kept)))
