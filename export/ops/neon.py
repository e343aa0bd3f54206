"""Kernels with NEON, and with SDOT where a 64-bit core has it, and their weights' layout.

Each is one more `Kernel` of an operator: it computes the same bytes as the generic one, and
is chosen where it accepts the node and its estimated cost is lower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.activation import Activation, activation_range
from edgekiln.export.ops.add import Add, has_one_size, quantized_scalars
from edgekiln.export.ops.base import (
    Array,
    Kernel,
    KernelCall,
    Op,
    Overlap,
    Overlaps,
    Scratch,
    as_int64,
)
from edgekiln.export.ops.broadcasting import overlap_elementwise
from edgekiln.export.ops.conv_2d import Conv2D, is_pointwise
from edgekiln.export.ops.convolution import bias_and_input_offset, per_channel_requantization
from edgekiln.export.ops.depthwise_conv_2d import DepthwiseConv2D
from edgekiln.export.ops.pool_2d import MaxPool2D, Pool2D, lower_pool, overlap_pool
from edgekiln.export.ops.reduce import Runs, Sum, lower_sum, overlap_reduction
from edgekiln.export.ops.windows import window_overlap, window_scalars, windows_read_padding

_NEON = frozenset({"neon"})
_DOTPROD = frozenset({"neon", "dotprod"})
_CHANNELS = 8
"""Tables of channels have zeros up to a multiple of it."""


def _rows(dot: bool) -> int:
    """Returns how many rows are multiplied at a time, ``ek_rows_neon``."""
    return 4 if dot else 2


# ---- Weights ----


def _padded(matrix: NDArray[np.int64], channels: int, inputs: int) -> NDArray[np.int8]:
    """Pads ``[channels, inputs]`` with zeros to multiples of these numbers."""
    pads = (0, -matrix.shape[0] % channels), (0, -matrix.shape[1] % inputs)
    return np.pad(matrix, pads).astype(np.int8)


def pack_rows_of_16(matrix: NDArray[np.int64]) -> Array:
    """Packs ``[channels, inputs]`` int8 weights for the plain product of ``ek_matmul_neon.h``.

    Returns:
        int8, 1-D: for every 8 channels [inputs / 16, 8 channels, 16 inputs], then, where 8
        inputs are left, [8 channels, 8 inputs].
    """
    padded = _padded(matrix, 8, 8)
    depth = padded.shape[1]
    whole = depth // 16 * 16
    blocks = padded.reshape(-1, 8, depth)
    rows = blocks[:, :, :whole].reshape(len(blocks), 8, whole // 16, 16).transpose(0, 2, 1, 3)
    parts = (rows, blocks[:, :, whole:])
    return _joined(parts, len(blocks))


def _joined(parts: tuple[NDArray[np.int8], ...], blocks: int) -> Array:
    """Joins what belongs to each block."""
    flat = [part.reshape(blocks, part.size // blocks) for part in parts]
    return np.concatenate(flat, axis=1).reshape(-1)


def pack_quads(matrix: NDArray[np.int64]) -> Array:
    """Packs ``[channels, inputs]`` int8 weights for the product with SDOT.

    Returns:
        int8, 1-D: blocks of 16 channels, then of 4, each [inputs / 16, channels of the block
        / 4, 4 groups of inputs, 4 channels, 4 inputs], then [1 to 3 groups of inputs, channels
        of the block / 4, 4 channels, 4 inputs] where inputs are left.
    """
    padded = _padded(matrix, 4, 4)
    whole = matrix.shape[0] // 16 * 16  # blocks without a channel that is not there
    return np.concatenate([_quads(padded[:whole], 16), _quads(padded[whole:], 4)])


def _quads(matrix: NDArray[np.int8], block: int) -> Array:
    channels, depth = matrix.shape
    if channels == 0:
        return matrix.reshape(-1)
    tiles = matrix.reshape(channels // block, block // 4, 4, depth // 4, 4)
    whole = depth // 16 * 4
    groups = tiles[:, :, :, :whole].reshape(*tiles.shape[:3], whole // 4, 4, 4)
    left = tiles[:, :, :, whole:]
    parts = (groups.transpose(0, 3, 1, 4, 2, 5), left.transpose(0, 3, 1, 2, 4))
    return _joined(parts, len(tiles))


def pack_channel_blocks(matrix: NDArray[np.int64]) -> Array:
    """Packs ``[taps, channels]`` int8 weights for ``ek_depthwise_conv_2d_neon_s8``.

    Returns:
        int8, 1-D: for every 16 channels, then for every 8, [taps, 16 or 8], with zeros up to a
        multiple of 8 channels.
    """
    filters, channels = _padded(matrix, 1, 8), matrix.shape[1]
    whole = channels // 16 * 16
    ends = [*range(16, whole + 1, 16), *range(whole + 8, filters.shape[1] + 1, 8)]
    return np.concatenate([block.reshape(-1) for block in np.split(filters, ends, axis=1)])


def plain_pairs_fit(matrix: NDArray[np.int64]) -> bool:
    """Proves that the products of inputs i and i + 8 of each 16 sum up within 16 bits.

    The sum leaves them only as (-128)(-128) + (-128)(-128) = 32768.
    """
    padded = _padded(matrix, 1, 16)
    halves = padded.reshape(padded.shape[0], -1, 2, 8)
    return not bool(((halves[:, :, 0] == -128) & (halves[:, :, 1] == -128)).any())


def depthwise_pairs_fit(matrix: NDArray[np.int64]) -> bool:
    """The same for any two taps of a channel; the matrix is [taps, channels]."""
    return bool(((matrix == -128).sum(axis=0) < 2).all())


# ---- What all of them share ----


def _is_int8(op: Op, graph: Graph) -> bool:
    tensors = (op.input(graph, 0), op.input(graph, 1), op.output(graph))
    return all(tensor.dtype is DType.INT8 for tensor in tensors)


def _output_scalars(op: Op, graph: Graph) -> dict[str, int]:
    y = op.output(graph)
    low, high = activation_range(getattr(op, "activation", Activation.NONE), y.q)
    return {
        "output_zero_point": y.q.zero_point,
        "activation_min": low,
        "activation_max": high,
    }


def _channel_tables(
    op: Op, graph: Graph, matrix: NDArray[np.int64]
) -> tuple[dict[str, int], dict[str, Array]]:
    """Returns which way shifts go, and bias, multiplier and shift of each channel.

    Args:
        op: The operator.
        graph: Its graph.
        matrix: [channels, taps]; kernels read the zero point on the border, so that it is
            part of the bias everywhere.
    """
    channels = matrix.shape[0]
    bias, _ = bias_and_input_offset(op, graph, matrix, padded=False)
    requant = per_channel_requantization(op.input(graph, 0), op.input(graph, 1), op.output(graph))
    tables = {"bias": bias, "multiplier": requant.multipliers, "shift": requant.shifts}
    rounded_up = {
        name: np.pad(np.broadcast_to(table, channels), (0, -channels % _CHANNELS)).astype(np.int32)
        for name, table in tables.items()
    }
    ways = {
        "shifts_left": int(requant.shifts_left),
        "shifts_right": int((requant.shifts < 0).all()),
    }
    return ways, rounded_up


def _product(
    op: Op, graph: Graph, dot: bool
) -> tuple[dict[str, int], dict[str, Array], tuple[Scratch, ...]]:
    """Returns what every kernel built on ``ek_matmul_neon.h`` takes."""
    rows = op.output(graph).elements // op.input(graph, 1).shape[0]
    weights = op.input(graph, 1)
    matrix = as_int64(weights.data).reshape(weights.shape[0], -1)
    depth = matrix.shape[1] + -matrix.shape[1] % (4 if dot else 8)
    scratch = Scratch(DType.INT8, min(rows, _rows(dot)) * (depth + -depth % 16))
    scalars, tables = _channel_tables(op, graph, matrix)
    scalars |= {
        "depth": depth,
        "channels": matrix.shape[0],
        "dot": int(dot),
        "pairs_fit": int(dot or plain_pairs_fit(matrix)),
        **_output_scalars(op, graph),
    }
    filters = pack_quads(matrix) if dot else pack_rows_of_16(matrix)
    return scalars, {"filter": filters, **tables}, (scratch,)


_SPECIALISE = ("dot", "pairs_fit", "shifts_left", "shifts_right")

_MATRIX_SCALARS = (
    "reverse", "rows", "inputs", "depth", "channels", "dot", "pairs_fit", "shifts_left",
    "shifts_right", "output_zero_point", "activation_min", "activation_max",
)  # fmt: skip
_CONV_SCALARS = (
    "input_height", "input_width", "input_channels", "input_zero_point", "filter_height",
    "filter_width", "depth", "output_height", "output_width", "channels", "stride_height",
    "stride_width", "dilation_height", "dilation_width", "pad_top", "pad_left", "dot",
    "pairs_fit", "shifts_left", "shifts_right", "output_zero_point", "activation_min",
    "activation_max",
)  # fmt: skip
_DEPTHWISE_SCALARS = (
    "input_height", "input_width", "channels", "input_zero_point", "filter_height",
    "filter_width", "output_height", "output_width", "stride_height", "stride_width",
    "dilation_height", "dilation_width", "pad_top", "pad_left", "padded", "pairs_fit",
    "shifts_left", "shifts_right", "output_zero_point", "activation_min", "activation_max",
)  # fmt: skip


_DEPTHWISE_SPECIALISE = (
    "channels", "filter_height", "filter_width", "padded", "pairs_fit", "shifts_left",
    "shifts_right",
)  # fmt: skip


def _ordered(names: tuple[str, ...], scalars: dict[str, int]) -> dict[str, int]:
    """Brings scalars into the order of the kernel's parameters."""
    return {name: scalars[name] for name in names}


