"""What CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED share: weights, bias, requantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.fixed_point import (
    INT32_MAX,
    Int64Array,
    Multiplier,
    multiply_by_quantized_multiplier,
    multiply_wide_by_quantized_multiplier,
    quantize_multiplier,
    reduce_multiplier,
)
from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.activation import (
    CLAMPS,
    Activation,
    activation_range,
    activation_range_f32,
)
from edgekiln.export.ops.base import Array, KernelCall, Op, Overlap, Overlaps, as_int64
from edgekiln.export.ops.types import SUFFIX, bounds

KERNEL_TYPES = {
    "s8": (DType.INT8, DType.INT8),
    "s4": (DType.INT8, DType.INT4),
    "s16": (DType.INT16, DType.INT8),
    "f32": (DType.FLOAT32, DType.FLOAT32),
}
"""Types of input and filter, by the ending of a kernel's name."""

INT4_INT8_INT16_FLOAT = (
    "int8, int16 activations with int8 filters, float32; int4 filters with int8 activations"
)
"""The types of the operators that multiply by a constant filter, for the table."""

_WIDE_ACCUMULATOR = 1 << 47
"""Magnitude that the scaling of 64-bit accumulators is made for."""


@dataclass(frozen=True, eq=False)
class Requantization:
    """Per-channel multipliers from the accumulator to the output.

    Attributes:
        multipliers: int64 [channels], or [1] when all channels share one.
        shifts: int64, as many as ``multipliers``; negative shifts right.
        wide: Whether accumulators have 64 bits, which are scaled with 15 bits of the
            multiplier and one rounding.
    """

    multipliers: Int64Array
    shifts: Int64Array
    wide: bool = False

    @property
    def shifts_left(self) -> bool:
        """Tells whether any channel shifts left before the multiplication."""
        return bool((self.shifts > 0).any())

    def apply(self, accumulators: Int64Array) -> Int64Array:
        """Scales accumulators [..., channels]."""
        if self.wide:
            return multiply_wide_by_quantized_multiplier(
                accumulators, self.multipliers, self.shifts
            )
        return multiply_by_quantized_multiplier(accumulators, self.multipliers, self.shifts)

    def as_c_arrays(self) -> dict[str, Array]:
        """Returns the tables ``multiplier`` (int32) and ``shift`` (int8) of the C kernels.

        For 64-bit accumulators they hold the reduced multiplier and the whole right shift.
        """
        if self.wide:
            return {
                "multiplier": reduce_multiplier(self.multipliers).astype(np.int32),
                "shift": (15 - self.shifts).astype(np.int8),
            }
        return {
            "multiplier": self.multipliers.astype(np.int32),
            "shift": self.shifts.astype(np.int8),
        }


def requantization(multipliers: list[Multiplier], wide: bool = False) -> Requantization:
    """Builds the tables from one multiplier per channel, or one for all of them."""
    return Requantization(
        np.array([m.multiplier for m in multipliers], np.int64),
        np.array([m.shift for m in multipliers], np.int64),
        wide,
    )


def per_channel_requantization(
    x: Tensor, weights: Tensor, y: Tensor, wide: bool = False
) -> Requantization:
    """Multipliers from input, filter and output, one for each scale of the filter.

    The products are float64, in the oracle's wheel for matrix products too (an older source,
    ``GetQuantizedConvolutionMultipler``, multiplies in float32: 1 of a million codes differs).
    """
    return requantization(
        [quantize_multiplier(x.q.scale * float(scale) / y.q.scale) for scale in weights.q.scales],
        wide,
    )


def multiplies(x_type: DType, filter_type: DType) -> Callable[[Op, Graph], bool]:
    """Returns a test for a kernel's ``accepts``: are input and filter of these types?"""
    return lambda op, graph: (
        op.input(graph, 0).dtype is x_type and op.input(graph, 1).dtype is filter_type
    )


def has_wide_accumulator(op: Op, graph: Graph) -> bool:
    """Tells whether the oracle accumulates in 64 bits: int16 activations, int64 bias or none."""
    bias = op.optional_input(graph, 2)
    narrow = bias is not None and bias.dtype is DType.INT32
    return op.input(graph, 0).dtype is DType.INT16 and not narrow


