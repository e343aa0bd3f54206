"""LOGISTIC, TANH, RELU, RELU6 and QUANTIZE: one int8 code in, one out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekiln.export.fixed_point import (
    Int64Array,
    Multiplier,
    input_radius,
    logistic,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    round_half_away,
    rounding_divide_by_pot,
    tanh,
)
from edgekiln.export.ir import Graph, Tensor
from edgekiln.export.ops.activation import quantize_f32
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, as_int64, overlap_in_place

_INTEGER_BITS = 4
"""Integer bits of the fixed-point argument of the sigmoid and the hyperbolic tangent."""


@dataclass(frozen=True)
class Elementwise(Op):
    """A function of one ``int8`` code, applied to each element."""

    variants: ClassVar[str] = "int8"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_int8(graph, x)
        self.check_int8(graph, y)
        self.check_same_shape(graph, x, y)

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes from the input codes."""
        raise AssertionError(f"{type(self).__name__} has no definition")

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (self.apply(graph, as_int64(inputs[0])).astype(np.int8),)


class Saturating(Elementwise):
    """A function that is constant beyond a radius around the input's zero point."""

    def argument(self, graph: Graph) -> tuple[Multiplier, int]:
        """Returns the scale to Q4 and the radius beyond which the result is constant."""
        scale = self.input(graph, 0).q.scale * (1 << (31 - _INTEGER_BITS))
        fraction, shift = math.frexp(scale)
        if not 0 <= shift <= 30:
            self.unsupported(graph, "the input's scale", self.input(graph, 0).q.scale)
        multiplier = Multiplier(round_half_away(fraction * (1 << 31)), shift)
        return multiplier, input_radius(_INTEGER_BITS, shift)

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes: -128 and 127 beyond the radius."""
        multiplier, radius = self.argument(graph)
        x = codes - self.input(graph, 0).q.zero_point
        inside = np.clip(x, -radius, radius)
        x_q4 = multiply_by_quantized_multiplier(inside, multiplier.multiplier, multiplier.shift)
        result = np.clip(self.inside(x_q4), -128, 127)
        return np.where(x <= -radius, -128, np.where(x >= radius, 127, result))

    def inside(self, x_q4: Int64Array) -> Int64Array:
        """Computes the output codes, unclamped, from the argument in Q4."""
        raise AssertionError(f"{type(self).__name__} has no definition")


class Logistic(Saturating):
    """The sigmoid, with output scale 1/256 and zero point -128."""

    name: ClassVar[str] = "LOGISTIC"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        self.argument(graph)
        check_output_quantization(self, graph, 1.0 / 256, -128)

    def inside(self, x_q4: Int64Array) -> Int64Array:
        """Computes the output codes, unclamped, from the argument in Q4."""
        return rounding_divide_by_pot(logistic(x_q4, _INTEGER_BITS), 23) - 128


class Tanh(Saturating):
    """The hyperbolic tangent, with output scale 1/128 and zero point 0."""

    name: ClassVar[str] = "TANH"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        self.argument(graph)
        check_output_quantization(self, graph, 1.0 / 128, 0)

    def inside(self, x_q4: Int64Array) -> Int64Array:
        """Computes the output codes, unclamped, from the argument in Q4."""
        return rounding_divide_by_pot(tanh(x_q4, _INTEGER_BITS), 24)


class Rescale(Elementwise):
    """Another scale and zero point, and a clamp."""

    def multiplier(self, graph: Graph) -> Multiplier:
        """Returns the ratio of the scales."""
        return quantize_multiplier(self.input(graph, 0).q.scale / self.output(graph).q.scale)

    def clamp(self, y: Tensor) -> tuple[int, int]:
        """Returns the smallest and the largest output code."""
        return -128, 127

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        if self.multiplier(graph).shift > 22:
            self.unsupported(graph, "the output's scale is too small", self.output(graph).q.scale)

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes."""
        m, y = self.multiplier(graph), self.output(graph)
        x = codes - self.input(graph, 0).q.zero_point
        scaled = multiply_by_quantized_multiplier(x, m.multiplier, m.shift)
        return np.clip(scaled + y.q.zero_point, *self.clamp(y))


