"""Computes ahead of time whatever depends on constants alone."""

from __future__ import annotations

import dataclasses

import numpy as np

from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Op

_ALWAYS_BYTES = 1 << 20
"""Constants may always grow by this much."""

_GROWTH = 4
"""And by this many times the constants of the file, so that no file can make them explode."""


def fold_constants(graph: Graph) -> Graph:
    """Replaces operators that read constants alone by the constants they compute.

    Every operator that is folded is checked before; the others need not be valid yet, for
    their checkers may want the constants that this pass provides.
    """
    tensors = dict(graph.tensors)
    constants = sum(t.bytes for t in tensors.values() if t.is_constant)
    budget = max(_ALWAYS_BYTES, _GROWTH * constants)
    kept = []
    for op in graph.ops:
        current = graph.replace(tensors=tensors)
        added = sum(tensors[t].bytes for t in op.outputs)
        if not _is_constant(op, current) or added > budget:
            kept.append(op)
            continue
        budget -= added
        op.check(current)
        arguments = tuple(None if t < 0 else tensors[t].data for t in op.inputs)
        with np.errstate(all="ignore"):  # as `run_graph` does
            values = op.define(current, arguments)
        for index, value in zip(op.outputs, values, strict=True):
            value.flags.writeable = False
            tensors[index] = dataclasses.replace(tensors[index], data=value)
    return graph.replace(tensors=tensors, ops=tuple(kept))


def _is_constant(op: Op, graph: Graph) -> bool:
    computed_at_run_time = any(t in graph.outputs for t in op.outputs)
    return not (op.activation_inputs(graph) or op.states(graph) or computed_at_run_time)
