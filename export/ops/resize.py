"""RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.fixed_point import INT32_MAX
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, as_int64
from edgekiln.export.ops.movement import ALL_TYPES, check_moved, constant_integers, expect_shape
from edgekiln.export.ops.types import first_input_is

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_LARGEST_SIZE = 1 << 16
_HALF_PIXEL = np.float32(0.5)


@dataclass(frozen=True)
class Resize(Op):
    """An image ``[N, H, W, C]`` at another height and width.

    Attributes:
        align_corners: The centres of the corner pixels stay where they are.
        half_pixel_centers: A pixel's centre lies half a pixel from its corner.
    """

    align_corners: bool
    half_pixel_centers: bool

    options: ClassVar[str]

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options(cls.options)
        return cls(
            reader.index,
            reader.inputs,
            reader.outputs,
            align_corners=bool(options.AlignCorners()),
            half_pixel_centers=bool(options.HalfPixelCenters()),
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        self.check_rank(graph, x, (4,))
        size = constant_integers(self, graph, 1, "size")
        expect_shape(self, graph, y, (x.shape[0], *size, x.shape[3]))
        if max(*x.shape[1:3], *y.shape[1:3]) > _LARGEST_SIZE:
            self.unsupported(graph, "height or width", (x.shape, y.shape), _LARGEST_SIZE)

    def sizes(self, graph: Graph) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns (input, output) for height and width."""
        x, y = self.input(graph, 0).shape, self.output(graph).shape
        return (x[1], y[1]), (x[2], y[2])

    def aligned(self, size: int, outputs: int) -> tuple[int, int]:
        """Returns the two lengths whose ratio is the scale."""
        if self.align_corners and outputs > 1:
            return size - 1, outputs - 1
        return size, outputs

    def scale_f32(self, size: int, outputs: int) -> np.float32:
        """Returns the scale as a float32."""
        numerator, denominator = self.aligned(size, outputs)
        return np.float32(np.float32(numerator) / np.float32(denominator))

    def scalars(self, graph: Graph) -> dict[str, int]:
        """Returns the sizes that all kernels need to know."""
        (in_h, out_h), (in_w, out_w) = self.sizes(graph)
        return {
            "batches": self.input(graph, 0).shape[0],
            "input_height": in_h,
            "input_width": in_w,
            "output_height": out_h,
            "output_width": out_w,
        }


class ResizeNearestNeighbor(Resize):
    """Each pixel is the input's nearest one."""

    name: ClassVar[str] = "RESIZE_NEAREST_NEIGHBOR"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant size; align corners, half-pixel centers"
    options: ClassVar[str] = "ResizeNearestNeighborOptions"

    def nearest(self, size: int, outputs: int) -> NDArray[np.int64]:
        """Returns the input's row or column for each of the output's (``GetNearestNeighbor``)."""
        offset = _HALF_PIXEL if self.half_pixel_centers else np.float32(0)
        place = (np.arange(outputs, dtype=np.float32) + offset) * self.scale_f32(size, outputs)
        # Places are not negative: halves are rounded up, as away from zero.
        found = np.floor(place.astype(np.float64) + 0.5) if self.align_corners else np.floor(place)
        return np.minimum(found.astype(np.int64), size - 1)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        rows, columns = (self.nearest(*sizes) for sizes in self.sizes(graph))
        return (np.asarray(inputs[0])[:, rows[:, None], columns],)