def check_types(op: Op, graph: Graph, channel_axis: int) -> Tensor:
    """Checks the types and scales of input, filter and output.

    Args:
        op: The operator, with the filter as input 1.
        graph: Its graph.
        channel_axis: The dimension of the filter that output channels belong to.

    Returns:
        The filter.
    """
    x, y = op.input(graph, 0), op.output(graph)
    op.check_type(graph, x, DType.INT8, DType.INT16, DType.FLOAT32)
    if x.dtype is not y.dtype:
        types = f"{x.dtype.value} and {y.dtype.value}"
        op.unsupported(graph, "types of input and output differ", types, "one type")
    op.check_type(graph, y, x.dtype)
    if x.dtype is not DType.FLOAT32:
        if x.dtype is DType.INT16 and (x.q.zero_point or y.q.zero_point):
            op.unsupported(graph, "an int16 tensor has a zero point", allowed="0")
        return check_weights(op, graph, channel_axis)
    weights = op.constant(graph, 1, "filter")
    check_finite(op, graph, weights)
    if weights.dtype is not DType.FLOAT32:
        op.unsupported(
            graph,
            "the filter is quantized but the activations are float32 (a hybrid model)",
            weights.dtype.value,
            "float32",
            "convert with a representative dataset, or without quantization",
        )
    return weights


def check_finite(op: Op, graph: Graph, tensor: Tensor) -> None:
    """Checks that a constant holds neither infinities nor NaN, which C has no literal for."""
    if tensor.dtype is DType.FLOAT32 and not np.isfinite(tensor.value).all():
        op.unsupported(graph, f"constant '{tensor.name}' holds values that are not finite")


def check_weights(op: Op, graph: Graph, channel_axis: int) -> Tensor:
    """Checks that the filter of a quantized operator is a symmetric constant, and returns it."""
    weights = op.constant(graph, 1, "filter")
    allowed = [DType.INT8]
    if op.input(graph, 0).dtype is DType.INT8:
        allowed.append(DType.INT4)
    if weights.dtype not in allowed:
        names = " or ".join(dtype.value for dtype in allowed)
        op.unsupported(graph, "type of the filter", weights.dtype.value, names)
    if weights.quantization is None:
        op.reject(graph, "the filter carries no scale")
    if any(weights.quantization.zero_points):
        op.unsupported(graph, "the filter has a zero point", allowed="0")
    channels = weights.shape[channel_axis]
    scales = len(weights.quantization.scales)
    if scales not in (1, channels):
        op.reject(graph, "wrong number of filter scales", scales, f"1 or {channels}")
    if scales > 1 and weights.quantization.axis != channel_axis:
        op.reject(
            graph,
            "the filter's scales belong to the wrong dimension",
            weights.quantization.axis,
            channel_axis,
        )
    return weights


_BIAS_TYPES = {
    DType.INT8: (DType.INT32,),
    DType.INT16: (DType.INT64, DType.INT32),
    DType.FLOAT32: (DType.FLOAT32,),
}


def check_bias(
    op: Op,
    graph: Graph,
    channels: int,
    types: Mapping[DType, tuple[DType, ...]] | None = None,
) -> None:
    """Checks that the bias, where there is one, is a constant [channels] of a suitable type.

    Args:
        op: The operator, with the bias as input 2.
        graph: Its graph.
        channels: Number of output channels.
        types: The bias's types by the type of the output, where they are special.
    """
    if op.optional_input(graph, 2) is None:
        return
    bias = op.constant(graph, 2, "bias")
    check_finite(op, graph, bias)
    allowed = (_BIAS_TYPES | dict(types or {}))[op.output(graph).dtype]
    if bias.dtype not in allowed:
        names = " or ".join(dtype.value for dtype in allowed)
        op.unsupported(graph, "type of the bias", bias.dtype.value, names)
    if bias.elements != channels:
        op.reject(graph, "wrong number of biases", bias.elements, channels)