# ---- FULLY_CONNECTED and 1x1 convolutions ----


def _lower_matrix(dot: bool) -> Callable[[Op, Graph], tuple[KernelCall, ...]]:
    def lower(op: Op, graph: Graph) -> tuple[KernelCall, ...]:
        inputs = op.input(graph, 1).shape[-1]
        scalars, tables, scratch = _product(op, graph, dot)
        scalars |= {
            "reverse": 0,
            "rows": op.input(graph, 0).elements // inputs,
            "inputs": inputs,
        }
        call = KernelCall(
            "ek_matrix_neon_s8",
            "ek_matrix_neon_s8.h",
            _ordered(_MATRIX_SCALARS, scalars),
            tables,
            (op.inputs[0],),
            op.outputs[0],
            scratch=scratch,
            specialise=_SPECIALISE,
        )
        return (call,)

    return lower


def _overlap_matrix(dot: bool) -> Callable[[Op, Graph], Overlaps]:
    """All rows of a group are read before one of their outputs is written.

    With I inputs and O outputs a row, forwards eO <= eI must hold at the end e of each group
    but the last; backwards bO >= bI at the beginning b of each. Both are linear.
    """

    def overlap(op: Op, graph: Graph) -> Overlaps:
        weights = op.input(graph, 1)
        inputs, outputs = weights.shape[-1], weights.shape[0]
        rows = op.input(graph, 0).elements // inputs
        last_begin = (rows - 1) // _rows(dot) * _rows(dot)
        before = max(0, last_begin * (outputs - inputs))
        after = max(0, last_begin * (inputs - outputs))
        return {0: Overlap(before, after)}

    return overlap


