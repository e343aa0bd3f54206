"""Turns operators that move every byte to where it was into reshapes, which cost nothing."""

from __future__ import annotations

from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Op
from edgekiln.export.ops.movement import Copy, Movement
from edgekiln.export.ops.pad import Pad
from edgekiln.export.ops.quantize import Quantize
from edgekiln.export.ops.reshape import Reshape


def simplify_moves(graph: Graph) -> Graph:
    """Replaces operators whose only output is the bytes of an activation by RESHAPE.

    Such are a slice of the whole, a transposition of dimensions of size 1, a padding of zero
    width, a concatenation of one tensor, and QUANTIZE to the scale that there was.
    """
    ops: list[Op] = []
    for op in graph.ops:
        source = _unchanged_input(op, graph)
        if source is not None and source in op.activation_inputs(graph):
            ops.append(Reshape(op.index, (source,), op.outputs))
        else:
            ops.append(op)
    return graph.replace(ops=tuple(ops))


def _unchanged_input(op: Op, graph: Graph) -> int | None:
    """Returns the tensor whose bytes are the operator's only output; None when there is none."""
    if isinstance(op, Movement) and len(op.outputs) == 1:
        copies = op.copies(graph)
        if len(copies) == 1 and _is_whole(copies[0], graph):
            return copies[0].source.tensor
    if isinstance(op, Pad) and not any(sum(pair) for pair in op.paddings(graph)):
        return op.inputs[0]
    if isinstance(op, Quantize):
        x, y = graph.tensor(op.inputs[0]), graph.tensor(op.outputs[0])
        if x.dtype is y.dtype and x.quantization == y.quantization:
            return op.inputs[0]
    return None


def _is_whole(copy: Copy, graph: Graph) -> bool:
    sizes = {graph.tensor(view.tensor).bytes for view in (copy.source, copy.target)}
    loops, run = copy.loops()
    return not loops and sizes == {run}