def check_accumulator(op: Op, graph: Graph, weights: NDArray[np.int64], x: Tensor) -> None:
    """Proves that no input can overflow the accumulator of a quantized operator.

    Args:
        op: The operator.
        graph: Its graph.
        weights: [channels, taps].
        x: The input tensor.
    """
    low, high = bounds(x.dtype)
    largest_input = max(high - x.q.zero_point, x.q.zero_point - low)
    # A kernel may sum codes instead of differences to the zero point: allow for both.
    if x.dtype is DType.INT8:
        largest_input += 128
    bias = bias_values(op, graph, weights.shape[0])
    bound = np.abs(weights).sum(axis=1).astype(object) * largest_input + np.abs(bias.astype(object))
    worst = max(bound, default=0)
    wide = has_wide_accumulator(op, graph)
    limit = _WIDE_ACCUMULATOR - 1 if wide else INT32_MAX
    if worst > limit:
        bits = 48 if wide else 32
        op.unsupported(graph, f"the accumulator could overflow {bits} bits", worst, limit)


def check_wide_shifts(op: Op, graph: Graph, requant: Requantization) -> None:
    """Checks that no accumulator is shifted further to the left than its type allows."""
    if (requant.shifts > (7 if requant.wide else 30)).any():
        op.unsupported(graph, "the output's scale is too small", op.output(graph).q.scale)


def sums_fit_int32(x: Tensor, weights: NDArray[np.int64]) -> bool:
    """Tells whether the products of every channel sum up within 32 bits, the bias aside."""
    low, high = bounds(x.dtype)
    return int(np.abs(weights).sum(axis=1).max(initial=0)) * max(high, -low) <= INT32_MAX


def bias_values(op: Op, graph: Graph, channels: int) -> NDArray[np.int64]:
    """Returns the bias as int64 [channels]; zeros where there is none."""
    bias = op.optional_input(graph, 2)
    if bias is None:
        return np.zeros(channels, np.int64)
    return bias.value.reshape(-1).astype(np.int64)


def check_clamp(op: Op, graph: Graph, activation: Activation) -> None:
    """Checks that the fused activation is a clamp."""
    if activation not in CLAMPS:
        allowed = ", ".join(a.name for a in CLAMPS)
        op.unsupported(graph, "fused activation", activation, allowed)


def bias_and_input_offset(
    op: Op, graph: Graph, weights: NDArray[np.int64], padded: bool
) -> tuple[Array, int]:
    """Moves the input's zero point into the bias, which is exact where no tap is skipped.

    Args:
        op: The operator.
        graph: Its graph.
        weights: [channels, taps].
        padded: Whether windows reach over the border.

    Returns:
        The bias as int32 [channels], and what the kernel has still to add to each input.
    """
    zero_point = op.input(graph, 0).q.zero_point
    bias = bias_values(op, graph, weights.shape[0])
    if padded:
        return bias.astype(np.int32), -zero_point
    return (bias - zero_point * weights.sum(axis=1)).astype(np.int32), 0


def requantize(
    y: Tensor, requant: Requantization, activation: Activation, accumulators: Int64Array
) -> Array:
    """Computes the output codes from the accumulators [..., channels]: scale, shift, clamp."""
    low, high = activation_range(activation, y.q, y.dtype)
    codes = np.clip(requant.apply(accumulators) + y.q.zero_point, low, high)
    return codes.astype(y.dtype.value)


def clamp_f32(values: Array, activation: Activation) -> Array:
    """Applies the clamp of a fused activation to float32 values."""
    low, high = activation_range_f32(activation)
    return np.minimum(np.maximum(values, np.float32(low)), np.float32(high))


def bias_values_f32(op: Op, graph: Graph, channels: int) -> NDArray[np.float32]:
    """Returns a float32 bias [channels]; zeros where there is none."""
    bias = op.optional_input(graph, 2)
    if bias is None:
        return np.zeros(channels, np.float32)
    return bias.value.reshape(-1).astype(np.float32)


