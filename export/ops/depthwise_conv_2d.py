"""DEPTHWISE_CONV_2D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.activation import Activation
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlaps, as_int64
from edgekiln.export.ops.convolution import (
    INT4_INT8_INT16_FLOAT,
    KERNEL_TYPES,
    Requantization,
    bias_and_input_offset,
    bias_values,
    bias_values_f32,
    check_accumulator,
    check_bias,
    check_clamp,
    check_types,
    check_wide_shifts,
    clamp_f32,
    has_wide_accumulator,
    multiplies,
    output_scalars,
    pack_int4,
    per_channel_requantization,
    requantize,
    scalars_f32,
    scalars_s16,
)
from edgekiln.export.ops.windows import (
    NO_BORDER,
    Border,
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
    """Convolution of each channel of ``[N, H, W, C]`` with its own filters.

    The filter is ``[1, h, w, C * depth_multiplier]``; output channel k comes from input
    channel ``k // depth_multiplier``.
    """

    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    padding: Padding
    activation: Activation
    border: Border = NO_BORDER

    name: ClassVar[str] = "DEPTHWISE_CONV_2D"
    variants: ClassVar[str] = (
        f"{INT4_INT8_INT16_FLOAT}; per channel or per tensor; depth multiplier, stride, dilation,"
        " padding"
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
            Window(filter_h, self.stride_h, self.dilation_h, self.padding, self.border[0]),
            Window(filter_w, self.stride_w, self.dilation_w, self.padding, self.border[1]),
        )

    def requantization(self, graph: Graph) -> Requantization:
        """Returns the multipliers of a quantized convolution."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        return per_channel_requantization(x, weights, y, has_wide_accumulator(self, graph))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 4))
        x, y = self.input(graph, 0), self.output(graph)
        for tensor in (x, self.input(graph, 1), y):
            self.check_rank(graph, tensor, (4,))
        weights = check_types(self, graph, channel_axis=3)
        channels = weights.shape[3]
        if weights.shape[0] != 1 or x.shape[3] < 1 or channels % x.shape[3]:
            self.reject(graph, "filter and input disagree on channels", weights.shape, x.shape)
        check_bias(self, graph, channels)
        check_clamp(self, graph, self.activation)
        check_windows(self, graph, self.windows(graph), channels)
        if x.dtype is DType.FLOAT32:
            return
        if x.dtype is DType.INT16 and not has_wide_accumulator(self, graph):
            self.unsupported(graph, "type of the bias", "int32", "int64")
        check_accumulator(self, graph, as_int64(weights.data).reshape(-1, channels).T, x)
        check_wide_shifts(self, graph, self.requantization(graph))

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: exact sums, rounded per channel, or float32 sums in tap order."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        channels = weights.shape[3]
        if x.dtype is DType.FLOAT32:
            sums = self._accumulate(graph, np.asarray(inputs[0], np.float32), weights.value)
            return (clamp_f32(sums + bias_values_f32(self, graph, channels), self.activation),)
        codes = as_int64(inputs[0]) - x.q.zero_point
        sums = self._accumulate(graph, codes, as_int64(weights.data))
        sums = sums + bias_values(self, graph, channels)
        return (requantize(y, self.requantization(graph), self.activation, sums),)

    def _accumulate(self, graph: Graph, x: Array, weights: Array) -> Array:
        """Adds up the taps of each output one after the other, in the type of ``x``."""
        y = self.output(graph)
        window_h, window_w = self.windows(graph)
        windows = extract_windows(x, window_h, window_w, y.shape[1], y.shape[2], fill=0)
        filters = weights[0].reshape(window_h.size, window_w.size, x.shape[3], -1)
        sums = np.zeros((*y.shape[:3], *filters.shape[2:]), x.dtype)
        for tap_y in range(window_h.size):
            for tap_x in range(window_w.size):
                sums += windows[:, :, :, tap_y, tap_x, :, None] * filters[tap_y, tap_x]
        return sums.reshape(y.shape)

    def macs(self, graph: Graph) -> int:
        """Counts every tap, those on the padding too."""
        _, filter_h, filter_w, _ = self.input(graph, 1).shape
        return self.output(graph).elements * filter_h * filter_w


