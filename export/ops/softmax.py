"""SOFTMAX."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.fixed_point import (
    Int64Array,
    Multiplier,
    doubling_high_mul,
    exp_on_negative_values,
    input_radius,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    reciprocal,
    rounding_divide_by_pot,
    wrap_int32,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlaps, as_int64
from edgekiln.export.ops.broadcasting import overlap_elementwise, value_of
from edgekiln.export.ops.elementwise import check_output_quantization
from edgekiln.export.ops.real_functions import exp_f32
from edgekiln.export.ops.types import SUFFIX, bounds, first_input_is

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_DIFF_INTEGER_BITS = 5
_SUM_INTEGER_BITS = 12
_LONGEST = {
    DType.INT8: (1 << (_SUM_INTEGER_BITS - 1)) - 1,
    DType.INT16: (1 << 16) - 1,
    DType.FLOAT32: (1 << 31) - 1,
}
"""Rows of this length cannot overflow the sum of their exponentials."""


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax over the last dimension."""

    beta: float

    name: ClassVar[str] = "SOFTMAX"
    variants: ClassVar[str] = (
        "int8, int8 to int16, int16, float32; last dimension; any beta above 0"
    )

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        beta = reader.options("SoftmaxOptions").Beta()
        return cls(reader.index, reader.inputs, reader.outputs, float(beta))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, x, DType.INT8, DType.INT16, DType.FLOAT32)
        self.check_type(graph, y, DType.INT8, DType.INT16, DType.FLOAT32)
        if (x.dtype, y.dtype) != (DType.INT8, DType.INT16):
            self.check_same_type(graph, x, y)
        self.check_same_shape(graph, x, y)
        longest = _LONGEST[x.dtype]
        if not x.shape or not 0 < x.shape[-1] <= longest:
            self.unsupported(graph, "size of the last dimension", x.shape, f"1 to {longest}")
        if not 0 < self.beta < math.inf:
            self.unsupported(graph, "beta", self.beta, "a number above 0")
        if x.dtype is DType.INT8:
            self._check_s8(graph)
        if x.dtype is DType.INT16:
            self._check_s16(graph)

    def _check_s8(self, graph: Graph) -> None:
        bits = 8 * self.output(graph).dtype.bytes
        check_output_quantization(self, graph, 2.0**-bits, -(1 << (bits - 1)))
        scale = self.input(graph, 0).q.scale
        if not self.beta * scale * (1 << (31 - _DIFF_INTEGER_BITS)) > 1.0:
            self.unsupported(graph, "beta times the input's scale is too small", self.beta)

    def _check_s16(self, graph: Graph) -> None:
        x = self.input(graph, 0)
        check_output_quantization(self, graph, 1.0 / 32768, 0)
        if x.q.zero_point != 0:
            self.unsupported(graph, "zero point of an int16 tensor", x.q.zero_point, 0)
        if self.argument_s16(graph).shift > 14:
            self.unsupported(graph, "beta times the input's scale is too large", self.beta)

    def argument_s16(self, graph: Graph) -> Multiplier:
        """Returns the scale of a difference at which 65535 stands for 10."""
        scale = self.input(graph, 0).q.scale
        return quantize_multiplier(scale * self.beta / (10.0 / 65535.0))

    def argument(self, graph: Graph) -> tuple[Multiplier, int]:
        """Returns the scale of a difference to Q5, and the smallest difference that counts."""
        real = self.beta * self.input(graph, 0).q.scale * (1 << (31 - _DIFF_INTEGER_BITS))
        multiplier = quantize_multiplier(min(real, (1 << 31) - 1.0))
        return multiplier, -input_radius(_DIFF_INTEGER_BITS, multiplier.shift)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        x = self.input(graph, 0)
        if x.dtype is DType.FLOAT32:
            return (self._define_f32(value_of(inputs[0])),)
        if x.dtype is DType.INT16:
            return (self._define_s16(graph, as_int64(inputs[0])),)
        return (self._define_s8(graph, as_int64(inputs[0])),)

    def _define_s8(self, graph: Graph, x: Int64Array) -> Array:
        """Computes the output with gemmlowp's exp and reciprocal."""
        y = self.output(graph).dtype
        multiplier, diff_min = self.argument(graph)
        differences = x - x.max(axis=-1, keepdims=True)
        counts = differences >= diff_min
        exps = self._exp(np.where(counts, differences, 0), multiplier)
        terms = np.where(counts, rounding_divide_by_pot(exps, _SUM_INTEGER_BITS), 0)
        scale, bits = reciprocal(terms.sum(axis=-1, keepdims=True), _SUM_INTEGER_BITS)
        shift = bits + 31 - 8 * y.bytes
        low, high = bounds(y)
        codes = rounding_divide_by_pot(doubling_high_mul(exps, scale), shift) + low
        return np.asarray(np.where(counts, np.clip(codes, low, high), low), y.value)

    def _define_s16(self, graph: Graph, x: Int64Array) -> Array:
        """Computes the output by interpolation in tables of exp and of the reciprocal."""
        m = self.argument_s16(graph)
        differences = x - x.max(axis=-1, keepdims=True)
        scaled = multiply_by_quantized_multiplier(differences, m.multiplier, m.shift)
        exps = _look_up_s16(np.clip(scaled + 32767, -32768, 32767), EXP_TABLE)
        total = exps.sum(axis=-1, keepdims=True)
        zeros = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
        mantissa = ((total << (zeros - 1)) + (1 << 13)) >> 14
        centred = np.clip(mantissa - (1 << 15) - (1 << 16), -32768, 32767)
        factor = _look_up_s16(centred, RECIPROCAL_TABLE)
        shift = 31 - zeros
        result = (exps * factor + (np.int64(1) << (shift - 1))) >> shift
        return np.asarray(np.clip(result, 0, 32767), np.int16)

    def _define_f32(self, x: Array) -> Array:
        """Computes the output; sums run in memory order."""
        with np.errstate(all="ignore"):
            largest = x.max(axis=-1, keepdims=True)
            exps = exp_f32((x - largest) * np.float32(self.beta))
            total = np.add.accumulate(exps, axis=-1, dtype=np.float32)[..., -1:]
            return np.asarray(exps / total)

    @staticmethod
    def _exp(differences: Int64Array, multiplier: Multiplier) -> Int64Array:
        shifted = wrap_int32(differences << multiplier.shift)
        return exp_on_negative_values(
            doubling_high_mul(shifted, multiplier.multiplier), _DIFF_INTEGER_BITS
        )