def dot_f32(x: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiplies [..., taps] by [channels, taps], adding up in the order of the taps.

    That order decides the rounding; kernels and oracle have the same.
    """
    total = np.zeros((*x.shape[:-1], weights.shape[0]), np.float32)
    for tap in range(weights.shape[1]):
        total += x[..., tap, None] * weights[:, tap]
    return total


def scalars_f32(activation: Activation) -> dict[str, float]:
    """Returns what the float32 kernels need to know to write an accumulator."""
    low, high = activation_range_f32(activation)
    return {"activation_min": low, "activation_max": high}


def scalars_s16(
    x: Tensor, y: Tensor, weights: NDArray[np.int64], requant: Requantization, act: Activation
) -> dict[str, int]:
    """Returns what the int16 kernels need to know to write an accumulator."""
    low, high = activation_range(act, y.q, y.dtype)
    return {
        "activation_min": low,
        "activation_max": high,
        "per_channel": int(len(requant.multipliers) > 1),
        "scales_wide": int(requant.wide),
        "sums_wide": int(not sums_fit_int32(x, weights)),
    }


def output_scalars(
    y: Tensor, requantization: Requantization, activation: Activation
) -> dict[str, int]:
    """Returns what the C kernels need to know to write an accumulator."""
    low, high = activation_range(activation, y.q)
    return {
        "output_zero_point": y.q.zero_point,
        "activation_min": low,
        "activation_max": high,
        "per_channel": int(len(requantization.multipliers) > 1),
        "shifts_left": int(requantization.shifts_left),
    }


def pack_int4(codes: Array) -> Array:
    """Packs int4 codes [runs, length] for the C kernels: two a byte, each run from a new one."""
    padded = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).astype(np.uint8)
    pairs = (padded[:, 0::2] & 15) | (padded[:, 1::2] << 4)
    return pairs.astype(np.uint8).view(np.int8).reshape(-1)


def matrix_call(
    op: Op, graph: Graph, rows: int, requantization: Requantization | None, activation: Activation
) -> tuple[KernelCall, ...]:
    """Lowers ``[rows, depth]`` times ``[channels, depth]`` to the kernel for its types."""
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    depth = weights.shape[-1]
    channels = weights.elements // depth
    packed = weights.dtype is DType.INT4
    kernel = f"ek_fully_connected_{'s4' if packed else SUFFIX[x.dtype]}"
    filters = weights.value.reshape(channels, depth)
    scalars: dict[str, int | float] = {
        "reverse": 0,
        "rows": rows,
        "input_channels": depth,
        "output_channels": channels,
    }
    specialise: tuple[str, ...] = ()
    if x.dtype is DType.FLOAT32 or requantization is None:
        scalars |= scalars_f32(activation)
        tables: dict[str, Array] = {"bias": bias_values_f32(op, graph, channels)}
    else:
        matrix = as_int64(weights.data).reshape(channels, depth)
        if x.dtype is DType.INT16:
            scalars |= scalars_s16(x, y, matrix, requantization, activation)
            specialise = ("per_channel", "scales_wide", "sums_wide")
            tables = {"bias": bias_values(op, graph, channels)}
        else:
            scalars |= output_scalars(y, requantization, activation)
            specialise = ("per_channel", "shifts_left")
            tables = {"bias": bias_and_input_offset(op, graph, matrix, padded=False)[0]}
        tables |= requantization.as_c_arrays()
    call = KernelCall(
        kernel,
        f"{kernel}.h",
        scalars,
        {"filter": pack_int4(filters) if packed else filters.reshape(-1), **tables},
        (x.index,),
        y.index,
        specialise=specialise,
    )
    return (call,)


def matrix_overlap(op: Op, graph: Graph, rows: int, early: int | None = None) -> Overlaps:
    """Proves how far from its input the output of a matrix product has to begin.

    Row r of the output is written while row r of the input is still being read, the rest of it
    when only later rows are left. With I inputs and O outputs a row, E of them early, forwards
    rO + E <= rI and (r + 1)O <= (r + 1)I must hold. Backwards, row r must lie behind all of
    input row r: rO >= (r + 1)I. All are linear in r, so that the first and the last row decide.

    Args:
        op: The operator.
        graph: Its graph.
        rows: How many rows the input has.
        early: How many outputs of a row are written while its inputs are still needed; None for
            all but the last.
    """
    x, y = op.input(graph, 0), op.output(graph)
    inputs, outputs = x.elements // rows, y.elements // rows
    early = outputs - 1 if early is None else early
    last = rows - 1
    while_reading = max(early, last * (outputs - inputs) + early)
    between = max(0, last * (outputs - inputs))
    after = max(inputs, last * (inputs - outputs) + inputs)
    size = x.dtype.bytes
    return {0: Overlap(max(while_reading, between) * size, after * size)}
