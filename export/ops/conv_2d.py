"""CONV_2D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

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
    dot_f32,
    has_wide_accumulator,
    matrix_call,
    matrix_overlap,
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
class Conv2D(Op):
    """Convolution of ``[N, H, W, C]`` with a filter ``[O, h, w, C / groups]``."""

    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    padding: Padding
    activation: Activation
    border: Border = NO_BORDER

    name: ClassVar[str] = "CONV_2D"
    variants: ClassVar[str] = (
        f"{INT4_INT8_INT16_FLOAT}; per channel or per tensor; stride, dilation, groups, padding"
    )

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
        weights = check_types(self, graph, channel_axis=0)
        channels, _, _, group_channels = weights.shape
        check_bias(self, graph, channels)
        check_clamp(self, graph, self.activation)
        groups = x.shape[3] // max(group_channels, 1)
        if group_channels < 1 or x.shape[3] != groups * group_channels or channels % groups:
            self.reject(graph, "filter and input disagree on channels", weights.shape, x.shape)
        check_windows(self, graph, self.windows(graph), channels)
        if x.dtype is not DType.FLOAT32:
            check_accumulator(self, graph, as_int64(weights.data).reshape(channels, -1), x)
            check_wide_shifts(self, graph, self.requantization(graph))

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: exact sums, rounded per channel, or float32 sums in tap order."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        channels = weights.shape[0]
        if x.dtype is DType.FLOAT32:
            totals = self._accumulate_f32(graph, np.asarray(inputs[0], np.float32))
            return (clamp_f32(totals + bias_values_f32(self, graph, channels), self.activation),)
        sums = self._accumulate(graph, as_int64(inputs[0]) - x.q.zero_point)
        sums = sums + bias_values(self, graph, channels)
        return (requantize(y, self.requantization(graph), self.activation, sums),)

    def _columns(self, graph: Graph, x: Array) -> Array:
        """Returns the inputs under each window, [N, out_h, out_w, groups, taps]."""
        y = self.output(graph)
        _, filter_h, filter_w, group_channels = self.input(graph, 1).shape
        window_h, window_w = self.windows(graph)
        windows = extract_windows(x, window_h, window_w, y.shape[1], y.shape[2], fill=0)
        groups = x.shape[3] // group_channels
        columns = windows.reshape(*y.shape[:3], filter_h, filter_w, groups, group_channels)
        return np.moveaxis(columns, 5, 3).reshape(*y.shape[:3], groups, -1)

    def _accumulate(self, graph: Graph, x: NDArray[np.int64]) -> NDArray[np.int64]:
        # float64 holds every sum exactly: the checker has proved them to fit 48 bits.
        columns = self._columns(graph, x.astype(np.float64))
        filters = self.input(graph, 1).value.astype(np.float64)
        grouped = filters.reshape(columns.shape[3], -1, columns.shape[4])
        sums = np.einsum("nhwgt,gct->nhwgc", columns, grouped, optimize=True)
        exact: NDArray[np.int64] = sums.reshape(self.output(graph).shape).astype(np.int64)
        return exact

    def _accumulate_f32(self, graph: Graph, x: NDArray[np.float32]) -> NDArray[np.float32]:
        # A tap on the border adds 0 * weight: no change, but for the sign of a zero.
        columns = self._columns(graph, x)
        filters = self.input(graph, 1).value.reshape(columns.shape[3], -1, columns.shape[4])
        sums = [dot_f32(columns[..., g, :], filters[g]) for g in range(columns.shape[3])]
        return np.concatenate(sums, axis=-1)

    def macs(self, graph: Graph) -> int:
        """Counts every tap, those on the padding too."""
        _, filter_h, filter_w, group_channels = self.input(graph, 1).shape
        return self.output(graph).elements * filter_h * filter_w * group_channels


def _filter_scalars(op: Conv2D, graph: Graph) -> dict[str, int | float]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    channels, filter_h, filter_w, group_channels = weights.shape
    return {
        "batches": x.shape[0],
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "input_channels": x.shape[3],
        "filter_height": filter_h,
        "filter_width": filter_w,
        "filter_channels": group_channels,
        "filters_per_group": channels * group_channels // x.shape[3],
        "output_channels": channels,
        **window_scalars(x, y, op.windows(graph)),
    }


def _lower_s8(op: Conv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    channels, _, _, group_channels = weights.shape
    packed = weights.dtype is DType.INT4
    grouped = packed or group_channels != x.shape[3] or op.dilation_w != 1
    padded = windows_read_padding(x, y, op.windows(graph))
    matrix = as_int64(weights.data).reshape(channels, -1)
    bias, input_offset = bias_and_input_offset(op, graph, matrix, padded)
    requant = op.requantization(graph)
    scalars = {
        **_filter_scalars(op, graph),
        "input_offset": input_offset,
        **output_scalars(y, requant, op.activation),
    }
    if not grouped:
        for key in ("filter_channels", "filters_per_group", "dilation_width"):
            del scalars[key]
    kernel = "ek_conv_2d_s4" if packed else "ek_conv_2d_s8"
    if grouped and not packed:
        kernel = "ek_conv_2d_grouped_s8"
    filters = weights.value.reshape(-1, group_channels)
    call = KernelCall(
        kernel,
        f"{kernel}.h",
        scalars,
        {
            "filter": pack_int4(filters) if packed else filters.reshape(-1),
            "bias": bias,
            **requant.as_c_arrays(),
        },
        (x.index,),
        y.index,
        specialise=("batches", "dilation_height", "per_channel", "shifts_left"),
    )
    return (call,)


_SPECIALISE = ("batches", "filters_per_group", "dilation_height", "dilation_width")


def _lower_s16(op: Conv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, weights, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    channels = weights.shape[0]
    requant = op.requantization(graph)
    matrix = as_int64(weights.data).reshape(channels, -1)
    bias = bias_values(op, graph, channels)
    call = KernelCall(
        "ek_conv_2d_s16",
        "ek_conv_2d_s16.h",
        {**_filter_scalars(op, graph), **scalars_s16(x, y, matrix, requant, op.activation)},
        {"filter": weights.value.reshape(-1), "bias": bias, **requant.as_c_arrays()},
        (x.index,),
        y.index,
        specialise=(*_SPECIALISE, "per_channel", "scales_wide", "sums_wide"),
    )
    return (call,)


def _lower_f32(op: Conv2D, graph: Graph) -> tuple[KernelCall, ...]:
    weights = op.input(graph, 1)
    bias = bias_values_f32(op, graph, weights.shape[0])
    call = KernelCall(
        "ek_conv_2d_f32",
        "ek_conv_2d_f32.h",
        {**_filter_scalars(op, graph), **scalars_f32(op.activation)},
        {"filter": weights.value.reshape(-1), "bias": bias},
        (op.inputs[0],),
        op.outputs[0],
        specialise=_SPECIALISE,
    )
    return (call,)


def is_pointwise(op: Conv2D, graph: Graph) -> bool:
    """Tells whether every output pixel depends on the input pixel at the same place alone."""
    weights = op.input(graph, 1)
    return (
        weights.shape[1:3] == (1, 1)
        and weights.shape[3] == op.input(graph, 0).shape[3]
        and op.stride_h == op.stride_w == 1
        and op.border == NO_BORDER
    )


def _lower_pointwise(op: Conv2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    requant = None if x.dtype is DType.FLOAT32 else op.requantization(graph)
    return matrix_call(op, graph, y.elements // y.shape[3], requant, op.activation)


def _cost_general(op: Conv2D, graph: Graph) -> float:
    return 7.0 * op.macs(graph) + 40.0 * op.output(graph).elements


def _cost_pointwise(op: Conv2D, graph: Graph) -> float:
    return 5.0 * op.macs(graph) + 30.0 * op.output(graph).elements


def _overlap_general(op: Conv2D, graph: Graph) -> Overlaps:
    return window_overlap(op, graph, op.windows(graph), channelwise=False)


def _overlap_pointwise(op: Conv2D, graph: Graph) -> Overlaps:
    return matrix_overlap(op, graph, op.output(graph).elements // op.output(graph).shape[3])


def _general(kind: str) -> Kernel:
    return Kernel(
        f"conv_2d_{kind}",
        _LOWER[kind],
        _cost_general,
        accepts=multiplies(*KERNEL_TYPES[kind]),
        overlap=_overlap_general,
    )


def _pointwise(kind: str) -> Kernel:
    fits = multiplies(*KERNEL_TYPES[kind])
    return Kernel(
        f"fully_connected_{kind}",
        _lower_pointwise,
        _cost_pointwise,
        accepts=lambda op, graph: fits(op, graph) and is_pointwise(op, graph),
        overlap=_overlap_pointwise,
    )


_LOWER = {"s8": _lower_s8, "s4": _lower_s8, "s16": _lower_s16, "f32": _lower_f32}

Conv2D.kernels = tuple(make(kind) for kind in KERNEL_TYPES for make in (_general, _pointwise))
