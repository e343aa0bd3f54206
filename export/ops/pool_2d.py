"""AVERAGE_POOL_2D and MAX_POOL_2D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.activation import Activation, activation_range
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlaps, as_int64
from edgekiln.export.ops.convolution import check_clamp, clamp_f32, scalars_f32
from edgekiln.export.ops.types import SUFFIX, first_input_is
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


_SCALE_TOLERANCE = 1e-6
"""How far the scales of input and output may differ, as for the oracle."""

_MOST_TAPS = 1 << 15
"""So many int16 values and a rounding term still add up within 32 bits."""


@dataclass(frozen=True)
class Pool2D(Op):
    """A reduction over windows of ``[N, H, W, C]``, one channel at a time."""

    filter_h: int
    filter_w: int
    stride_h: int
    stride_w: int
    padding: Padding
    activation: Activation

    variants: ClassVar[str] = "int8, int16, float32; filter, stride, padding; same scale in and out"
    kernel: ClassVar[str]

    @property
    def shift(self) -> int:
        """What the kernel adds to int8 codes before it works on them."""
        return 0

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
            self.check_type(graph, tensor, DType.INT8, DType.INT16, DType.FLOAT32)
        self.check_same_type(graph, x, y)
        if x.dtype is not DType.FLOAT32:
            self._check_scales(graph)
        check_clamp(self, graph, self.activation)
        check_windows(self, graph, self.windows(), x.shape[3])
        if self.filter_h * self.filter_w > _MOST_TAPS:
            got = self.filter_h * self.filter_w
            self.unsupported(graph, "elements under the filter", got, f"at most {_MOST_TAPS}")

    def _check_scales(self, graph: Graph) -> None:
        x, y = self.input(graph, 0), self.output(graph)
        if abs(x.q.scale - y.q.scale) > _SCALE_TOLERANCE or x.q.zero_point != y.q.zero_point:
            self.check_same_quantization(graph, x, y)

    def _windows_of(self, graph: Graph, x: Array, fill: float) -> Array:
        y = self.output(graph)
        window_h, window_w = self.windows()
        return extract_windows(x, window_h, window_w, y.shape[1], y.shape[2], fill)

    def _clamp(self, graph: Graph, values: Array) -> tuple[Array, ...]:
        y = self.output(graph)
        if y.dtype is DType.FLOAT32:
            return (clamp_f32(values, self.activation),)
        low, high = activation_range(self.activation, y.q, y.dtype)
        return (np.clip(values, low, high).astype(y.dtype.value),)


@dataclass(frozen=True)
class AveragePool2D(Pool2D):
    """The average of the inputs under each window, rounded half away from zero.

    Attributes:
        halves_up: Halves are rounded up instead, as on the uint8 codes that a model had.
    """

    halves_up: bool = False

    @property
    def shift(self) -> int:
        """What the kernel adds to int8 codes before it averages them.

        Codes that are not negative are rounded halves up, in C as everywhere.
        """
        return 128 if self.halves_up else 0

    name: ClassVar[str] = "AVERAGE_POOL_2D"
    kernel: ClassVar[str] = "ek_average_pool_2d"

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output on the codes, counting only inputs inside of the border."""
        x = np.asarray(inputs[0])
        counts = self._windows_of(graph, np.ones(x.shape, np.int64), fill=0).sum(axis=(3, 4))
        if x.dtype == np.float32:
            return self._clamp(graph, self._sums_f32(graph, x) / counts.astype(np.float32))
        sums = self._windows_of(graph, as_int64(x), fill=0).sum(axis=(3, 4))
        if self.halves_up:
            return self._clamp(graph, (sums + counts // 2) // counts)
        rounded = (np.abs(sums) + counts // 2) // counts
        return self._clamp(graph, np.where(sums > 0, rounded, -rounded))

    def _sums_f32(self, graph: Graph, x: Array) -> Array:
        """Adds up in memory order: what is outside of the border adds nothing."""
        windows = self._windows_of(graph, x, fill=0)
        total = np.zeros(self.output(graph).shape, np.float32)
        for row in range(self.filter_h):
            for column in range(self.filter_w):
                total += windows[:, :, :, row, column]
        return total


class MaxPool2D(Pool2D):
    """The largest of the inputs under each window."""

    name: ClassVar[str] = "MAX_POOL_2D"
    kernel: ClassVar[str] = "ek_max_pool_2d"

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output on the codes."""
        x = np.asarray(inputs[0])
        lowest = np.finfo(x.dtype).min if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        windows = self._windows_of(graph, x, fill=lowest)
        return self._clamp(graph, np.fmax(windows.max(axis=(3, 4)), lowest))


def lower_pool(op: Pool2D, graph: Graph) -> tuple[KernelCall, ...]:
    """Lowers to the kernel for any core."""
    x, y = op.input(graph, 0), op.output(graph)
    window = window_scalars(x, y, op.windows())
    del window["dilation_height"], window["dilation_width"]
    scalars: dict[str, int | float] = {
        "batches": x.shape[0],
        "input_height": x.shape[1],
        "input_width": x.shape[2],
        "channels": x.shape[3],
        "filter_height": op.filter_h,
        "filter_width": op.filter_w,
        **window,
    }
    if y.dtype is DType.FLOAT32:
        scalars |= scalars_f32(op.activation)
    else:
        low, high = activation_range(op.activation, y.q, y.dtype)
        scalars |= {"activation_min": low, "activation_max": high}
    if y.dtype is DType.INT8:
        scalars["shift"] = op.shift
    suffix = SUFFIX[x.dtype]
    return (
        KernelCall(
            f"{op.kernel}_{suffix}",
            f"ek_pool_2d_{suffix}.h",
            scalars,
            {},
            (x.index,),
            y.index,
            specialise=("batches", "shift") if "shift" in scalars else ("batches",),
        ),
    )


def _cost(op: Pool2D, graph: Graph) -> float:
    return op.output(graph).elements * (20.0 + 6.0 * op.filter_h * op.filter_w)


def overlap_pool(op: Pool2D, graph: Graph) -> Overlaps:
    """Tells how far the output may lie over the input."""
    return window_overlap(op, graph, op.windows(), channelwise=True)


def _kernels(name: str) -> tuple[Kernel, ...]:
    return tuple(
        Kernel(
            f"{name}_{SUFFIX[dtype]}",
            lower_pool,
            _cost,
            accepts=first_input_is(dtype),
            overlap=overlap_pool,
        )
        for dtype in (DType.INT8, DType.INT16, DType.FLOAT32)
    )


AveragePool2D.kernels = _kernels("average_pool_2d")
MaxPool2D.kernels = _kernels("max_pool_2d")