class ResizeBilinear(Resize):
    """Each pixel is weighted from the input's four next ones."""

    name: ClassVar[str] = "RESIZE_BILINEAR"
    variants: ClassVar[str] = "int8, float32; constant size; align corners, half-pixel centers"
    options: ClassVar[str] = "ResizeBilinearOptions"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, x, DType.INT8, DType.FLOAT32)
        self.check_type(graph, y, DType.INT8, DType.FLOAT32)
        if self.align_corners and self.half_pixel_centers:
            self.reject(graph, "aligned corners and half-pixel centers at once")
        for size, outputs in self.sizes(graph):
            if x.dtype is DType.INT8 and self.scale(size, outputs) * outputs > INT32_MAX:
                self.unsupported(graph, "height or width", (size, outputs))
            low, _, _ = self.neighbours(graph, size, outputs)
            if int(low.max()) >= size:
                got = f"{outputs} from {size}"
                self.unsupported(graph, "rounding leads out of the input", got)

    def scale(self, size: int, outputs: int) -> int:
        """Returns the scale in 1/1024, rounded to the nearest, for int8."""
        numerator, denominator = self.aligned(size, outputs)
        return (1024 * numerator + denominator // 2) // denominator

    def offset(self, size: int, outputs: int) -> int:
        """Returns the place of the first row or column in 1/1024, for int8."""
        return self.scale(size, outputs) // 2 - 512 if self.half_pixel_centers else 0

    def neighbours(self, graph: Graph, size: int, outputs: int) -> tuple[Array, Array, Array]:
        """Returns the two rows or columns that each of the output lies between.

        The third array says how far from the first one: in 1/1024 for int8, else float32.
        """
        if self.input(graph, 0).dtype is DType.FLOAT32:
            return self._neighbours_f32(size, outputs)
        index = np.arange(outputs, dtype=np.int64)
        place = index * self.scale(size, outputs) + self.offset(size, outputs)
        # C divides towards zero.
        low = np.maximum(np.where(place < 0, 0, place // 1024), 0)
        high = np.minimum(np.where(place + 1023 < 0, 0, (place + 1023) // 1024), size - 1)
        return low, high, place - 1024 * low

    def _neighbours_f32(self, size: int, outputs: int) -> tuple[Array, Array, Array]:
        index, scale = np.arange(outputs, dtype=np.float32), self.scale_f32(size, outputs)
        if self.half_pixel_centers:
            place = (index + _HALF_PIXEL) * scale - _HALF_PIXEL
        else:
            place = index * scale
        low = np.maximum(np.floor(place).astype(np.int64), 0)
        high = np.minimum(np.ceil(place).astype(np.int64), size - 1)
        return low, np.maximum(high, 0), place - low.astype(np.float32)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: exact for int8, in the oracle's order for float32."""
        (top, bottom, y), (left, right, x) = (
            self.neighbours(graph, *sizes) for sizes in self.sizes(graph)
        )
        is_float = self.output(graph).dtype is DType.FLOAT32
        image = np.asarray(inputs[0]) if is_float else as_int64(inputs[0])
        one = np.float32(1) if is_float else np.int64(1024)
        y, x = y[:, None, None], x[:, None]
        total = image[:, top[:, None], left] * (one - y) * (one - x)
        total = total + image[:, bottom[:, None], left] * y * (one - x)
        total = total + image[:, top[:, None], right] * (one - y) * x
        total = total + image[:, bottom[:, None], right] * y * x
        if is_float:
            return (total,)
        rounded = (np.abs(total) + (1 << 19)) >> 20
        return (np.where(total > 0, rounded, -rounded).astype(np.int8),)


def _lower_nearest(op: ResizeNearestNeighbor, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    rows, columns = (op.nearest(*sizes).astype(np.uint16) for sizes in op.sizes(graph))
    scalars = op.scalars(graph) | {"pixel_bytes": x.shape[3] * x.dtype.bytes}
    call = KernelCall(
        "ek_resize_nearest",
        "ek_resize_nearest.h",
        scalars,
        {"row": rows, "column": columns},
        (x.index,),
        y.index,
        bytewise=True,
    )
    return (call,)


def _lower_bilinear_s8(op: ResizeBilinear, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    height, width = op.sizes(graph)
    scalars = op.scalars(graph) | {
        "channels": x.shape[3],
        "height_scale": op.scale(*height),
        "width_scale": op.scale(*width),
        "height_offset": op.offset(*height),
        "width_offset": op.offset(*width),
    }
    name = "ek_resize_bilinear_s8"
    return (KernelCall(name, f"{name}.h", scalars, {}, (x.index,), y.index),)


def _lower_bilinear_f32(op: ResizeBilinear, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    tables = {}
    for what, sizes in zip(("row", "column"), op.sizes(graph), strict=True):
        low, high, fraction = op.neighbours(graph, *sizes)
        tables[f"{what}_low"] = low.astype(np.uint16)
        tables[f"{what}_high"] = high.astype(np.uint16)
        tables[f"{what}_fraction"] = fraction.astype(np.float32)
    scalars = op.scalars(graph) | {"channels": x.shape[3]}
    name = "ek_resize_bilinear_f32"
    return (KernelCall(name, f"{name}.h", scalars, tables, (x.index,), y.index),)


def _cost_nearest(op: Resize, graph: Graph) -> float:
    y = op.output(graph)
    return 20.0 * y.elements / y.shape[3] + y.bytes / 4


def _cost_bilinear(op: Resize, graph: Graph) -> float:
    y = op.output(graph)
    return 40.0 * y.elements / y.shape[3] + 25.0 * y.elements


ResizeNearestNeighbor.kernels = (Kernel("resize_nearest", _lower_nearest, _cost_nearest),)
ResizeBilinear.kernels = (
    Kernel(
        "resize_bilinear_s8",
        _lower_bilinear_s8,
        _cost_bilinear,
        accepts=first_input_is(DType.INT8),
    ),
    Kernel(
        "resize_bilinear_f32",
        _lower_bilinear_f32,
        _cost_bilinear,
        accepts=first_input_is(DType.FLOAT32),
    ),
)
