"""Kernels for cores with Arm's DSP extension (Cortex-M4, M7, M33), and their weights' layout.

Each is one more `Kernel` of an operator: it computes the same bytes as the generic one, and
is chosen where it accepts the node and its estimated cost is lower.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.fixed_point import INT32_MAX, Multiplier, multiply_by_quantized_multiplier
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.activation import Activation, activation_range
from edgekiln.export.ops.add import Add, has_one_size
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
from edgekiln.export.ops.convolution import (
    Requantization,
    bias_and_input_offset,
    per_channel_requantization,
)
from edgekiln.export.ops.depthwise_conv_2d import DepthwiseConv2D
from edgekiln.export.ops.fully_connected import FullyConnected
from edgekiln.export.ops.windows import (
    window_overlap,
    window_scalars,
    windows_read_padding,
)

_DSP = frozenset({"dsp"})
_RIGHT_SHIFTS = range(1, 23)
"""Shifts for which a requantization in one shift cannot overflow."""


# ---- Weights: two channels to a half ----


def lane_order(depth: int) -> NDArray[np.intp]:
    """Returns the order of a row's inputs in the halves of its words: 0 2 1 3, then 4 6 5 7."""
    return (np.arange(depth).reshape(-1, 4)[:, [0, 2, 1, 3]]).reshape(-1)


