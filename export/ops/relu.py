"""RELU, RELU6, RELU_N1_TO_1, LEAKY_RELU and PRELU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.fixed_point import (
    Int64Array,
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    wrap_int32,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.activation import Activation, activation_range, quantize_f32
from edgekiln.export.ops.base import Array, Kernel, KernelCall, as_int64
from edgekiln.export.ops.broadcasting import (
    Broadcasting,
    broadcast_calls,
    overlap_elementwise,
    value_of,
)
from edgekiln.export.ops.elementwise import Elementwise, real_kernel, table_kernel
from edgekiln.export.ops.quantize import rescale_call
from edgekiln.export.ops.types import SUFFIX, bounds, first_input_is

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_TYPES = (DType.INT8, DType.INT16, DType.FLOAT32)
_ZERO = np.float32(0)


class Relu(Elementwise):
    """Another scale and zero point, and no negative numbers."""

    name: ClassVar[str] = "RELU"
    variants: ClassVar[str] = "int8, int16, float32"
    types: ClassVar[tuple[DType, ...]] = _TYPES
    activation: ClassVar[Activation] = Activation.RELU

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        x, y = self.input(graph, 0), self.output(graph)
        if x.dtype is DType.FLOAT32:
            return
        if x.dtype is DType.INT16 and (x.q.zero_point or y.q.zero_point):
            self.unsupported(graph, "zero point of an int16 tensor", allowed=0)
        if self.multiplier(graph).shift > 30:
            self.unsupported(graph, "the output's scale is too small", y.q.scale)

    def multiplier(self, graph: Graph) -> Multiplier:
        """Returns the ratio of the scales."""
        return quantize_multiplier(self.input(graph, 0).q.scale / self.output(graph).q.scale)

    def clamp(self, graph: Graph) -> tuple[int, int]:
        """Returns the smallest and the largest output code."""
        y = self.output(graph)
        return activation_range(self.activation, y.q, y.dtype)

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes."""
        m, y = self.multiplier(graph), self.output(graph)
        centred = codes - self.input(graph, 0).q.zero_point
        scaled = multiply_by_quantized_multiplier(centred, m.multiplier, m.shift)
        low, high = self.clamp(graph)
        return np.minimum(np.maximum(wrap_int32(scaled + y.q.zero_point), low), high)

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.where(values < _ZERO, _ZERO, values)


class ReluN1To1(Relu):
    """Another scale and zero point, and a clamp to [-1, 1]."""

    name: ClassVar[str] = "RELU_N1_TO_1"
    variants: ClassVar[str] = "int8, float32"
    types: ClassVar[tuple[DType, ...]] = (DType.INT8, DType.FLOAT32)
    activation: ClassVar[Activation] = Activation.RELU_N1_TO_1

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.clip(values, np.float32(-1), np.float32(1))


