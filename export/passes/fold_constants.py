"""Computes ahead of time whatever depends on constants alone."""

from __future__ import annotations

import dataclasses

from edgekiln.export.ir import Graph


def fold_constants(graph: Graph) -> Graph:
    """Replaces operators that read constants alone by the constants they compute."""
    tensors = dict(graph.tensors)
    kept = []
    for op in graph.ops:
        current = graph.replace(tensors=tensors)
        computed_at_run_time = any(t in graph.outputs for t in op.outputs)
        if op.activation_inputs(current) or op.states(current) or computed_at_run_time:
            kept.append(op)
            continue
        arguments = tuple(None if t < 0 else tensors[t].data for t in op.inputs)
        for index, value in zip(op.outputs, op.define(current, arguments), strict=True):
            value.flags.writeable = False
            tensors[index] = dataclasses.replace(tensors[index], data=value)
    return graph.replace(tensors=tensors, ops=tuple(kept))