def _halves(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns 256 * w1 + w0 for each pair of channels; a single last one has no partner."""
    padded = np.pad(matrix, ((0, matrix.shape[0] % 2), (0, 0)))
    return 256 * padded[1::2] + padded[0::2]


def pack_channel_pairs(matrix: NDArray[np.int64]) -> Array:
    """Packs ``[channels, inputs]`` int8 weights for ``ek_matmul_dsp``.

    Returns:
        uint32 words: for each pair of channels (the last may be alone, its partner is zero)
        the halves ``256 * w1 + w0`` in lane order, with zeros up to a multiple of 4 inputs.
    """
    halves = _halves(matrix)
    padded = np.pad(halves, ((0, 0), (0, -halves.shape[1] % 4)))
    ordered = padded[:, lane_order(padded.shape[1])].astype(np.int16)
    return np.ascontiguousarray(ordered).view(np.uint32).reshape(-1)


def pack_channel_pairs_int4(matrix: NDArray[np.int64]) -> Array:
    """Packs ``[channels, inputs]`` int4 weights for ``ek_matmul_dsp_s4``.

    Returns:
        uint32 words: for each pair of channels (the last may be alone, its partner is zero)
        the bytes ``16 * (w1 + 8) + w0 + 8``, with zero weights up to a multiple of 4 inputs.
    """
    channels, inputs = matrix.shape
    padded = np.pad(matrix, ((0, channels % 2), (0, -inputs % 4))) + 8
    return (16 * padded[1::2] + padded[0::2]).astype(np.uint8).view(np.uint32).reshape(-1)


@dataclass(frozen=True, eq=False)
class Channels:
    """What a kernel multiplies, adds and scales with, per output channel.

    Attributes:
        matrix: Weights, int64 [channels, inputs].
        bias: int64 [channels].
        multiplier: int64 [channels].
        right_shift: int64 [channels].
    """

    matrix: NDArray[np.int64]
    bias: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    right_shift: NDArray[np.int64]

    def shifts_fit(self, *, none_too: bool = False) -> bool:
        """Tells whether all shifts suit ``ek_requantize_dsp``, or are 0 where that is taken too."""
        none = none_too & (self.right_shift == 0)
        fit: NDArray[np.bool_] = none | np.isin(self.right_shift, list(_RIGHT_SHIFTS))
        return bool(fit.all())

    def accumulators_fit(self, largest_input: int) -> bool:
        """Proves that accumulators stay below 2**30 for inputs up to a magnitude."""
        bound = largest_input * np.abs(self.matrix).sum(axis=1) + np.abs(self.bias)
        return bool(bound.max(initial=0) < 2**30)

    def pairs_fit(self) -> bool:
        """Proves that no input overflows the sums of ``ek_matmul_dsp``.

        The halves have to fit 16 bits, and both sums of a pair 32 bits.
        """
        halves = _halves(self.matrix)
        sums = 128 * np.abs(halves).sum(axis=1)
        return bool(np.abs(halves).max(initial=0) <= 32767 and sums.max(initial=0) <= INT32_MAX)

    def int4_pairs_fit(self) -> bool:
        """Proves that no input overflows the sums of ``ek_matmul_dsp_s4``."""
        return bool(128 * 255 * (self.matrix.shape[1] + 3) <= INT32_MAX)

    def tables(self, filters: Array) -> dict[str, Array]:
        """Returns the tables of the C kernels."""
        return {
            "filter": filters,
            "bias": self.bias.astype(np.int32),
            "multiplier": self.multiplier.astype(np.int32),
            "right_shift": self.right_shift.astype(np.int8),
        }


def simplify_constant_channels(
    channels: Channels, low: NDArray[np.int64], high: NDArray[np.int64]
) -> Channels:
    """Rewrites channels whose output is the same for every input.

    Training leaves dead channels, with scales so small that their shifts or biases fit no fast
    kernel. A channel whose scaled accumulator is k at both ends of its range is k everywhere,
    as scaling is monotonic. Zero weights, the bias 4k, the multiplier 1/2 and a shift by one
    bit give k again.

    Args:
        channels: With shifts of any size.
        low: Smallest accumulator of each channel.
        high: Largest accumulator of each channel.
    """
    shift = -channels.right_shift
    smallest = multiply_by_quantized_multiplier(low, channels.multiplier, shift)
    largest = multiply_by_quantized_multiplier(high, channels.multiplier, shift)
    constant = (smallest == largest) & (np.abs(smallest) < 1 << 20)
    return Channels(
        np.where(constant[:, None], 0, channels.matrix),
        np.where(constant, 4 * smallest, channels.bias),
        np.where(constant, 1 << 30, channels.multiplier),
        np.where(constant, 1, channels.right_shift),
    )


def _matrix_of(op: Op, graph: Graph) -> NDArray[np.int64]:
    weights = op.input(graph, 1)
    return as_int64(weights.data).reshape(weights.shape[0], -1)


def _requantization_of(op: Op, graph: Graph) -> Requantization:
    if isinstance(op, FullyConnected):
        return op.requantization(graph)
    return per_channel_requantization(op.input(graph, 0), op.input(graph, 1), op.output(graph))


def channels_of(
    op: Op, graph: Graph, matrix: NDArray[np.int64], padded: bool
) -> tuple[Channels, int]:
    """Returns the simplified channels, and what the kernel has to add to each input.

    Args:
        op: The operator.
        graph: Its graph.
        matrix: [channels, taps].
        padded: Whether taps are skipped at the border.
    """
    count = matrix.shape[0]
    bias, offset = bias_and_input_offset(op, graph, matrix, padded)
    wide = as_int64(bias)
    requant = _requantization_of(op, graph)
    ends = np.stack([matrix * (127 + offset), matrix * (offset - 128)])
    least, most = ends.min(axis=0), ends.max(axis=0)
    if padded:  # a skipped tap adds nothing
        least, most = np.minimum(least, 0), np.maximum(most, 0)
    channels = Channels(
        matrix,
        wide,
        np.broadcast_to(requant.multipliers, count),
        np.broadcast_to(-requant.shifts, count),
    )
    low, high = wide + least.sum(axis=1), wide + most.sum(axis=1)
    return simplify_constant_channels(channels, low, high), offset


def _is_int4(op: Op, graph: Graph) -> bool:
    return op.input(graph, 1).dtype is DType.INT4


def _is_int8(op: Op, graph: Graph) -> bool:
    """Tells whether activations are int8, and weights int8 or int4."""
    activations = (op.input(graph, 0), op.output(graph))
    weights = op.input(graph, 1).dtype in (DType.INT8, DType.INT4)
    return weights and all(tensor.dtype is DType.INT8 for tensor in activations)


def _weights_fit(op: Op, graph: Graph) -> bool:
    channels, _ = channels_of(op, graph, _matrix_of(op, graph), padded=False)
    pairs_fit = channels.int4_pairs_fit() if _is_int4(op, graph) else channels.pairs_fit()
    return channels.shifts_fit() and channels.accumulators_fit(128) and pairs_fit


def _tables(op: Op, graph: Graph) -> dict[str, Array]:
    channels, _ = channels_of(op, graph, _matrix_of(op, graph), padded=False)
    pack = pack_channel_pairs_int4 if _is_int4(op, graph) else pack_channel_pairs
    return channels.tables(pack(channels.matrix))


def _matmul_tables(op: Op, graph: Graph) -> dict[str, Array]:
    """Returns the tables of the kernels that use ``ek_matmul_dsp_write``."""
    tables = _tables(op, graph)
    return {"filter": tables["filter"], "twice_bias": 2 * tables.pop("bias"), **tables}


def _weight_bits(op: Op, graph: Graph) -> int:
    return 4 if _is_int4(op, graph) else 8


def output_scalars_of(op: Op, graph: Graph) -> dict[str, int]:
    """Returns the zero point and the limits of the outputs, for the C kernels."""
    y = op.output(graph)
    low, high = activation_range(getattr(op, "activation", Activation.NONE), y.q)
    return {
        "output_zero_point": y.q.zero_point,
        "activation_min": low,
        "activation_max": high,
    }


def _widened_pair(depth: int) -> Scratch:
    return Scratch(DType.UINT32, depth)


# ---- FULLY_CONNECTED ----


def _accepts_dense(op: FullyConnected, graph: Graph) -> bool:
    return _is_int8(op, graph) and op.input(graph, 1).shape[1] % 4 == 0 and _weights_fit(op, graph)


def _lower_vector(op: FullyConnected, graph: Graph) -> tuple[KernelCall, ...]:
    channels, depth = op.input(graph, 1).shape
    call = KernelCall(
        "ek_vector_dsp_s8",
        "ek_vector_dsp_s8.h",
        {"depth": depth, "channels": channels, **output_scalars_of(op, graph)},
        _tables(op, graph),
        (op.inputs[0],),
        op.outputs[0],
    )
    return (call,)


def _accepts_vector(op: FullyConnected, graph: Graph) -> bool:
    return _accepts_dense(op, graph) and op.rows(graph) == 1 and not _is_int4(op, graph)


def _accepts_quad_vector(op: FullyConnected, graph: Graph) -> bool:
    return op.input(graph, 1).shape[0] % 4 == 0 and _accepts_vector(op, graph)


def _lower_quad_vector(op: FullyConnected, graph: Graph) -> tuple[KernelCall, ...]:
    (call,) = _lower_vector(op, graph)
    channels, depth = op.input(graph, 1).shape
    # For every four inputs the two words of one pair of channels, then those of the next.
    words = call.arrays["filter"].reshape(channels // 4, 2, depth // 4, 2)
    filters = np.ascontiguousarray(words.transpose(0, 2, 1, 3)).reshape(-1)
    kernel = "ek_vector_quad_dsp_s8"
    arrays = {**call.arrays, "filter": filters}
    return (replace(call, kernel=kernel, header=f"{kernel}.h", arrays=arrays),)


def _cost_quad_vector(op: FullyConnected, graph: Graph) -> float:
    return 1.1 * op.macs(graph) + 18.0 * op.output(graph).elements


def _accepts_rows(op: FullyConnected, graph: Graph) -> bool:
    return _accepts_dense(op, graph) and (op.rows(graph) > 1 or _is_int4(op, graph))


def _cost_vector(op: FullyConnected, graph: Graph) -> float:
    return 1.6 * op.macs(graph) + 18.0 * op.output(graph).elements


# ---- 1x1 convolutions and dense layers of several rows ----


def _lower_matrix(op: Op, graph: Graph) -> tuple[KernelCall, ...]:
    weights = op.input(graph, 1)
    channels, depth = weights.shape[0], weights.shape[-1]
    scalars = {
        "reverse": 0,
        "rows": op.input(graph, 0).elements // depth,
        "depth": depth,
        "channels": channels,
        **output_scalars_of(op, graph),
        "weight_bits": _weight_bits(op, graph),
    }
    call = KernelCall(
        "ek_matrix_dsp_s8",
        "ek_matrix_dsp_s8.h",
        scalars,
        _matmul_tables(op, graph),
        (op.inputs[0],),
        op.outputs[0],
        scratch=(_widened_pair(depth),),
        specialise=("weight_bits",),
    )
    return (call,)


def _overlap_matrix(op: Op, graph: Graph) -> Overlaps:
    """Both rows of a pair are read before one of their outputs is written.

    With I inputs and O outputs a row, forwards eO <= eI must hold at the end e of each pair
    but the last; backwards bO >= bI at the beginning b of each. Both are linear.
    """
    weights = op.input(graph, 1)
    inputs, outputs = weights.shape[-1], weights.shape[0]
    rows = op.input(graph, 0).elements // inputs
    last_begin = 2 * ((rows + 1) // 2 - 1)
    before = max(0, last_begin * (outputs - inputs))
    after = max(0, last_begin * (inputs - outputs))
    return {0: Overlap(before, after)}


def _accepts_pointwise(op: Conv2D, graph: Graph) -> bool:
    return (
        _is_int8(op, graph)
        and is_pointwise(op, graph)
        and op.input(graph, 1).shape[3] % 4 == 0
        and _weights_fit(op, graph)
    )


def _cost_matrix(op: Op, graph: Graph) -> float:
    return 0.95 * op.macs(graph) + 20.0 * op.output(graph).elements


# ---- Convolutions with any filter ----


def _accepts_window(op: Conv2D, graph: Graph) -> bool:
    x, weights = op.input(graph, 0), op.input(graph, 1)
    return (
        _is_int8(op, graph)
        and x.shape[0] == 1
        and op.dilation_w == 1
        and weights.shape[3] == x.shape[3]
        and _weights_fit(op, graph)
    )


def _lower_window(op: Conv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    channels, filter_h, filter_w, _ = weights.shape
    inputs = weights.elements // channels
    depth = inputs + -inputs % 4
    window = window_scalars(x, y, op.windows(graph))
    del window["dilation_width"]
    scalars = {
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "input_channels": x.shape[3],
        "input_zero_point": x.q.zero_point,
        "filter_height": filter_h,
        "filter_width": filter_w,
        "depth": depth,
        "channels": channels,
        **window,
        **output_scalars_of(op, graph),
        "weight_bits": _weight_bits(op, graph),
    }
    by_bytes = x.shape[3] % 4 != 0
    call = KernelCall(
        "ek_conv_2d_dsp_s8",
        "ek_conv_2d_dsp_s8.h",
        scalars,
        _matmul_tables(op, graph),
        (x.index,),
        y.index,
        scratch=(_widened_pair(depth), Scratch(DType.INT8, depth if by_bytes else 1)),
        specialise=(
            *("dilation_height", "weight_bits"),
            *(("input_channels", "filter_width") if by_bytes else ()),
        ),
    )
    return (call,)


def _overlap_window(op: Conv2D, graph: Graph) -> Overlaps:
    return window_overlap(op, graph, op.windows(graph), channelwise=True)


def _cost_window(op: Conv2D, graph: Graph) -> float:
    gathering = 1.3 if op.input(graph, 0).shape[3] % 4 == 0 else 8.0
    taps = op.macs(graph) / op.output(graph).shape[3]
    return 0.95 * op.macs(graph) + gathering * taps + 20.0 * op.output(graph).elements


# ---- Depthwise ----


def _accepts_depthwise(op: DepthwiseConv2D, graph: Graph) -> bool:
    x, y = op.input(graph, 0), op.output(graph)
    if not _is_int8(op, graph) or x.shape[0] != 1 or x.shape[3] % 4 or y.shape[3] != x.shape[3]:
        return False
    channels, _ = _depthwise_channels(op, graph)
    return channels.shifts_fit(none_too=True) and channels.accumulators_fit(255)


def _depthwise_channels(op: DepthwiseConv2D, graph: Graph) -> tuple[Channels, int]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    padded = windows_read_padding(x, y, op.windows(graph))
    matrix = as_int64(weights.data).reshape(-1, weights.shape[3]).T
    return channels_of(op, graph, matrix, padded)


def _lower_depthwise(op: DepthwiseConv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    _, filter_h, filter_w, _ = weights.shape
    channels, input_offset = _depthwise_channels(op, graph)
    scalars = {
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "channels": x.shape[3],
        "filter_height": filter_h,
        "filter_width": filter_w,
        **window_scalars(x, y, op.windows(graph)),
        "input_offset": input_offset,
        **output_scalars_of(op, graph),
        "unshifted": int(np.any(channels.right_shift == 0)),
    }
    filters = np.ascontiguousarray(channels.matrix.T).astype(np.int8).reshape(-1)
    call = KernelCall(
        "ek_depthwise_conv_2d_dsp_s8",
        "ek_depthwise_conv_2d_dsp_s8.h",
        scalars,
        channels.tables(filters),
        (x.index,),
        y.index,
        specialise=("filter_width", "dilation_height", "dilation_width", "unshifted"),
    )
    return (call,)


def _overlap_depthwise(op: DepthwiseConv2D, graph: Graph) -> Overlaps:
    return window_overlap(op, graph, op.windows(graph), channelwise=True)


def _cost_depthwise(op: DepthwiseConv2D, graph: Graph) -> float:
    return 3.5 * op.macs(graph) + 25.0 * op.output(graph).elements


# ---- ADD ----


def _accepts_add(op: Add, graph: Graph) -> bool:
    if not has_one_size(op, graph):
        return False
    _, smaller, output = _ordered_multipliers(op, graph)
    return -smaller.shift in range(23) and -output.shift in _RIGHT_SHIFTS


def _ordered_multipliers(op: Add, graph: Graph) -> tuple[Multiplier, Multiplier, Multiplier]:
    """Returns the scales of the larger input (always one half), of the other, and of the output."""
    first, second, output = op.multipliers(graph)
    if op.input(graph, 0).q.scale >= op.input(graph, 1).q.scale:
        return first, second, output
    return second, first, output


def _lower_add(op: Add, graph: Graph) -> tuple[KernelCall, ...]:
    larger, smaller = op.inputs
    if op.input(graph, 0).q.scale < op.input(graph, 1).q.scale:
        larger, smaller = smaller, larger
    _, scale, output = _ordered_multipliers(op, graph)
    y = op.output(graph)
    scalars = {
        "length": y.elements,
        "larger_offset": -graph.tensor(larger).q.zero_point << 19,
        "smaller_offset": -graph.tensor(smaller).q.zero_point << 21,
        "smaller_multiplier": scale.multiplier,
        "smaller_right": -scale.shift,
        "output_multiplier": output.multiplier,
        "output_right": -output.shift,
        **output_scalars_of(op, graph),
    }
    kernel = "ek_add_dsp_s8"
    return (KernelCall(kernel, f"{kernel}.h", scalars, {}, (larger, smaller), op.outputs[0]),)


def _cost_add(op: Add, graph: Graph) -> float:
    return 20.0 * op.output(graph).elements


ADD = (Kernel("add_dsp_s8", _lower_add, _cost_add, _DSP, _accepts_add, overlap_elementwise),)
FULLY_CONNECTED = (
    Kernel("vector_dsp_s8", _lower_vector, _cost_vector, _DSP, _accepts_vector),
    Kernel("vector_quad_dsp_s8", _lower_quad_vector, _cost_quad_vector, _DSP, _accepts_quad_vector),
    Kernel("matrix_dsp_s8", _lower_matrix, _cost_matrix, _DSP, _accepts_rows, _overlap_matrix),
)
CONV_2D = (
    Kernel("matrix_dsp_s8", _lower_matrix, _cost_matrix, _DSP, _accepts_pointwise, _overlap_matrix),
    Kernel("conv_2d_dsp_s8", _lower_window, _cost_window, _DSP, _accepts_window, _overlap_window),
)
DEPTHWISE_CONV_2D = (
    Kernel(
        "depthwise_conv_2d_dsp_s8",
        _lower_depthwise,
        _cost_depthwise,
        _DSP,
        _accepts_depthwise,
        _overlap_depthwise,
    ),
)