def _accepts_pointwise(op: Conv2D, graph: Graph) -> bool:
    return _is_int8(op, graph) and is_pointwise(op, graph)


def _cost_matrix(per_mac: float) -> Callable[[Op, Graph], float]:
    return lambda op, graph: per_mac * op.macs(graph) + 2.0 * op.output(graph).elements


# ---- Convolutions with any filter ----


def _accepts_window(op: Conv2D, graph: Graph) -> bool:
    x, weights = op.input(graph, 0), op.input(graph, 1)
    return _is_int8(op, graph) and x.shape[0] == 1 and weights.shape[3] == x.shape[3]


def _window_scalars(op: Conv2D | DepthwiseConv2D, graph: Graph) -> dict[str, int]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    return {
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "input_zero_point": x.q.zero_point,
        "filter_height": weights.shape[1],
        "filter_width": weights.shape[2],
        **window_scalars(x, y, op.windows(graph)),
    }


def _lower_window(dot: bool) -> Callable[[Conv2D, Graph], tuple[KernelCall, ...]]:
    def lower(op: Conv2D, graph: Graph) -> tuple[KernelCall, ...]:
        scalars, tables, scratch = _product(op, graph, dot)
        scalars |= _window_scalars(op, graph)
        scalars["input_channels"] = op.input(graph, 0).shape[3]
        call = KernelCall(
            "ek_conv_2d_neon_s8",
            "ek_conv_2d_neon_s8.h",
            _ordered(_CONV_SCALARS, scalars),
            tables,
            (op.inputs[0],),
            op.outputs[0],
            scratch=scratch,
            specialise=(*_SPECIALISE, "input_channels", "filter_width", "dilation_width"),
        )
        return (call,)

    return lower


