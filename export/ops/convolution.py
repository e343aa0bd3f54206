"""What CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED share: weights, bias, requantization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.fixed_point import (
    INT32_MAX,
    Int64Array,
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
)
from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.activation import CLAMPS, Activation, activation_range
from edgekiln.export.ops.base import Array, KernelCall, Op, Overlap, Overlaps, as_int64


@dataclass(frozen=True, eq=False)
class Requantization:
    """Per-channel multipliers from the int32 accumulator to the int8 output.

    Attributes:
        multipliers: int64 [channels], or [1] when all channels share one.
        shifts: int64, as many as ``multipliers``; negative shifts right.
    """

    multipliers: Int64Array
    shifts: Int64Array

    @property
    def shifts_left(self) -> bool:
        """Tells whether any channel shifts left before the multiplication."""
        return bool((self.shifts > 0).any())

    def apply(self, accumulators: Int64Array) -> Int64Array:
        """Scales accumulators [..., channels]."""
        return multiply_by_quantized_multiplier(accumulators, self.multipliers, self.shifts)

    def as_c_arrays(self) -> dict[str, Array]:
        """Returns the tables ``multiplier`` (int32) and ``shift`` (int8) of the C kernels."""
        return {
            "multiplier": self.multipliers.astype(np.int32),
            "shift": self.shifts.astype(np.int8),
        }


def requantization(multipliers: list[Multiplier]) -> Requantization:
    """Builds the tables from one multiplier per channel, or one for all of them."""
    return Requantization(
        np.array([m.multiplier for m in multipliers], np.int64),
        np.array([m.shift for m in multipliers], np.int64),
    )


def per_channel_requantization(x: Tensor, weights: Tensor, y: Tensor) -> Requantization:
    """Multipliers of a convolution (``PopulateConvolutionQuantizationParams``)."""
    return requantization(
        [quantize_multiplier(x.q.scale * float(scale) / y.q.scale) for scale in weights.q.scales]
    )


def per_tensor_requantization(x: Tensor, weights: Tensor, y: Tensor) -> Requantization:
    """The multiplier of a fully connected layer (``GetQuantizedConvolutionMultipler``)."""
    product = float(np.float32(x.q.scale) * np.float32(weights.q.scale))
    return requantization([quantize_multiplier(product / y.q.scale)])


def check_weights(op: Op, graph: Graph, channel_axis: int) -> Tensor:
    """Checks that the weights are symmetric int8 constants, and returns them."""
    weights = op.constant(graph, 1, "filter")
    if weights.dtype is not DType.INT8:
        op.unsupported(graph, "type of the filter", weights.dtype.value, "int8")
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


def check_bias(op: Op, graph: Graph, channels: int) -> None:
    """Checks that the bias, where there is one, is an int32 constant [channels]."""
    if op.optional_input(graph, 2) is None:
        return
    bias = op.constant(graph, 2, "bias")
    if bias.dtype is not DType.INT32:
        op.unsupported(graph, "type of the bias", bias.dtype.value, "int32")
    if bias.elements != channels:
        op.reject(graph, "wrong number of biases", bias.elements, channels)


def check_accumulator(op: Op, graph: Graph, weights: NDArray[np.int64], x: Tensor) -> None:
    """Proves that no input can overflow the int32 accumulator.

    Args:
        op: The operator.
        graph: Its graph.
        weights: [channels, taps].
        x: The input tensor.
    """
    largest_input = max(127 - x.q.zero_point, 128 + x.q.zero_point)
    # A kernel may sum codes instead of differences to the zero point: allow for both.
    bound = np.abs(weights).sum(axis=1) * (largest_input + 128) + np.abs(
        bias_values(op, graph, weights.shape[0])
    )
    worst = int(bound.max(initial=0))
    if worst > INT32_MAX:
        op.unsupported(graph, "the accumulator could overflow 32 bits", worst, INT32_MAX)


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


def matrix_call(
    op: Op, graph: Graph, rows: int, requantization: Requantization, activation: Activation
) -> tuple[KernelCall, ...]:
    """Lowers ``int8 [rows, depth]`` times ``int8 [channels, depth]`` to its kernel."""
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    depth = weights.shape[-1]
    matrix = as_int64(weights.data).reshape(-1, depth)
    bias, _ = bias_and_input_offset(op, graph, matrix, padded=False)
    scalars = {
        "reverse": 0,
        "rows": rows,
        "input_channels": depth,
        "output_channels": matrix.shape[0],
        **output_scalars(y, requantization, activation),
    }
    call = KernelCall(
        "ek_fully_connected_s8",
        "ek_fully_connected_s8.h",
        scalars,
        {"filter": weights.value.reshape(-1), "bias": bias, **requantization.as_c_arrays()},
        (x.index,),
        y.index,
        specialise=("per_channel", "shifts_left"),
    )
    return (call,)


def matrix_overlap(op: Op, graph: Graph, rows: int) -> Overlaps:
    """Proves how far from its input the output of a matrix product has to begin.

    Row r of the output is written while row r of the input is still being read, its last
    element when only later rows are left. With I inputs and O outputs a row, forwards
    rO + O - 1 <= rI and (r + 1)O <= (r + 1)I must hold. Backwards, row r must lie behind all of
    input row r: rO >= (r + 1)I. All are linear in r, so that the first and the last row decide.
    """
    x, y = op.input(graph, 0), op.output(graph)
    inputs, outputs = x.elements // rows, y.elements // rows
    last = rows - 1
    while_reading = max(outputs - 1, last * (outputs - inputs) + outputs - 1)
    between = max(0, last * (outputs - inputs))
    after = max(inputs, last * (inputs - outputs) + inputs)
    size = x.dtype.bytes
    return {0: Overlap(max(while_reading, between) * size, after * size)}
