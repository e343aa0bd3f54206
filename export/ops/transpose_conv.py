"""TRANSPOSE_CONV."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.activation import Activation
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, as_int64
from edgekiln.export.ops.convolution import (
    Requantization,
    bias_values,
    bias_values_f32,
    check_accumulator,
    check_bias,
    check_clamp,
    check_types,
    check_wide_shifts,
    clamp_f32,
    output_scalars,
    per_channel_requantization,
    requantize,
    scalars_f32,
    scalars_s16,
)
from edgekiln.export.ops.types import SUFFIX
from edgekiln.export.ops.windows import Padding, Window, check_reach

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class TransposeConv(Op):
    """Each input pixel adds itself times a filter ``[O, h, w, C]`` to a window of the output.

    Of the inputs in the file (output shape, filter, input, bias) the shape is left out, since
    the output's tensor has it, and the others are in the order of CONV_2D.
    """

    stride_h: int
    stride_w: int
    padding: Padding
    activation: Activation

    name: ClassVar[str] = "TRANSPOSE_CONV"
    variants: ClassVar[str] = (
        "int8, int16 activations with int8 filters, float32; per channel or per tensor; stride,"
        " padding"
    )

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("TransposeConvOptions")
        if len(reader.inputs) not in (3, 4):
            reader.reject("wrong number of inputs", len(reader.inputs), "3 or 4")
        _, weights, x, *bias = reader.inputs
        return cls(
            reader.index,
            (x, weights, *bias),
            reader.outputs,
            stride_h=options.StrideH(),
            stride_w=options.StrideW(),
            padding=reader.enum(Padding, options.Padding(), "padding"),
            activation=reader.enum(Activation, options.FusedActivationFunction(), "activation"),
        )

    def windows(self, graph: Graph) -> tuple[Window, Window]:
        """Returns the windows over the output's height and width."""
        _, filter_h, filter_w, _ = self.input(graph, 1).shape
        return (
            Window(filter_h, self.stride_h, 1, self.padding),
            Window(filter_w, self.stride_w, 1, self.padding),
        )

    def pads(self, graph: Graph) -> tuple[int, int]:
        """Returns the rows and columns that windows reach over the output's upper left."""
        sizes = self.output(graph).shape[1:3]
        window_h, window_w = self.windows(graph)
        return (
            window_h.pad_before(sizes[0], window_h.output_size(sizes[0])),
            window_w.pad_before(sizes[1], window_w.output_size(sizes[1])),
        )

    def requantization(self, graph: Graph) -> Requantization:
        """Returns the multipliers of a quantized convolution."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        return per_channel_requantization(x, weights, y, wide=x.dtype is DType.INT16)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 4))
        x, y = self.input(graph, 0), self.output(graph)
        for tensor in (x, self.input(graph, 1), y):
            self.check_rank(graph, tensor, (4,))
        weights = check_types(self, graph, channel_axis=0)
        if weights.dtype is DType.INT4:
            self.unsupported(graph, "type of the filter", "int4", "int8")
        channels, filter_h, filter_w, depth = weights.shape
        if depth != x.shape[3] or min(weights.shape) < 1:
            self.reject(graph, "filter and input disagree on channels", weights.shape, x.shape)
        if (y.shape[0], y.shape[3]) != (x.shape[0], channels):
            allowed = (x.shape[0], *y.shape[1:3], channels)
            self.reject(graph, f"shape of '{y.name}'", y.shape, allowed)
        for stride, size, taps in (
            (self.stride_h, y.shape[1], filter_h),
            (self.stride_w, y.shape[2], filter_w),
        ):
            if stride < 1:
                self.reject(graph, "stride", stride, "1 or more")
            if self.padding is Padding.VALID and size < taps:
                self.reject(graph, f"shape of '{y.name}'", y.shape, f"at least {taps} high or wide")
        check_reach(self, graph, x.shape[0] * channels * math.prod(self._reach(graph)))
        check_clamp(self, graph, self.activation)
        check_bias(self, graph, channels, {DType.INT16: (DType.INT64, DType.INT16)})
        if x.dtype is not DType.FLOAT32:
            check_accumulator(self, graph, as_int64(weights.data).reshape(channels, -1), x)
            check_wide_shifts(self, graph, self.requantization(graph))

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: exact sums, rounded per channel, or float32 sums in input order."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        channels = weights.shape[0]
        if x.dtype is DType.FLOAT32:
            sums = self._scatter(graph, np.asarray(inputs[0], np.float32), weights.value)
            return (clamp_f32(sums + bias_values_f32(self, graph, channels), self.activation),)
        codes = as_int64(inputs[0]) - x.q.zero_point
        sums = self._scatter(graph, codes, as_int64(weights.data))
        sums = sums + bias_values(self, graph, channels)
        return (requantize(y, self.requantization(graph), self.activation, sums),)

    def _scatter(self, graph: Graph, x: Array, weights: Array) -> Array:
        """Adds up pixels and channels of the input in memory order, in the type of ``x``."""
        y = self.output(graph)
        batches, height, width, depth = x.shape
        _, filter_h, filter_w, _ = weights.shape
        top, left = self.pads(graph)
        rows, columns = self._reach(graph)
        sums = np.zeros((batches, rows, columns, y.shape[3]), x.dtype)
        # An output meets pixels in memory order when the filter is gone through backwards.
        for tap_y in reversed(range(filter_h)):
            for tap_x in reversed(range(filter_w)):
                target = sums[
                    :,
                    tap_y : tap_y + height * self.stride_h : self.stride_h,
                    tap_x : tap_x + width * self.stride_w : self.stride_w,
                ]
                for channel in range(depth):
                    target += x[..., channel, None] * weights[:, tap_y, tap_x, channel]
        return sums[:, top : top + y.shape[1], left : left + y.shape[2]]

    def _reach(self, graph: Graph) -> tuple[int, int]:
        """Returns the rows and columns that output and windows cover together."""
        x, y = self.input(graph, 0), self.output(graph)
        pads, windows = self.pads(graph), self.windows(graph)
        rows, columns = (
            max(pads[i] + y.shape[i + 1], x.shape[i + 1] * windows[i].stride + windows[i].size)
            for i in range(2)
        )
        return rows, columns

    def macs(self, graph: Graph) -> int:
        """Counts every tap, those that fall outside of the output too."""
        weights = self.input(graph, 1)
        return self.input(graph, 0).elements * weights.elements // weights.shape[3]


def _lower(op: TransposeConv, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    channels, filter_h, filter_w, depth = weights.shape
    pad_top, pad_left = op.pads(graph)
    scalars: dict[str, int | float] = {
        "batches": x.shape[0],
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "input_channels": depth,
        "filter_height": filter_h,
        "filter_width": filter_w,
        "output_height": y.shape[1],
        "output_width": y.shape[2],
        "output_channels": channels,
        "stride_height": op.stride_h,
        "stride_width": op.stride_w,
        "pad_top": pad_top,
        "pad_left": pad_left,
    }
    specialise: tuple[str, ...] = ("batches",)
    tables: dict[str, Array]
    if x.dtype is DType.FLOAT32:
        scalars |= scalars_f32(op.activation)
        tables = {"bias": bias_values_f32(op, graph, channels)}
    else:
        requant = op.requantization(graph)
        bias = bias_values(op, graph, channels)
        matrix: NDArray[np.int64] = as_int64(weights.data).reshape(channels, -1)
        if x.dtype is DType.INT16:
            scalars |= scalars_s16(x, y, matrix, requant, op.activation)
            specialise += ("per_channel", "scales_wide", "sums_wide")
        else:
            scalars |= {"input_offset": -x.q.zero_point}
            scalars |= output_scalars(y, requant, op.activation)
            specialise += ("per_channel", "shifts_left")
            bias = bias.astype(np.int32)
        tables = {"bias": bias, **requant.as_c_arrays()}
    kernel = f"ek_transpose_conv_{SUFFIX[x.dtype]}"
    call = KernelCall(
        kernel,
        f"{kernel}.h",
        scalars,
        {"filter": weights.value.reshape(-1), **tables},
        (x.index,),
        y.index,
        specialise=specialise,
    )
    return (call,)


def _cost(op: TransposeConv, graph: Graph) -> float:
    return 7.0 * op.macs(graph) + 60.0 * op.output(graph).elements


TransposeConv.kernels = (Kernel("transpose_conv", _lower, _cost),)