def _interpolation_table(
    function: Callable[[Array], Array], low: np.float32, high: np.float32, unit: np.float32
) -> NDArray[np.int16]:
    """Returns 513 samples of a function, moved to halve the error between them.

    All in float32, as ``LUTPopulateInt16`` makes it for an output of the scale ``unit``.
    """
    one, half = np.float32(1), np.float32(0.5)
    step = (high - low) / np.float32(512)
    scale = np.float32(65536) / (unit * np.float32(32767) - unit * np.float32(-32768))
    numbers = np.arange(512, dtype=np.float32)

    def at(values: Array) -> Array:
        return function(values.astype(np.float64)).astype(np.float32) * scale

    sample = _round_half_away(at(low + numbers * step))
    following = at(low + (numbers + one) * step)
    middle = _round_half_away(at(low + numbers * step + step * half))
    interpolated = _round_half_away((following + sample) / np.float32(2))
    moved = sample - _round_half_away((interpolated - middle) / np.float32(2))
    last = _round_half_away(at(np.array([high])))
    return np.asarray(np.clip(np.concatenate([moved, last]), -32768, 32767), np.int16)


def _round_half_away(x: Array) -> Array:
    whole = np.trunc(x)
    return np.asarray(whole + (np.abs(x - whole) >= 0.5) * np.sign(x), np.float32)


_EXP_UNIT = np.float32(10) / np.float32(65535)
_RECIPROCAL_UNIT = np.float32(1) / np.float32(65535)
_OUTPUT_UNIT = np.float32(2) / np.float32(65535)

EXP_TABLE = _interpolation_table(
    np.exp, _EXP_UNIT * np.float32(-65535), _EXP_UNIT * np.float32(0), _OUTPUT_UNIT
)
"""exp over [-10, 0] in Q15, at every 128th code."""

RECIPROCAL_TABLE = _interpolation_table(
    lambda x: 1.0 / (1.0 + x),
    _RECIPROCAL_UNIT * np.float32(0),
    _RECIPROCAL_UNIT * np.float32(65535),
    _OUTPUT_UNIT,
)
"""1 / (1 + x) over [0, 1] in Q15, at every 128th code."""


def _look_up_s16(x: Int64Array, table: NDArray[np.int16]) -> Int64Array:
    """Interpolates between the two nearest entries of a table (``LUTLookup``)."""
    entries = table.astype(np.int64)
    index = 256 + (x >> 7)
    slope = entries[index + 1] - entries[index]
    return np.asarray(entries[index] + ((slope * (x & 127) + 64) >> 7), np.int64)


def _rows(op: Softmax, graph: Graph) -> dict[str, int | float]:
    x = op.input(graph, 0)
    return {"rows": x.elements // x.shape[-1], "depth": x.shape[-1]}


def _lower_s8(op: Softmax, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    multiplier, diff_min = op.argument(graph)
    scalars = _rows(op, graph) | {
        "multiplier": multiplier.multiplier,
        "shift": multiplier.shift,
        "diff_min": diff_min,
    }
    kernel = "ek_softmax_s8" if y.dtype is DType.INT8 else "ek_softmax_s8_s16"
    return (KernelCall(kernel, "ek_softmax_s8.h", scalars, {}, (x.index,), y.index),)


def _lower_s16(op: Softmax, graph: Graph) -> tuple[KernelCall, ...]:
    x, y, m = op.input(graph, 0), op.output(graph), op.argument_s16(graph)
    scalars = _rows(op, graph) | {"multiplier": m.multiplier, "shift": m.shift}
    tables = {"exp_table": EXP_TABLE, "reciprocal_table": RECIPROCAL_TABLE}
    call = KernelCall("ek_softmax_s16", "ek_softmax_s16.h", scalars, tables, (x.index,), y.index)
    return (call,)


def _lower_f32(op: Softmax, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    scalars = _rows(op, graph) | {"beta": op.beta}
    call = KernelCall("ek_softmax_f32", "ek_softmax_f32.h", scalars, {}, (x.index,), y.index)
    return (call,)


def _overlap(op: Softmax, graph: Graph) -> Overlaps:
    """In place: a row of the output is written while or after its input is read last."""
    return (
        overlap_elementwise(op, graph) if op.input(graph, 0).dtype is op.output(graph).dtype else {}
    )


Softmax.kernels = tuple(
    Kernel(
        f"softmax_{SUFFIX[dtype]}",
        lower,
        lambda op, graph: 250.0 * op.output(graph).elements,
        accepts=first_input_is(dtype),
        overlap=_overlap,
    )
    for dtype, lower in (
        (DType.INT8, _lower_s8),
        (DType.INT16, _lower_s16),
        (DType.FLOAT32, _lower_f32),
    )
)
