"""Kernels for Armv6-M (Cortex-M0, M0+ and M1), and their weights' layout.

Each computes the same bytes as the generic one, and is chosen where it accepts the node and its
estimated cost is lower.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlaps, Scratch, as_int64
from edgekiln.export.ops.conv_2d import Conv2D, is_pointwise
from edgekiln.export.ops.convolution import matrix_overlap
from edgekiln.export.ops.cortex_m4 import Channels, channels_of, output_scalars_of
from edgekiln.export.ops.depthwise_conv_2d import DepthwiseConv2D
from edgekiln.export.ops.windows import window_overlap, window_scalars

# Costs are on the generic kernels' scale, which is that of larger cores: what both take of an
# Armv6-M is more, in the same proportion.
_ARMV6M = frozenset({"armv6m"})
_BLOCK = 8
_LONGEST = 1 << 16
"""Inputs of a channel for which 128 times their sum fits 32 bits, and some."""


def pack_channel_blocks(matrix: NDArray[np.int64]) -> Array:
    """Packs ``[channels, inputs]`` int8 weights for ``ek_matmul_m0_write``.

    Returns:
        uint8: for each block of eight channels (the last may have four) and each input the
        weights of the block, 128 more than they are; channels that do not exist have 128.
    """
    channels, inputs = matrix.shape
    blocks = []
    for first in range(0, channels, _BLOCK):
        block = matrix[first : first + _BLOCK]
        size = _BLOCK if len(block) > _BLOCK // 2 else _BLOCK // 2
        padded = np.zeros((size, inputs), np.int64)
        padded[: len(block)] = block
        blocks.append((padded + 128).T.astype(np.uint8).reshape(-1))
    return np.concatenate(blocks)


def _is_int8(op: Op, graph: Graph) -> bool:
    tensors = (op.input(graph, 0), op.input(graph, 1), op.output(graph))
    return all(tensor.dtype is DType.INT8 for tensor in tensors)


def _channels(op: Op, graph: Graph, matrix: NDArray[np.int64]) -> Channels:
    return channels_of(op, graph, matrix, padded=False)[0]


def _matrix(op: Op, graph: Graph) -> NDArray[np.int64]:
    weights = op.input(graph, 1)
    return as_int64(weights.data).reshape(weights.shape[0], -1)


def _accepts_matrix(op: Op, graph: Graph) -> bool:
    if not _is_int8(op, graph):
        return False
    matrix = _matrix(op, graph)
    channels = _channels(op, graph, matrix)
    fits = channels.shifts_fit() and channels.accumulators_fit(128)
    return fits and matrix.shape[1] < _LONGEST


def _tables(channels: Channels, filters: Array) -> dict[str, Array]:
    scales = np.stack([channels.bias, channels.multiplier, channels.right_shift], axis=1)
    return {"filter": filters, "scales": scales.astype(np.int32).reshape(-1)}


def _matrix_tables(op: Op, graph: Graph) -> dict[str, Array]:
    channels = _channels(op, graph, _matrix(op, graph))
    return _tables(channels, pack_channel_blocks(channels.matrix))


def _rounded_channels(op: Op, graph: Graph) -> int:
    """Output channels with those that fill up the last block."""
    channels = op.input(graph, 1).shape[0]
    return channels + -channels % (_BLOCK // 2)


# ---- FULLY_CONNECTED and 1x1 convolutions ----


def _rows(op: Op, graph: Graph) -> int:
    return op.input(graph, 0).elements // op.input(graph, 1).shape[-1]


def _lower_matrix(op: Op, graph: Graph) -> tuple[KernelCall, ...]:
    weights = op.input(graph, 1)
    scalars = {
        "reverse": 0,
        "rows": _rows(op, graph),
        "depth": weights.shape[-1],
        "channels": weights.shape[0],
        **output_scalars_of(op, graph),
    }
    call = KernelCall(
        "ek_matrix_m0_s8",
        "ek_matrix_m0_s8.h",
        scalars,
        _matrix_tables(op, graph),
        (op.inputs[0],),
        op.outputs[0],
    )
    return (call,)


def _overlap_matrix(op: Op, graph: Graph) -> Overlaps:
    """The outputs of all blocks but the last are written early."""
    early = _BLOCK * ((op.input(graph, 1).shape[0] - 1) // _BLOCK)
    return matrix_overlap(op, graph, _rows(op, graph), early)


def _accepts_pointwise(op: Conv2D, graph: Graph) -> bool:
    return is_pointwise(op, graph) and _accepts_matrix(op, graph)


def _cost_matrix(op: Op, graph: Graph) -> float:
    macs = _rows(op, graph) * op.input(graph, 1).shape[-1] * _rounded_channels(op, graph)
    return 2.2 * macs + 3.0 * op.input(graph, 0).elements + 20.0 * op.output(graph).elements


# ---- Convolutions with any filter ----


def _accepts_window(op: Conv2D, graph: Graph) -> bool:
    x, weights = op.input(graph, 0), op.input(graph, 1)
    whole = weights.shape[3] == x.shape[3] and op.dilation_w == 1 and x.shape[0] == 1
    return whole and _accepts_matrix(op, graph)


def _lower_window(op: Conv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    channels, filter_h, filter_w, _ = weights.shape
    window = window_scalars(x, y, op.windows(graph))
    del window["dilation_width"]
    scalars = {
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "input_channels": x.shape[3],
        "input_zero_point": x.q.zero_point,
        "filter_height": filter_h,
        "filter_width": filter_w,
        "channels": channels,
        **window,
        **output_scalars_of(op, graph),
    }
    call = KernelCall(
        "ek_conv_2d_m0_s8",
        "ek_conv_2d_m0_s8.h",
        scalars,
        _matrix_tables(op, graph),
        (x.index,),
        y.index,
        scratch=(Scratch(DType.INT8, weights.elements // channels),),
        specialise=("dilation_height",),
    )
    return (call,)


def _overlap_window(op: Conv2D, graph: Graph) -> Overlaps:
    return window_overlap(op, graph, op.windows(graph), channelwise=True)


def _cost_window(op: Conv2D, graph: Graph) -> float:
    y = op.output(graph)
    taps = op.macs(graph) / y.shape[3]
    return 3.1 * taps * _rounded_channels(op, graph) + 6.0 * taps + 30.0 * y.elements


# ---- Depthwise ----


def _depthwise_matrix(op: DepthwiseConv2D, graph: Graph) -> NDArray[np.int64]:
    weights = op.input(graph, 1)
    return as_int64(weights.data).reshape(-1, weights.shape[3]).T


def _accepts_depthwise(op: DepthwiseConv2D, graph: Graph) -> bool:
    x, y = op.input(graph, 0), op.output(graph)
    if not _is_int8(op, graph) or x.shape[0] != 1 or x.shape[3] % 4 or y.shape[3] != x.shape[3]:
        return False
    channels = _channels(op, graph, _depthwise_matrix(op, graph))
    return channels.shifts_fit() and channels.accumulators_fit(128)


def _lower_depthwise(op: DepthwiseConv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    _, filter_h, filter_w, _ = weights.shape
    channels = _channels(op, graph, _depthwise_matrix(op, graph))
    scalars = {
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "channels": x.shape[3],
        "input_zero_point": x.q.zero_point,
        "filter_height": filter_h,
        "filter_width": filter_w,
        **window_scalars(x, y, op.windows(graph)),
        **output_scalars_of(op, graph),
    }
    filters = np.ascontiguousarray(channels.matrix.T).astype(np.int8).reshape(-1)
    call = KernelCall(
        "ek_depthwise_conv_2d_m0_s8",
        "ek_depthwise_conv_2d_m0_s8.h",
        scalars,
        _tables(channels, filters),
        (x.index,),
        y.index,
        specialise=("dilation_height", "dilation_width"),
    )
    return (call,)


def _overlap_depthwise(op: DepthwiseConv2D, graph: Graph) -> Overlaps:
    return window_overlap(op, graph, op.windows(graph), channelwise=True)


def _cost_depthwise(op: DepthwiseConv2D, graph: Graph) -> float:
    return 3.2 * op.macs(graph) + 33.0 * op.output(graph).elements


FULLY_CONNECTED = (
    Kernel("matrix_m0_s8", _lower_matrix, _cost_matrix, _ARMV6M, _accepts_matrix, _overlap_matrix),
)
CONV_2D = (
    Kernel(
        "matrix_m0_s8", _lower_matrix, _cost_matrix, _ARMV6M, _accepts_pointwise, _overlap_matrix
    ),
    Kernel("conv_2d_m0_s8", _lower_window, _cost_window, _ARMV6M, _accepts_window, _overlap_window),
)
DEPTHWISE_CONV_2D = (
    Kernel(
        "depthwise_conv_2d_m0_s8",
        _lower_depthwise,
        _cost_depthwise,
        _ARMV6M,
        _accepts_depthwise,
        _overlap_depthwise,
    ),
)