class Quantize(Rescale):
    """From one int8 scale and zero point to another."""

    name: ClassVar[str] = "QUANTIZE"
    variants: ClassVar[str] = "int8 to int8"


class Relu(Rescale):
    """The positive part, with any scale in and out."""

    name: ClassVar[str] = "RELU"

    def multiplier(self, graph: Graph) -> Multiplier:
        """Returns the ratio of the scales, which the oracle divides in float32."""
        x, y = self.input(graph, 0), self.output(graph)
        return quantize_multiplier(float(np.float32(x.q.scale) / np.float32(y.q.scale)))

    def clamp(self, y: Tensor) -> tuple[int, int]:
        """Returns the smallest and the largest output code."""
        return max(-128, y.q.zero_point), 127


class Relu6(Elementwise):
    """A clamp of the codes to [0, 6] at the input's scale, without a change of scale.

    TensorFlow Lite Micro ignores the output's scale and zero point here.
    """

    name: ClassVar[str] = "RELU6"

    def clamp(self, graph: Graph) -> tuple[int, int]:
        """Returns the smallest and the largest output code."""
        x = self.input(graph, 0)
        return x.q.zero_point, min(127, max(-128, quantize_f32(6.0, x.q)))

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes: the upper bound is tested first, as in the oracle."""
        low, high = self.clamp(graph)
        return np.where(codes > high, high, np.where(codes < low, low, codes))


def check_output_quantization(op: Op, graph: Graph, scale: float, zero_point: int) -> None:
    """Checks that the output has the scale and zero point that the function implies."""
    q = op.output(graph).q
    if abs(q.scale - scale) > 0.001 * scale or q.zero_point != zero_point:
        op.unsupported(
            graph,
            "scale and zero point of the output",
            f"{q.scale:.8g}, {q.zero_point}",
            f"{scale:.8g}, {zero_point}",
        )


def _lower_table(op: Elementwise, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    table = op.apply(graph, np.arange(-128, 128, dtype=np.int64)).astype(np.int8)
    call = KernelCall(
        "ek_lookup_s8",
        "ek_lookup_s8.h",
        {"length": y.elements},
        {"table": table},
        (x.index,),
        y.index,
    )
    return (call,)


def _lower_rescale(op: Rescale, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    m = op.multiplier(graph)
    low, high = op.clamp(y)
    scalars = {
        "length": y.elements,
        "input_offset": -x.q.zero_point,
        "multiplier": m.multiplier,
        "shift": m.shift,
        "output_zero_point": y.q.zero_point,
        "activation_min": low,
        "activation_max": high,
    }
    return (KernelCall("ek_rescale_s8", "ek_rescale_s8.h", scalars, {}, (x.index,), y.index),)


def _lower_clip(op: Relu6, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    low, high = op.clamp(graph)
    scalars = {"length": y.elements, "low": min(low, high), "high": high}
    return (KernelCall("ek_clip_s8", "ek_clip_s8.h", scalars, {}, (x.index,), y.index),)


def _cost_table(op: Elementwise, graph: Graph) -> float:
    return 6.0 * op.output(graph).elements


def _cost_rescale(op: Elementwise, graph: Graph) -> float:
    return 22.0 * op.output(graph).elements


_TABLE = Kernel("lookup_s8", _lower_table, _cost_table, overlap=overlap_in_place)
_RESCALE = Kernel("rescale_s8", _lower_rescale, _cost_rescale, overlap=overlap_in_place)

Logistic.kernels = (_TABLE,)
Tanh.kernels = (_TABLE,)
Quantize.kernels = (_RESCALE,)
Relu.kernels = (_RESCALE,)
Relu6.kernels = (Kernel("clip_s8", _lower_clip, _cost_table, overlap=overlap_in_place),)