def _filter_scalars(op: DepthwiseConv2D, graph: Graph) -> dict[str, int | float]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    _, filter_h, filter_w, channels = weights.shape
    return {
        "batches": x.shape[0],
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "input_channels": x.shape[3],
        "depth_multiplier": channels // x.shape[3],
        "filter_height": filter_h,
        "filter_width": filter_w,
        **window_scalars(x, y, op.windows(graph)),
    }


_SPECIALISE = ("batches", "depth_multiplier", "dilation_height", "dilation_width")


def _lower_s8(op: DepthwiseConv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    padded = windows_read_padding(x, y, op.windows(graph))
    matrix = as_int64(weights.data).reshape(-1, weights.shape[3]).T
    bias, input_offset = bias_and_input_offset(op, graph, matrix, padded)
    requant = op.requantization(graph)
    filters = weights.value.reshape(-1)
    packed = weights.dtype is DType.INT4
    kernel = f"ek_depthwise_conv_2d_{'s4' if packed else 's8'}"
    call = KernelCall(
        kernel,
        f"{kernel}.h",
        {
            **_filter_scalars(op, graph),
            "input_offset": input_offset,
            **output_scalars(y, requant, op.activation),
        },
        {
            "filter": pack_int4(filters[None]) if packed else filters,
            "bias": bias,
            **requant.as_c_arrays(),
        },
        (x.index,),
        y.index,
        specialise=(*_SPECIALISE, "per_channel", "shifts_left"),
    )
    return (call,)


def _lower_s16(op: DepthwiseConv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    matrix = as_int64(weights.data).reshape(-1, weights.shape[3]).T
    bias = bias_values(op, graph, weights.shape[3])
    requant = op.requantization(graph)
    call = KernelCall(
        "ek_depthwise_conv_2d_s16",
        "ek_depthwise_conv_2d_s16.h",
        {**_filter_scalars(op, graph), **scalars_s16(x, y, matrix, requant, op.activation)},
        {"filter": weights.value.reshape(-1), "bias": bias, **requant.as_c_arrays()},
        (x.index,),
        y.index,
        specialise=(*_SPECIALISE, "per_channel", "scales_wide", "sums_wide"),
    )
    return (call,)


def _lower_f32(op: DepthwiseConv2D, graph: Graph) -> tuple[KernelCall, ...]:
    weights = op.input(graph, 1)
    bias = bias_values_f32(op, graph, weights.shape[3])
    call = KernelCall(
        "ek_depthwise_conv_2d_f32",
        "ek_depthwise_conv_2d_f32.h",
        {**_filter_scalars(op, graph), **scalars_f32(op.activation)},
        {"filter": weights.value.reshape(-1), "bias": bias},
        (op.inputs[0],),
        op.outputs[0],
        specialise=_SPECIALISE,
    )
    return (call,)


def _cost(op: DepthwiseConv2D, graph: Graph) -> float:
    return 9.0 * op.macs(graph) + 40.0 * op.output(graph).elements


def _overlap(op: DepthwiseConv2D, graph: Graph) -> Overlaps:
    channelwise = op.output(graph).shape[3] == op.input(graph, 0).shape[3]
    return window_overlap(op, graph, op.windows(graph), channelwise)


_LOWER = {"s8": _lower_s8, "s4": _lower_s8, "s16": _lower_s16, "f32": _lower_f32}

DepthwiseConv2D.kernels = tuple(
    Kernel(
        f"depthwise_conv_2d_{kind}",
        _LOWER[kind],
        _cost,
        accepts=multiplies(*types),
        overlap=_overlap,
    )
    for kind, types in KERNEL_TYPES.items()
)
