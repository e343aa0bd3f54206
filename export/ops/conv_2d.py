"""CONV_2D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

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
    matrix_call,
    matrix_overlap,
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
class Conv2D(Op):
    """Convolution of ``int8 [N, H, W, C]`` with a filter ``int8 [O, h, w, C / groups]``."""

    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    padding: Padding
    activation: Activation

    name: ClassVar[str] = "CONV_2D"
    variants: ClassVar[str] = "int8; per channel or per tensor; stride, dilation, groups, padding"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("Conv2DOptions")
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
        weights = check_weights(self, graph, channel_axis=0)
        channels, _, _, group_channels = weights.shape
        check_bias(self, graph, channels)
        check_clamp(self, graph, self.activation)
        groups = x.shape[3] // max(group_channels, 1)
        if group_channels < 1 or x.shape[3] != groups * group_channels or channels % groups:
            self.reject(graph, "filter and input disagree on channels", weights.shape, x.shape)
        check_windows(self, graph, self.windows(graph), channels)
        check_accumulator(self, graph, as_int64(weights.data).reshape(channels, -1), x)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: exact sums, double rounding per channel."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        accumulators = self._accumulate(graph, as_int64(inputs[0]) - x.q.zero_point)
        accumulators = accumulators + bias_values(self, graph, weights.shape[0])
        scaled = per_channel_requantization(x, weights, y).apply(accumulators)
        low, high = activation_range(self.activation, y.q)
        return (np.clip(scaled + y.q.zero_point, low, high).astype(np.int8),)

    def _accumulate(self, graph: Graph, x: NDArray[np.int64]) -> NDArray[np.int64]:
        weights, y = self.input(graph, 1), self.output(graph)
        channels, filter_h, filter_w, group_channels = weights.shape
        window_h, window_w = self.windows(graph)
        # float64 holds every sum exactly: the checker has proved them to fit 32 bits.
        windows = extract_windows(
            x.astype(np.float64), window_h, window_w, y.shape[1], y.shape[2], fill=0
        )
        groups = x.shape[3] // group_channels
        taps = filter_h * filter_w * group_channels
        columns = windows.reshape(*y.shape[:3], filter_h, filter_w, groups, group_channels)
        columns = np.moveaxis(columns, 5, 3).reshape(*y.shape[:3], groups, taps)
        filters = weights.value.astype(np.float64).reshape(groups, channels // groups, taps)
        sums = np.einsum("nhwgt,gct->nhwgc", columns, filters, optimize=True)
        exact: NDArray[np.int64] = sums.reshape(y.shape).astype(np.int64)
        return exact

    def macs(self, graph: Graph) -> int:
        """Counts every tap, those on the padding too."""
        _, filter_h, filter_w, group_channels = self.input(graph, 1).shape
        return self.output(graph).elements * filter_h * filter_w * group_channels


def _lower_general(op: Conv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    channels, filter_h, filter_w, group_channels = weights.shape
    grouped = group_channels != x.shape[3] or op.dilation_w != 1
    window = window_scalars(x, y, op.windows(graph))
    padded = windows_read_padding(x, y, op.windows(graph))
    matrix = as_int64(weights.data).reshape(channels, -1)
    bias, input_offset = bias_and_input_offset(op, graph, matrix, padded)
    requant = per_channel_requantization(x, weights, y)
    scalars = {
        "batches": x.shape[0],
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "input_channels": x.shape[3],
        "filter_height": filter_h,
        "filter_width": filter_w,
        "filter_channels": group_channels,
        "filters_per_group": channels * group_channels // x.shape[3],
        "output_channels": channels,
        **window,
        "input_offset": input_offset,
        **output_scalars(y, requant, op.activation),
    }
    if not grouped:
        for key in ("filter_channels", "filters_per_group", "dilation_width"):
            del scalars[key]
    kernel = "ek_conv_2d_grouped_s8" if grouped else "ek_conv_2d_s8"
    call = KernelCall(
        kernel,
        f"{kernel}.h",
        scalars,
        {"filter": weights.value.reshape(-1), "bias": bias, **requant.as_c_arrays()},
        (x.index,),
        y.index,
        specialise=("batches", "dilation_height", "per_channel", "shifts_left"),
    )
    return (call,)


def _is_pointwise(op: Conv2D, graph: Graph) -> bool:
    weights = op.input(graph, 1)
    return (
        weights.shape[1:3] == (1, 1)
        and weights.shape[3] == op.input(graph, 0).shape[3]
        and op.stride_h == op.stride_w == 1
    )


def _lower_pointwise(op: Conv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    rows = y.elements // y.shape[3]
    return matrix_call(op, graph, rows, per_channel_requantization(x, weights, y), op.activation)


def _cost_general(op: Conv2D, graph: Graph) -> float:
    return 7.0 * op.macs(graph) + 40.0 * op.output(graph).elements


def _cost_pointwise(op: Conv2D, graph: Graph) -> float:
    return 5.0 * op.macs(graph) + 30.0 * op.output(graph).elements


def _overlap_general(op: Conv2D, graph: Graph) -> Overlaps:
    return window_overlap(op, graph, op.windows(graph), channelwise=False)


def _overlap_pointwise(op: Conv2D, graph: Graph) -> Overlaps:
    return matrix_overlap(op, graph, op.output(graph).elements // op.output(graph).shape[3])


Conv2D.kernels = (
    Kernel("conv_2d_s8", _lower_general, _cost_general, overlap=_overlap_general),
    Kernel(
        "fully_connected_s8",
        _lower_pointwise,
        _cost_pointwise,
        accepts=_is_pointwise,
        overlap=_overlap_pointwise,
    ),
)
