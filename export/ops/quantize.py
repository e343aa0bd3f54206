"""QUANTIZE and DEQUANTIZE: from one scale to another, and between codes and real numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from edgekiln.export.fixed_point import (
    Int64Array,
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    wrap_int32,
)
from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlaps, as_int64
from edgekiln.export.ops.broadcasting import overlap_elementwise, value_of
from edgekiln.export.ops.types import QUANTIZED, SUFFIX, bounds

_RESCALED = {
    (DType.INT8, DType.INT8),
    (DType.INT8, DType.UINT8),
    (DType.INT8, DType.INT16),
    (DType.INT8, DType.INT32),
    (DType.UINT8, DType.INT8),
    (DType.INT16, DType.INT8),
    (DType.INT16, DType.INT16),
    (DType.INT16, DType.INT32),
    (DType.INT32, DType.INT8),
    (DType.INT32, DType.INT16),
}
"""Pairs of integer types that the oracle rescales."""


def require_scale(op: Op, graph: Graph, tensor: Tensor) -> None:
    """Checks that a tensor carries exactly one scale, whatever its type."""
    if tensor.quantization is None:
        op.reject(graph, f"{tensor.dtype.value} tensor '{tensor.name}' carries no scale")
    if tensor.quantization.per_channel:
        op.unsupported(graph, f"tensor '{tensor.name}' is quantized per channel")


@dataclass(frozen=True)
class Quantize(Op):
    """Codes of one scale from codes of another, or from real numbers."""

    name: ClassVar[str] = "QUANTIZE"
    variants: ClassVar[str] = (
        "float32 to int8, uint8, int16; int8 to int8, uint8, int16, int32; uint8 to int8; "
        "int16 to int8, int16, int32; int32 to int8, int16"
    )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_same_shape(graph, x, y)
        if x.dtype is DType.FLOAT32:
            self.check_type(graph, y, *QUANTIZED)
        elif (x.dtype, y.dtype) not in _RESCALED:
            self.unsupported(graph, "types", f"{x.dtype.value} to {y.dtype.value}", self.variants)
        else:
            require_scale(self, graph, x)
        require_scale(self, graph, y)
        if x.dtype is not DType.FLOAT32 and self.multiplier(graph).shift > 30:
            self.unsupported(graph, "the output's scale is too small", y.q.scale)

    def multiplier(self, graph: Graph) -> Multiplier:
        """Returns the ratio of the scales (``PrepareQuantizeReference``)."""
        return quantize_multiplier(self.input(graph, 0).q.scale / self.output(graph).q.scale)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        x, y = self.input(graph, 0), self.output(graph)
        low, high = bounds(y.dtype)
        if x.dtype is DType.FLOAT32:
            codes = quantize_real(value_of(inputs[0]), y)
        else:
            m = self.multiplier(graph)
            centred = wrap_int32(as_int64(inputs[0]) - x.q.zero_point)
            scaled = multiply_by_quantized_multiplier(centred, m.multiplier, m.shift)
            codes = wrap_int32(scaled + y.q.zero_point)
        return (np.clip(codes, low, high).astype(y.dtype.value),)


def quantize_real(value: Array, y: Tensor) -> Int64Array:
    """Quantizes real numbers as ``AffineQuantize`` does, clamped; NaN becomes the smallest."""
    low, high = bounds(y.dtype)
    with np.errstate(over="ignore"):
        quotient = value / np.float32(y.q.scale)
    low_real, high_real = np.float32(low - y.q.zero_point), np.float32(high - y.q.zero_point)
    bounded = np.where(quotient > low_real, np.minimum(quotient, high_real), low_real)
    whole = np.trunc(bounded)
    away = (np.abs(bounded - whole) >= 0.5) * np.sign(bounded)
    codes: Int64Array = (whole + away).astype(np.int64) + y.q.zero_point
    return codes


@dataclass(frozen=True)
class Dequantize(Op):
    """Real numbers from codes."""

    name: ClassVar[str] = "DEQUANTIZE"
    variants: ClassVar[str] = "int8, uint8, int16 to float32"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, x, *QUANTIZED)
        require_scale(self, graph, x)
        self.check_type(graph, y, DType.FLOAT32)
        self.check_same_shape(graph, x, y)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: a difference of at most 17 bits times the scale is exact."""
        q = self.input(graph, 0).q
        return ((q.scale * (as_int64(inputs[0]) - q.zero_point)).astype(np.float32),)


def _lower_rescale(op: Quantize, graph: Graph) -> tuple[KernelCall, ...]:
    return rescale_call(op, graph, op.multiplier(graph), *bounds(op.output(graph).dtype))


def rescale_call(
    op: Op, graph: Graph, m: Multiplier, low: int, high: int
) -> tuple[KernelCall, ...]:
    """Returns the call that brings codes to another scale and clamps them."""
    x, y = op.input(graph, 0), op.output(graph)
    scalars = {
        "length": y.elements,
        "input_offset": -x.q.zero_point,
        "multiplier": m.multiplier,
        "shift": m.shift,
        "output_zero_point": y.q.zero_point,
        "activation_min": low,
        "activation_max": high,
    }
    kernel = f"ek_rescale_{SUFFIX[x.dtype]}"
    if x.dtype is not y.dtype:
        kernel += f"_{SUFFIX[y.dtype]}"
    return (KernelCall(kernel, "ek_rescale.h", scalars, {}, (x.index,), y.index),)


def _lower_quantize(op: Quantize, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    low, high = bounds(y.dtype)
    scalars = {
        "length": y.elements,
        "zero_point": y.q.zero_point,
        "low": low,
        "high": high,
        "scale": y.q.scale,
    }
    kernel = f"ek_quantize_f32_{SUFFIX[y.dtype]}"
    return (KernelCall(kernel, "ek_quantize_f32.h", scalars, {}, (x.index,), y.index),)


def _lower_dequantize(op: Dequantize, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    scalars = {
        "length": y.elements,
        "zero_point": x.q.zero_point,
        "reverse": 0,
        "scale": x.q.scale,
    }
    kernel = f"ek_dequantize_{SUFFIX[x.dtype]}"
    return (KernelCall(kernel, "ek_dequantize.h", scalars, {}, (x.index,), y.index),)


def _overlap_dequantize(op: Dequantize, graph: Graph) -> Overlaps:
    """As `overlap_elementwise`, and backwards.

    Backwards, the elements still to be read lie before element i of the input, the byte
    written first is that of element i of the output: it is not before them when the output
    begins at the input or behind it.
    """
    return {
        position: replace(overlap, after=0)
        for position, overlap in overlap_elementwise(op, graph).items()
    }


def _is_real(op: Quantize, graph: Graph) -> bool:
    return op.input(graph, 0).dtype is DType.FLOAT32


Quantize.kernels = (
    Kernel(
        "rescale",
        _lower_rescale,
        lambda op, graph: 22.0 * op.output(graph).elements,
        accepts=lambda op, graph: not _is_real(op, graph),
        overlap=overlap_elementwise,
    ),
    Kernel(
        "quantize_f32",
        _lower_quantize,
        lambda op, graph: 30.0 * op.output(graph).elements,
        accepts=_is_real,
        overlap=overlap_elementwise,
    ),
)
Dequantize.kernels = (
    Kernel(
        "dequantize",
        _lower_dequantize,
        lambda op, graph: 8.0 * op.output(graph).elements,
        overlap=_overlap_dequantize,
    ),
)
