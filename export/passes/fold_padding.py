"""Folds PAD into the convolution that reads it, so that the padded tensor never exists."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Op
from edgekiln.export.ops.conv_2d import Conv2D
from edgekiln.export.ops.depthwise_conv_2d import DepthwiseConv2D
from edgekiln.export.ops.pad import Pad
from edgekiln.export.ops.windows import NO_BORDER


def fold_padding(graph: Graph) -> Graph:
    """Replaces PAD and a convolution by a convolution with a border.

    That is exact when the padding is the input's code of zero: such an input adds nothing,
    whether the kernel reads it or passes it over.
    """
    readers = Counter(t for op in graph.ops for t in op.activation_inputs(graph))
    readers.update(graph.outputs)
    pads = {op.outputs[0]: op for op in graph.ops if isinstance(op, Pad)}
    ops: list[Op] = []
    for op in graph.ops:
        pad = pads.get(op.inputs[0]) if op.inputs else None
        if (
            isinstance(op, (Conv2D, DepthwiseConv2D))
            and pad is not None
            and readers[op.inputs[0]] == 1
            and _pads_with_zero(pad, graph)
        ):
            op = _with_border(op, pad, graph)
        ops.append(op)
    return graph.replace(ops=tuple(ops))


def _pads_with_zero(pad: Pad, graph: Graph) -> bool:
    x, y = pad.input(graph, 0), pad.output(graph)
    if not pad.activation_inputs(graph):
        return False
    if x.dtype is DType.FLOAT32:
        return not np.any(pad.value(graph))
    return (
        x.quantization is not None
        and x.quantization == y.quantization
        and int(pad.value(graph)[0]) == x.q.zero_point
    )


def _with_border(op: Conv2D | DepthwiseConv2D, pad: Pad, graph: Graph) -> Op:
    """Returns the convolution of what the PAD reads, or the same one where that is not possible."""
    paddings = pad.paddings(graph)
    if len(paddings) != 4 or any(paddings[0] + paddings[3]) or op.border != NO_BORDER:
        return op
    folded = dataclasses.replace(
        op, inputs=(pad.inputs[0], *op.inputs[1:]), border=(paddings[1], paddings[2])
    )
    x, y = graph.tensor(pad.inputs[0]), op.output(graph)
    windows = zip(folded.windows(graph), x.shape[1:3], y.shape[1:3], strict=True)
    # A window that lies in the padding alone is nothing that kernels are made for.
    if all(window.touches_input(size, outputs) for window, size, outputs in windows):
        return folded
    return op