def _overlap_window(op: Conv2D | DepthwiseConv2D, graph: Graph) -> Overlaps:
    return window_overlap(op, graph, op.windows(graph), channelwise=True)


def _cost_window(per_mac: float) -> Callable[[Conv2D, Graph], float]:
    def cost(op: Conv2D, graph: Graph) -> float:
        taps = op.macs(graph) / op.output(graph).shape[3]
        return per_mac * op.macs(graph) + 0.3 * taps + 2.0 * op.output(graph).elements

    return cost


# ---- Depthwise ----


def _accepts_depthwise(op: DepthwiseConv2D, graph: Graph) -> bool:
    x, y = op.input(graph, 0), op.output(graph)
    return _is_int8(op, graph) and x.shape[0] == 1 and y.shape[3] == x.shape[3]


def _lower_depthwise(op: DepthwiseConv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    taps = as_int64(weights.data).reshape(-1, weights.shape[3])
    padded = windows_read_padding(x, y, op.windows(graph))
    scalars, tables = _channel_tables(op, graph, taps.T)
    scalars |= _window_scalars(op, graph) | _output_scalars(op, graph)
    scalars |= {
        "channels": x.shape[3],
        "padded": int(padded),
        "pairs_fit": int(depthwise_pairs_fit(taps)),
    }
    call = KernelCall(
        "ek_depthwise_conv_2d_neon_s8",
        "ek_depthwise_conv_2d_neon_s8.h",
        _ordered(_DEPTHWISE_SCALARS, scalars),
        {"filter": pack_channel_blocks(taps), **tables},
        (x.index,),
        y.index,
        scratch=(Scratch(DType.INT8, taps.size if padded else 1),),
        specialise=_DEPTHWISE_SPECIALISE,
    )
    return (call,)


def _cost_depthwise(op: DepthwiseConv2D, graph: Graph) -> float:
    channels = op.output(graph).shape[3]
    # The channels that are left are copied tap by tap, which takes as long as 32 others.
    counted = channels if channels % 8 == 0 else channels // 8 * 8 + 32
    return (0.4 * op.macs(graph) + 3.0 * op.output(graph).elements) * counted / channels


# ---- ADD ----


def _lower_add(op: Add, graph: Graph) -> tuple[KernelCall, ...]:
    scalars = quantized_scalars(op, graph)
    for name in ("input_1", "input_2"):
        exact = scalars[f"{name}_multiplier"] == 1 << 30 and scalars[f"{name}_shift"] == 0
        scalars[f"{name}_halves"] = int(exact)
    call = KernelCall(
        "ek_add_neon_s8",
        "ek_add_neon_s8.h",
        {"length": op.output(graph).elements, **{name: scalars[name] for name in _ADD_SCALARS}},
        {},
        (op.inputs[0], op.inputs[1]),
        op.outputs[0],
        specialise=("input_1_halves", "input_2_halves"),
    )
    return (call,)


_ADD_SCALARS = (
    "input_1_offset", "input_1_multiplier", "input_1_shift", "input_1_halves", "input_2_offset",
    "input_2_multiplier", "input_2_shift", "input_2_halves", "output_multiplier",
    "output_shift", "output_zero_point", "activation_min", "activation_max",
)  # fmt: skip


def _cost_add(op: Add, graph: Graph) -> float:
    return 6.0 * op.output(graph).elements


# ---- Pools, MEAN and SUM ----


def _lower_pool(op: Pool2D, graph: Graph) -> tuple[KernelCall, ...]:
    (call,) = lower_pool(op, graph)
    return (replace(call, kernel=f"{op.kernel}_neon_s8", header="ek_pool_2d_neon_s8.h"),)


def _accepts_pool(op: Pool2D, graph: Graph) -> bool:
    sums_fit = op.filter_h * op.filter_w <= 256 or isinstance(op, MaxPool2D)
    return op.input(graph, 0).dtype is DType.INT8 and sums_fit


def _cost_pool(op: Pool2D, graph: Graph) -> float:
    return op.output(graph).elements * (2.0 + 0.4 * op.filter_h * op.filter_w)


def _pool_kernel(name: str) -> Kernel:
    return Kernel(name, _lower_pool, _cost_pool, _NEON, _accepts_pool, overlap_pool)


def _sum_runs(op: Sum, graph: Graph) -> Runs:
    """Returns the sizes with the last one that is kept in the innermost place."""
    outer, first, middle, second, inner = op.runs(graph)
    if second == inner == 1:
        return outer, first, 1, 1, middle
    return outer, first, middle, second, inner


def _lower_sum(op: Sum, graph: Graph) -> tuple[KernelCall, ...]:
    (call,) = lower_sum(op, graph)
    shift = op.multiplier(graph).shift
    ways = {"shifts_left": int(shift > 0), "shifts_right": int(shift < 0)}
    runs = zip(_SUM_SCALARS, _sum_runs(op, graph), strict=False)
    scalars = {**call.scalars, **ways, **dict(runs)}
    kernel = "ek_sum_neon_s8"
    ordered = {name: scalars[name] for name in _SUM_SCALARS}
    specialise = ("shifts_left", "shifts_right")
    header = f"{kernel}.h"
    return (replace(call, kernel=kernel, header=header, scalars=ordered, specialise=specialise),)


_SUM_SCALARS = (
    "outer", "reduced_0", "middle", "reduced_1", "inner", "sum_offset", "multiplier", "shift",
    "shifts_left", "shifts_right", "output_zero_point",
)  # fmt: skip


def _accepts_sum(op: Sum, graph: Graph) -> bool:
    """Neighbouring sums: where the innermost axis is summed up, there are none."""
    return op.input(graph, 0).dtype is DType.INT8 and _sum_runs(op, graph)[4] >= 8


def _cost_sum(op: Sum, graph: Graph) -> float:
    return 0.6 * op.input(graph, 0).elements + 3.0 * op.output(graph).elements


_PER_MAC = {False: 0.22, True: 0.09}


def _matrix_kernel(dot: bool, accepts: Callable[..., bool]) -> Kernel:
    return Kernel(
        "matrix_dotprod_s8" if dot else "matrix_neon_s8",
        _lower_matrix(dot),
        _cost_matrix(_PER_MAC[dot]),
        _DOTPROD if dot else _NEON,
        accepts,
        _overlap_matrix(dot),
    )


def _window_kernel(dot: bool) -> Kernel:
    return Kernel(
        "conv_2d_dotprod_s8" if dot else "conv_2d_neon_s8",
        _lower_window(dot),
        _cost_window(_PER_MAC[dot]),
        _DOTPROD if dot else _NEON,
        _accepts_window,
        _overlap_window,
    )


FULLY_CONNECTED = tuple(_matrix_kernel(dot, _is_int8) for dot in (False, True))
CONV_2D = tuple(
    kernel
    for dot in (False, True)
    for kernel in (_matrix_kernel(dot, _accepts_pointwise), _window_kernel(dot))
)
DEPTHWISE_CONV_2D = (
    Kernel(
        "depthwise_conv_2d_neon_s8",
        _lower_depthwise,
        _cost_depthwise,
        _NEON,
        _accepts_depthwise,
        _overlap_window,
    ),
)
ADD = (Kernel("add_neon_s8", _lower_add, _cost_add, _NEON, has_one_size, overlap_elementwise),)
AVERAGE_POOL_2D = (_pool_kernel("average_pool_2d_neon_s8"),)
MAX_POOL_2D = (_pool_kernel("max_pool_2d_neon_s8"),)
SUM = (Kernel("sum_neon_s8", _lower_sum, _cost_sum, _NEON, _accepts_sum, overlap_reduction),)