class Relu6(Elementwise):
    """A clamp of the codes to [0, 6] at the input's scale, without a change of scale.

    TensorFlow Lite Micro ignores the output's scale and zero point here.
    """

    name: ClassVar[str] = "RELU6"
    variants: ClassVar[str] = "int8, int16, float32"
    types: ClassVar[tuple[DType, ...]] = _TYPES

    def clamp(self, graph: Graph) -> tuple[int, int]:
        """Returns the smallest and the largest output code."""
        x = self.input(graph, 0)
        low, high = bounds(x.dtype)
        return x.q.zero_point, min(high, max(low, quantize_f32(6.0, x.q)))

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes: the upper bound is tested first, as in the oracle."""
        low, high = self.clamp(graph)
        return np.where(codes > high, high, np.where(codes < low, low, codes))

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.clip(values, _ZERO, np.float32(6))


@dataclass(frozen=True)
class LeakyRelu(Elementwise):
    """Another scale and zero point, and a factor for negative numbers."""

    alpha: float

    name: ClassVar[str] = "LEAKY_RELU"
    variants: ClassVar[str] = "int8, int16, float32"
    types: ClassVar[tuple[DType, ...]] = _TYPES

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        alpha = float(reader.options("LeakyReluOptions").Alpha())
        return cls(reader.index, reader.inputs, reader.outputs, alpha)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        if not np.isfinite(self.alpha):
            self.reject(graph, "alpha", self.alpha)
        if self.input(graph, 0).dtype is not DType.FLOAT32:
            for multiplier in self.multipliers(graph):
                if multiplier.shift > 30:
                    self.unsupported(graph, "ratio of the scales")

    def multipliers(self, graph: Graph) -> tuple[Multiplier, Multiplier]:
        """Returns the scales of positive and, without alpha's sign, of negative numbers."""
        ratio = self.input(graph, 0).q.scale / self.output(graph).q.scale
        return quantize_multiplier(ratio), quantize_multiplier(ratio * abs(self.alpha))

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes."""
        y = self.output(graph)
        centred = codes - self.input(graph, 0).q.zero_point
        positive, negative = (
            multiply_by_quantized_multiplier(centred, m.multiplier, m.shift)
            for m in self.multipliers(graph)
        )
        sign = -1 if self.alpha < 0 else 1
        moved = wrap_int32(np.where(centred >= 0, positive, sign * negative) + y.q.zero_point)
        return np.clip(moved, *bounds(y.dtype))

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return np.where(values > _ZERO, values, values * np.float32(self.alpha))


@dataclass(frozen=True)
class Prelu(Broadcasting):
    """A factor for negative numbers, from a tensor that is broadcast."""

    name: ClassVar[str] = "PRELU"
    variants: ClassVar[str] = "int8; int16 with an int8 factor; float32; broadcast"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, alpha, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        self.check_type(graph, x, *_TYPES)
        self.check_type(graph, y, *_TYPES)
        self.check_same_type(graph, x, y)
        self.check_type(graph, alpha, DType.FLOAT32 if x.dtype is DType.FLOAT32 else DType.INT8)
        self.check_same_shape(graph, x, y)
        self.check_broadcast(graph, x, alpha)
        if x.dtype is DType.FLOAT32:
            return
        for tensor in (x, alpha):
            if tensor.q.per_channel:
                self.unsupported(graph, f"tensor '{tensor.name}' is quantized per channel")
        if any(m.shift > 30 for m in self.multipliers(graph)):
            self.unsupported(graph, "ratio of the scales")

    def multipliers(self, graph: Graph) -> tuple[Multiplier, Multiplier]:
        """Returns the scales of positive numbers and of products (``CalculatePreluParams``)."""
        x, alpha, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        return (
            quantize_multiplier(x.q.scale / y.q.scale),
            quantize_multiplier(x.q.scale * alpha.q.scale / y.q.scale),
        )

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        x, alpha, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        if x.dtype is DType.FLOAT32:
            value = value_of(inputs[0])
            with np.errstate(all="ignore"):
                return (np.where(value >= _ZERO, value, value * value_of(inputs[1])),)
        centred = as_int64(inputs[0]) - x.q.zero_point
        product = centred * (as_int64(inputs[1]) - alpha.q.zero_point)
        first, second = self.multipliers(graph)
        scaled = np.where(
            centred >= 0,
            multiply_by_quantized_multiplier(centred, first.multiplier, first.shift),
            multiply_by_quantized_multiplier(product, second.multiplier, second.shift),
        )
        codes = np.clip(wrap_int32(scaled + y.q.zero_point), *bounds(y.dtype))
        return (codes.astype(y.dtype.value),)


def _lower_rescale(op: Relu, graph: Graph) -> tuple[KernelCall, ...]:
    return rescale_call(op, graph, op.multiplier(graph), *op.clamp(graph))


def _lower_clip(op: Relu6, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    low, high = op.clamp(graph)
    scalars = {"length": y.elements, "low": min(low, high), "high": high}
    kernel = f"ek_clip_{SUFFIX[x.dtype]}"
    return (KernelCall(kernel, "ek_clip.h", scalars, {}, (x.index,), y.index),)


def _lower_leaky(op: LeakyRelu, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    positive, negative = op.multipliers(graph)
    scalars = {
        "length": y.elements,
        "input_offset": -x.q.zero_point,
        "multiplier": positive.multiplier,
        "shift": positive.shift,
        "alpha_sign": -1 if op.alpha < 0 else 1,
        "alpha_multiplier": negative.multiplier,
        "alpha_shift": negative.shift,
        "output_zero_point": y.q.zero_point,
    }
    call = KernelCall("ek_leaky_relu_s16", "ek_leaky_relu_s16.h", scalars, {}, (x.index,), y.index)
    return (call,)


def _lower_prelu(op: Prelu, graph: Graph) -> tuple[KernelCall, ...]:
    x, alpha, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    kernel = f"ek_prelu_{SUFFIX[x.dtype]}"
    if x.dtype is DType.FLOAT32:
        return broadcast_calls(op, graph, kernel, "ek_prelu.h")
    first, second = op.multipliers(graph)
    scalars = {
        "input_offset": -x.q.zero_point,
        "alpha_offset": -alpha.q.zero_point,
        "multiplier": first.multiplier,
        "shift": first.shift,
        "alpha_multiplier": second.multiplier,
        "alpha_shift": second.shift,
        "output_zero_point": y.q.zero_point,
    }
    return broadcast_calls(op, graph, kernel, "ek_prelu.h", scalars)


_RESCALE = Kernel(
    "rescale",
    _lower_rescale,
    lambda op, graph: 22.0 * op.output(graph).elements,
    accepts=first_input_is(DType.INT8, DType.INT16),
    overlap=overlap_elementwise,
)
_CLIP = Kernel(
    "clip",
    _lower_clip,
    lambda op, graph: 6.0 * op.output(graph).elements,
    accepts=first_input_is(DType.INT8, DType.INT16),
    overlap=overlap_elementwise,
)

Relu.kernels = (_RESCALE, real_kernel("relu"))
ReluN1To1.kernels = (
    _RESCALE,
    real_kernel("clip", scalars=lambda _op: {"low": -1.0, "high": 1.0}),
)
Relu6.kernels = (_CLIP, real_kernel("clip", scalars=lambda _op: {"low": 0.0, "high": 6.0}))
LeakyRelu.kernels = (
    table_kernel(),
    Kernel(
        "leaky_relu_s16",
        _lower_leaky,
        lambda op, graph: 24.0 * op.output(graph).elements,
        accepts=first_input_is(DType.INT16),
        overlap=overlap_elementwise,
    ),
    real_kernel("leaky_relu", scalars=lambda op: {"alpha": op.alpha}),
)
Prelu.kernels = (
    Kernel(
        "prelu",
        _lower_prelu,
        lambda op, graph: 26.0 * op.output(graph).elements,
        overlap=overlap_elementwise,
    ),
)
