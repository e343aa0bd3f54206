"""Makes a reshape of a reshape one reshape."""

from __future__ import annotations

import dataclasses

from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Op


def merge_reshapes(graph: Graph) -> Graph:
    """Lets operators that pass on bytes read what the one before them read.

    That one is then dead unless others read it too.
    """
    source: dict[int, int] = {}
    ops: list[Op] = []
    for op in graph.ops:
        if op.aliases_input and op.activation_inputs(graph):
            first = source.get(op.inputs[0], op.inputs[0])
            source[op.outputs[0]] = first
            op = dataclasses.replace(op, inputs=(first, *op.inputs[1:]))
        ops.append(op)
    return graph.replace(ops=tuple(ops))
