"""DEPTHWISE_CONV_2D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import Graph
from edgekiln.export.ops.activation import Activation, activation_range
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlaps, as_int64
from edgekiln.export.ops.convolution import (
    bias_and_input_offset,
    bias_values,
    check_accumulator,
    check_bias,
    check_clamp,
    check_weights,
    output_scalars,
    per_channel_requantization,
)
from edgekiln.export.ops.windows import (
    Padding,
    Window,
    check_windows,
    extract_windows,
    window_overlap,
    window_scalars,
    windows_read_padding,
)

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class DepthwiseConv2D(Op):
    """Convolution of each channel of ``int8 [N, H, W, C]`` with its own filters.

    The filter is ``int8 [1, h, w, C * depth_multiplier]``; output channel k comes from input
    channel ``k // depth_multiplier``.
    """

    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    padding: Padding
    activation: Activation

    name: ClassVar[str] = "DEPTHWISE_CONV_2D"
    variants: ClassVar[str] = (
        "int8; per channel or per tensor; depth multiplier, stride, dilation, padding"
    )

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("DepthwiseConv2DOptions")
        return cls(
            reader.index,
            reader.inputs,
            reader.outputs,
            stride_h=options.StrideH(),
            stride_w=options.StrideW(),
            dilation_h=options.DilationHFactor(),
            dilation_w=options.DilationWFactor(),
            padding=reader.enum(Padding, options.Padding(), "padding"),
            activation=reader.enum(Activation, options.FusedActivationFunction(), "activation"),
        )

    def windows(self, graph: Graph) -> tuple[Window, Window]:
        """Returns the windows over height and width."""
        _, filter_h, filter_w, _ = self.input(graph, 1).shape
        return (
            Window(filter_h, self.stride_h, self.dilation_h, self.padding),
            Window(filter_w, self.stride_w, self.dilation_w, self.padding),
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 4))
        x, y = self.input(graph, 0), self.output(graph)
        for tensor in (x, self.input(graph, 1), y):
            self.check_rank(graph, tensor, (4,))
        self.check_int8(graph, x)
        self.check_int8(graph, y)
        weights = check_weights(self, graph, channel_axis=3)
        channels = weights.shape[3]
        if weights.shape[0] != 1 or x.shape[3] < 1 or channels % x.shape[3]:
            self.reject(graph, "filter and input disagree on channels", weights.shape, x.shape)
        check_bias(self, graph, channels)
        check_clamp(self, graph, self.activation)
        check_windows(self, graph, self.windows(graph), channels)
        check_accumulator(self, graph, as_int64(weights.data).reshape(-1, channels).T, x)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: exact sums, double rounding per channel."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        window_h, window_w = self.windows(graph)
        windows = extract_windows(
            as_int64(inputs[0]) - x.q.zero_point,
            window_h,
            window_w,
            y.shape[1],
            y.shape[2],
            fill=0,
        )
        multiplier = weights.shape[3] // x.shape[3]
        filters = as_int64(weights.data)[0].reshape(*weights.shape[1:3], x.shape[3], multiplier)
        sums = np.zeros((*y.shape[:3], x.shape[3], multiplier), np.int64)
        for tap_y in range(window_h.size):
            for tap_x in range(window_w.size):
                sums += windows[:, :, :, tap_y, tap_x, :, None] * filters[tap_y, tap_x]
        accumulators = sums.reshape(y.shape) + bias_values(self, graph, weights.shape[3])
        scaled = per_channel_requantization(x, weights, y).apply(accumulators)
        low, high = activation_range(self.activation, y.q)
        return (np.clip(scaled + y.q.zero_point, low, high).astype(np.int8),)

    def macs(self, graph: Graph) -> int:
        """Counts every tap, those on the padding too."""
        _, filter_h, filter_w, _ = self.input(graph, 1).shape
        return self.output(graph).elements * filter_h * filter_w


def _lower(op: DepthwiseConv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    _, filter_h, filter_w, channels = weights.shape
    padded = windows_read_padding(x, y, op.windows(graph))
    matrix = as_int64(weights.data).reshape(-1, channels).T
    bias, input_offset = bias_and_input_offset(op, graph, matrix, padded)
    requant = per_channel_requantization(x, weights, y)
    scalars = {
        "batches": x.shape[0],
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "input_channels": x.shape[3],
        "depth_multiplier": channels // x.shape[3],
        "filter_height": filter_h,
        "filter_width": filter_w,
        **window_scalars(x, y, op.windows(graph)),
        "input_offset": input_offset,
        **output_scalars(y, requant, op.activation),
    }
    call = KernelCall(
        "ek_depthwise_conv_2d_s8",
        "ek_depthwise_conv_2d_s8.h",
        scalars,
        {"filter": weights.value.reshape(-1), "bias": bias, **requant.as_c_arrays()},
        (x.index,),
        y.index,
        specialise=(
            "batches",
            "depth_multiplier",
            "dilation_height",
            "dilation_width",
            "per_channel",
            "shifts_left",
        ),
    )
    return (call,)


def _cost(op: DepthwiseConv2D, graph: Graph) -> float:
    return 9.0 * op.macs(graph) + 40.0 * op.output(graph).elements


def _overlap(op: DepthwiseConv2D, graph: Graph) -> Overlaps:
    channelwise = op.output(graph).shape[3] == op.input(graph, 0).shape[3]
    return window_overlap(op, graph, op.windows(graph), channelwise)


DepthwiseConv2D.kernels = (Kernel("depthwise_conv_2d_s8", _lower, _cost, overlap=_overlap),)
