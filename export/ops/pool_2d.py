"""AVERAGE_POOL_2D and MAX_POOL_2D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import Graph
from edgekiln.export.ops.activation import Activation, activation_range
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlaps, as_int64
from edgekiln.export.ops.convolution import check_clamp
from edgekiln.export.ops.windows import (
    Padding,
    Window,
    check_windows,
    extract_windows,
    window_overlap,
    window_scalars,
)

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class Pool2D(Op):
    """A reduction over windows of ``int8 [N, H, W, C]``, one channel at a time."""

    filter_h: int
    filter_w: int
    stride_h: int
    stride_w: int
    padding: Padding
    activation: Activation

    variants: ClassVar[str] = "int8; filter, stride, padding; same scale in and out"
    kernel: ClassVar[str]

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("Pool2DOptions")
        return cls(
            reader.index,
            reader.inputs,
            reader.outputs,
            filter_h=options.FilterHeight(),
            filter_w=options.FilterWidth(),
            stride_h=options.StrideH(),
            stride_w=options.StrideW(),
            padding=reader.enum(Padding, options.Padding(), "padding"),
            activation=reader.enum(Activation, options.FusedActivationFunction(), "activation"),
        )

    def windows(self) -> tuple[Window, Window]:
        """Returns the windows over height and width."""
        return (
            Window(self.filter_h, self.stride_h, 1, self.padding),
            Window(self.filter_w, self.stride_w, 1, self.padding),
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        for tensor in (x, y):
            self.check_rank(graph, tensor, (4,))
            self.check_int8(graph, tensor)
        check_clamp(self, graph, self.activation)
        check_windows(self, graph, self.windows(), x.shape[3])

    def _windows_of(self, graph: Graph, x: Array, fill: int) -> Array:
        y = self.output(graph)
        window_h, window_w = self.windows()
        return extract_windows(x, window_h, window_w, y.shape[1], y.shape[2], fill)

    def _clamp(self, graph: Graph, values: Array) -> tuple[Array, ...]:
        low, high = activation_range(self.activation, self.output(graph).q)
        return (np.clip(values, low, high).astype(np.int8),)


class AveragePool2D(Pool2D):
    """The average of the inputs under each window, rounded half away from zero."""

    name: ClassVar[str] = "AVERAGE_POOL_2D"
    kernel: ClassVar[str] = "ek_average_pool_2d_s8"

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output on the codes, counting only inputs inside of the border."""
        x = as_int64(inputs[0])
        sums = self._windows_of(graph, x, fill=0).sum(axis=(3, 4))
        counts = self._windows_of(graph, np.ones_like(x), fill=0).sum(axis=(3, 4))
        rounded = (np.abs(sums) + counts // 2) // counts
        return self._clamp(graph, np.where(sums > 0, rounded, -rounded))


class MaxPool2D(Pool2D):
    """The largest of the inputs under each window."""

    name: ClassVar[str] = "MAX_POOL_2D"
    kernel: ClassVar[str] = "ek_max_pool_2d_s8"

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output on the codes."""
        windows = self._windows_of(graph, as_int64(inputs[0]), fill=-128)
        return self._clamp(graph, windows.max(axis=(3, 4)))


def _lower(op: Pool2D, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    low, high = activation_range(op.activation, y.q)
    window = window_scalars(x, y, op.windows())
    del window["dilation_height"], window["dilation_width"]
    scalars = {
        "batches": x.shape[0],
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "channels": x.shape[3],
        "filter_height": op.filter_h,
        "filter_width": op.filter_w,
        **window,
        "activation_min": low,
        "activation_max": high,
    }
    return (
        KernelCall(
            op.kernel,
            "ek_pool_2d_s8.h",
            scalars,
            {},
            (x.index,),
            y.index,
            specialise=("batches",),
        ),
    )


def _cost(op: Pool2D, graph: Graph) -> float:
    return op.output(graph).elements * (20.0 + 6.0 * op.filter_h * op.filter_w)


def _overlap(op: Pool2D, graph: Graph) -> Overlaps:
    return window_overlap(op, graph, op.windows(), channelwise=True)


AveragePool2D.kernels = (Kernel("average_pool_2d_s8", _lower, _cost, overlap=_overlap),)
MaxPool2D.kernels = (Kernel("max_pool_2d_s8", _lower, _cost, overlap=_overlap),)
