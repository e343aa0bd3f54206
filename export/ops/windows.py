"""Sliding windows: output sizes, padding, and numpy views of them (NHWC)."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.ir import Graph, Tensor
from edgekiln.export.ops.base import Op, Overlap, Overlaps

MAX_REACHED_ELEMENTS = 1 << 26
"""Elements of a tensor together with the border around it."""

_MAX_GATHERED_ELEMENTS = 1 << 26
"""Elements under all windows of an operator together, which its definition gathers."""


class Padding(enum.Enum):
    """How a window treats the border, by its number in the file format."""

    SAME = 0
    VALID = 1

    def __str__(self) -> str:
        return self.name


Border = tuple[tuple[int, int], tuple[int, int]]
"""Zeros before and after height and width, from a PAD that was folded into a convolution."""

NO_BORDER: Border = ((0, 0), (0, 0))


@dataclass(frozen=True)
class Window:
    """A window that slides over one dimension.

    Attributes:
        size: Elements under the window.
        stride: Step between outputs.
        dilation: Step between elements under the window.
        padding: How the border is treated.
        border: Zeros before and after the input, which count as input for the padding.
    """

    size: int
    stride: int
    dilation: int
    padding: Padding
    border: tuple[int, int] = (0, 0)

    @property
    def extent(self) -> int:
        """How many inputs the window spans."""
        return (self.size - 1) * self.dilation + 1

    def output_size(self, input_size: int) -> int:
        """Returns the number of outputs (``ComputeOutSize``)."""
        padded = input_size + sum(self.border)
        if self.padding is Padding.SAME:
            return -(-padded // self.stride)
        return (padded + self.stride - self.extent) // self.stride

    def pad_before(self, input_size: int, output_size: int) -> int:
        """Returns the padding before the first input (``ComputePadding``)."""
        padded = input_size + sum(self.border)
        total = (output_size - 1) * self.stride + self.extent - padded
        return self.border[0] + max(total, 0) // 2

    def pads(self, input_size: int, output_size: int) -> tuple[int, int]:
        """Returns how far windows reach over the input's beginning and its end."""
        before = self.pad_before(input_size, output_size)
        last = (output_size - 1) * self.stride - before + self.extent
        return before, max(last - input_size, 0)

    def reads_padding(self, input_size: int, output_size: int) -> bool:
        """Tells whether any window reaches over the border."""
        before = self.pad_before(input_size, output_size)
        last = (output_size - 1) * self.stride - before + self.extent
        return before > 0 or last > input_size

    def touches_input(self, input_size: int, output_size: int) -> bool:
        """Tells whether every output has an element of the input under its window."""
        origin = np.arange(output_size) * self.stride - self.pad_before(input_size, output_size)
        first = np.where(origin < 0, -(origin // self.dilation), 0)
        return bool(np.all((first < self.size) & (origin + first * self.dilation < input_size)))


def extract_windows(
    x: NDArray[Any], window_h: Window, window_w: Window, out_h: int, out_w: int, fill: float
) -> NDArray[Any]:
    """Gathers the inputs under each window.

    Args:
        x: Values [N, H, W, C].
        window_h: The window over H.
        window_w: The window over W.
        out_h: Outputs over H.
        out_w: Outputs over W.
        fill: The value that stands outside of the input.

    Returns:
        Values [N, out_h, out_w, window_h.size, window_w.size, C], a view where possible.
    """
    _, height, width, _ = x.shape
    pads = (window_h.pads(height, out_h), window_w.pads(width, out_w))
    padded = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    n, h, w, c = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        (x.shape[0], out_h, out_w, window_h.size, window_w.size, x.shape[3]),
        (
            n,
            h * window_h.stride,
            w * window_w.stride,
            h * window_h.dilation,
            w * window_w.dilation,
            c,
        ),
        writeable=False,
    )


def check_windows(op: Op, graph: Graph, windows: tuple[Window, Window], channels: int) -> None:
    """Checks two windows over [N, H, W, C], and the output's shape against them."""
    x, y = op.input(graph, 0), op.output(graph)
    for window, what in zip(windows, ("height", "width"), strict=True):
        for value, name in (
            (window.stride, "stride"),
            (window.dilation, "dilation"),
            (window.size, "filter size"),
        ):
            if value < 1:
                op.reject(graph, f"{name} over the {what}", value, "1 or more")
    expected = (
        x.shape[0],
        windows[0].output_size(x.shape[1]),
        windows[1].output_size(x.shape[2]),
        channels,
    )
    if y.shape != expected:
        op.reject(graph, f"shape of '{y.name}'", y.shape, expected)
    reached = tuple(
        size + sum(window.pads(size, out))
        for window, size, out in zip(windows, x.shape[1:3], y.shape[1:3], strict=True)
    )
    check_reach(op, graph, x.shape[0] * x.shape[3] * math.prod(reached))
    gathered = math.prod(y.shape[:3]) * windows[0].size * windows[1].size * x.shape[3]
    if gathered > _MAX_GATHERED_ELEMENTS:
        allowed = f"at most {_MAX_GATHERED_ELEMENTS}"
        op.unsupported(graph, "elements under all windows", gathered, allowed)


def check_reach(op: Op, graph: Graph, elements: int) -> None:
    """Checks that windows stay near their tensor, and positions within 32 bits."""
    if elements > MAX_REACHED_ELEMENTS:
        op.unsupported(
            graph, "windows reach over more elements", elements, f"at most {MAX_REACHED_ELEMENTS}"
        )


def window_overlap(
    op: Op, graph: Graph, windows: tuple[Window, Window], channelwise: bool
) -> Overlaps:
    """Proves how far before its input the output of a window kernel has to begin.

    The kernel goes through the output pixels in memory order. Let R(p) be the lowest address
    that it reads for pixel p or a later one. All channels of pixel p but the last are written
    while the window of p is still being read, the last when only pixels after p are left:
    with C output channels, pC + C - 1 <= R(p) and (p + 1)C <= R(p + 1) must hold. A channelwise
    kernel never comes back to a channel, so that the second condition suffices.

    Args:
        op: The operator; input 0 and output 0 are [1, H, W, C].
        graph: Its graph.
        windows: The windows over height and width.
        channelwise: Whether output channel c is computed from input channel c alone.

    Returns:
        What `edgekiln.export.ops.base.Kernel.overlap` returns.
    """
    x, y = op.input(graph, 0), op.output(graph)
    if x.shape[0] != 1:
        return {}
    furthest = furthest_ahead(windows, x.shape, y.shape)
    distance = max(furthest, 0)
    if not channelwise:
        distance = max(distance, furthest + y.shape[3] - 1)
    return {0: Overlap(distance * x.dtype.bytes)}


def furthest_ahead(
    windows: tuple[Window, Window], x_shape: tuple[int, ...], y_shape: tuple[int, ...]
) -> int:
    """Returns the largest pC - R(p) over all output pixels p, in elements.

    Lowest for pixel (r, c) or a later one is either the lowest column from c on, in row r, or
    the lowest column of all in a later row. The first is a sum of a term of r and one of c; of
    the second the last pixel of each row decides. So a large tensor takes no longer than a
    small one.
    """
    (_, _, width, inputs), (_, height_out, width_out, outputs) = x_shape, y_shape
    rows = _first_read(windows[0], x_shape[1], height_out)
    columns = _first_read(windows[1], width, width_out)
    of_rows = np.arange(height_out) * width_out * outputs - rows * width * inputs
    lowest_columns = np.minimum.accumulate(columns[::-1])[::-1]
    of_columns = np.arange(width_out) * outputs - lowest_columns * inputs
    later_rows = np.minimum.accumulate(rows[::-1])[::-1][1:]
    last_pixels = (np.arange(1, height_out) * width_out - 1) * outputs
    at_row_ends = last_pixels - (later_rows * width + columns.min()) * inputs
    within_row = int(of_rows.max() + of_columns.max())
    return max(within_row, int(at_row_ends.max(initial=within_row)))


def _first_read(window: Window, size: int, outputs: int) -> NDArray[np.int64]:
    """Returns the first position inside of the input that each output reads."""
    origin = np.arange(outputs) * window.stride - window.pad_before(size, outputs)
    taps = np.where(origin < 0, -(origin // window.dilation), 0)
    first: NDArray[np.int64] = np.minimum(origin + taps * window.dilation, size - 1)
    return first


def window_scalars(x: Tensor, y: Tensor, windows: tuple[Window, Window]) -> dict[str, int]:
    """Returns what the C kernels need to know of two windows."""
    window_h, window_w = windows
    return {
        "output_height": y.shape[1],
        "output_width": y.shape[2],
        "stride_height": window_h.stride,
        "stride_width": window_w.stride,
        "dilation_height": window_h.dilation,
        "dilation_width": window_w.dilation,
        "pad_top": window_h.pad_before(x.shape[1], y.shape[1]),
        "pad_left": window_w.pad_before(x.shape[2], y.shape[2]),
    }


def windows_read_padding(x: Tensor, y: Tensor, windows: tuple[Window, Window]) -> bool:
    """Tells whether any window reaches over the border."""
    return windows[0].reads_padding(x.shape[1], y.shape[1]) or windows[1].reads_padding(
        x.shape[2], y.shape[2]
    )
