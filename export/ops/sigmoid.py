"""LOGISTIC and TANH."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from edgekiln.export.fixed_point import (
    Int64Array,
    Multiplier,
    input_radius,
    logistic,
    multiply_by_quantized_multiplier,
    round_half_away,
    round_half_away_f32,
    rounding_divide_by_pot,
    tanh,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall
from edgekiln.export.ops.broadcasting import overlap_elementwise
from edgekiln.export.ops.elementwise import (
    Elementwise,
    check_output_quantization,
    real_kernel,
    table_kernel,
)
from edgekiln.export.ops.real_functions import logistic_f32, tanh_f32
from edgekiln.export.ops.types import first_input_is

_INTEGER_BITS = 4
"""Integer bits of the fixed-point argument of the int8 forms."""

# fmt: off
SIGMOID_TABLE = np.array([
    32768, 33451, 34133, 34813, 35493, 36169, 36843, 37513, 38180, 38841, 39498, 40149,
    40794, 41432, 42064, 42688, 43304, 43912, 44511, 45102, 45683, 46255, 46817, 47369,
    47911, 48443, 48964, 49475, 49975, 50464, 50942, 51409, 51865, 52311, 52745, 53169,
    53581, 53983, 54374, 54755, 55125, 55485, 55834, 56174, 56503, 56823, 57133, 57433,
    57724, 58007, 58280, 58544, 58800, 59048, 59288, 59519, 59743, 59959, 60168, 60370,
    60565, 60753, 60935, 61110, 61279, 61441, 61599, 61750, 61896, 62036, 62172, 62302,
    62428, 62549, 62666, 62778, 62886, 62990, 63090, 63186, 63279, 63368, 63454, 63536,
    63615, 63691, 63765, 63835, 63903, 63968, 64030, 64090, 64148, 64204, 64257, 64308,
    64357, 64405, 64450, 64494, 64536, 64576, 64614, 64652, 64687, 64721, 64754, 64786,
    64816, 64845, 64873, 64900, 64926, 64950, 64974, 64997, 65019, 65039, 65060, 65079,
    65097, 65115, 65132, 65149, 65164, 65179, 65194, 65208, 65221, 65234, 65246, 65258,
    65269, 65280, 65291, 65301, 65310, 65319, 65328, 65337, 65345, 65352, 65360, 65367,
    65374, 65381, 65387, 65393, 65399, 65404, 65410, 65415, 65420, 65425, 65429, 65433,
    65438, 65442, 65445, 65449, 65453, 65456, 65459, 65462, 65465, 65468, 65471, 65474,
    65476, 65479, 65481, 65483, 65485, 65488, 65489, 65491, 65493, 65495, 65497, 65498,
    65500, 65501, 65503, 65504, 65505, 65507, 65508, 65509, 65510, 65511, 65512, 65513,
    65514, 65515, 65516, 65517, 65517, 65518, 65519, 65520, 65520, 65521, 65522, 65522,
    65523, 65523, 65524, 65524, 65525, 65525, 65526, 65526, 65526, 65527, 65527, 65528,
    65528, 65528, 65529, 65529, 65529, 65529, 65530, 65530, 65530, 65530, 65531, 65531,
    65531, 65531, 65531, 65532, 65532, 65532, 65532, 65532, 65532, 65533, 65533, 65533,
    65533, 65533, 65533, 65533, 65533, 65534, 65534, 65534, 65534, 65534, 65534, 65534,
    65534, 65534, 65534, 65535,
], np.uint16)
"""The sigmoid of i / 24 as a fraction of 2**16: the int16 forms interpolate in it."""
# fmt: on


class Sigmoidal(Elementwise):
    """A function that is constant beyond a radius around the input's zero point."""

    variants: ClassVar[str] = "int8, int16, float32"
    types: ClassVar[tuple[DType, ...]] = (DType.INT8, DType.INT16, DType.FLOAT32)
    output_q: ClassVar[tuple[float, int]]
    """Scale and zero point of an int8 output."""

    exact_shifts: ClassVar[tuple[int, ...]]
    """The int16 scales, as powers of two above 2**-12, at which no multiplier is rounded."""

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        x, y = self.input(graph, 0), self.output(graph)
        if x.dtype is DType.INT8:
            self.argument(graph)
            check_output_quantization(self, graph, *self.output_q)
        if x.dtype is DType.INT16:
            if x.q.zero_point or y.q.zero_point:
                self.unsupported(graph, "zero point of an int16 tensor", allowed=0)
            check_output_quantization(self, graph, 2.0**-15, 0)
            if not 0 < self.argument_s16(graph).multiplier < 1 << 15:
                self.unsupported(graph, "the input's scale", x.q.scale)

    def argument(self, graph: Graph) -> tuple[Multiplier, int]:
        """Returns the scale to Q4 and the radius beyond which the result is constant."""
        scale = self.input(graph, 0).q.scale * (1 << (31 - _INTEGER_BITS))
        fraction, shift = math.frexp(scale)
        if not 0 <= shift <= 30:
            self.unsupported(graph, "the input's scale", self.input(graph, 0).q.scale)
        multiplier = Multiplier(round_half_away(fraction * (1 << 31)), shift)
        return multiplier, input_radius(_INTEGER_BITS, shift)

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes."""
        if self.input(graph, 0).dtype is DType.INT16:
            return self.interpolate(self.scaled_s16(graph, codes))
        multiplier, radius = self.argument(graph)
        x = codes - self.input(graph, 0).q.zero_point
        inside = np.clip(x, -radius, radius)
        x_q4 = multiply_by_quantized_multiplier(inside, multiplier.multiplier, multiplier.shift)
        result = np.clip(self.inside(x_q4), -128, 127)
        return np.where(x <= -radius, -128, np.where(x >= radius, 127, result))

    def inside(self, x_q4: Int64Array) -> Int64Array:
        """Computes the int8 output codes, unclamped, from the argument in Q4."""
        raise AssertionError(f"{type(self).__name__} has no definition")

    def argument_s16(self, graph: Graph) -> Multiplier:
        """Returns the scale to 1 / (3 * 4096), as the table wants it (``TanhPrepare``)."""
        scale = np.float32(self.input(graph, 0).q.scale)
        exponent = np.log(scale) * (np.float32(1) / np.log(np.float32(2)))
        power = round_half_away_f32(exponent)
        if abs(exponent - np.float32(power)) < np.float32(1e-3) and power + 12 in self.exact_shifts:
            return Multiplier(3 << (power + 12), 0)
        multiplier, shift = float(scale) * 4096.0 * 3.0, 0
        while multiplier <= 32767.0 / 2.0 and shift <= 30:
            multiplier, shift = multiplier * 2.0, shift + 1
        return Multiplier(int(min(multiplier, 2.0**31)), shift)

    def scaled_s16(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Brings codes to the scale of the table."""
        m = self.argument_s16(graph)
        return (codes * m.multiplier + ((1 << m.shift) >> 1)) >> m.shift

    def interpolate(self, x: Int64Array) -> Int64Array:
        """Computes the int16 output codes from the argument at the table's scale."""
        raise AssertionError(f"{type(self).__name__} has no definition")


class Logistic(Sigmoidal):
    """The sigmoid, with output scale 1/256 and zero point -128, or 1/32768 and 0."""

    name: ClassVar[str] = "LOGISTIC"
    output_q: ClassVar[tuple[float, int]] = (1.0 / 256, -128)
    exact_shifts: ClassVar[tuple[int, ...]] = (0,)

    def inside(self, x_q4: Int64Array) -> Int64Array:
        """Computes the int8 output codes, unclamped, from the argument in Q4."""
        return rounding_divide_by_pot(logistic(x_q4, _INTEGER_BITS), 23) - 128

    def interpolate(self, x: Int64Array) -> Int64Array:
        """Computes the int16 output codes from the argument at the table's scale."""
        return logistic_s16(x)

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return logistic_f32(values)


class Tanh(Sigmoidal):
    """The hyperbolic tangent, with output scale 1/128 or 1/32768 and zero point 0."""

    name: ClassVar[str] = "TANH"
    output_q: ClassVar[tuple[float, int]] = (1.0 / 128, 0)
    exact_shifts: ClassVar[tuple[int, ...]] = (0, 1)

    def inside(self, x_q4: Int64Array) -> Int64Array:
        """Computes the int8 output codes, unclamped, from the argument in Q4."""
        return rounding_divide_by_pot(tanh(x_q4, _INTEGER_BITS), 24)

    def interpolate(self, x: Int64Array) -> Int64Array:
        """Computes the int16 output codes from the argument at the table's scale."""
        return tanh_s16(x)

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        return tanh_f32(values)


def logistic_s16(x: Int64Array) -> Int64Array:
    """Computes the sigmoid in Q15 of an argument at the table's scale, 1 / (3 * 4096)."""
    result = _interpolated(np.abs(x), 9, 0x7FFF << 10)
    return np.where(x >= 0, result + (1 << 9), (1 << 25) - result + (1 << 9) - 1) >> 10


def tanh_s16(x: Int64Array) -> Int64Array:
    """Computes tanh in Q15 of an argument at the table's scale: 2 * sigmoid(2 * x) - 1."""
    result = _interpolated(np.abs(x), 8, 0xFFFF << 8) - (1 << 23)
    return np.where(x >= 0, result + (1 << 7), -result + (1 << 7) - 1) >> 8


def _interpolated(x: Int64Array, fraction_bits: int, saturated: int) -> Int64Array:
    """Interpolates between the table's entries; ``saturated`` beyond its last one."""
    table = SIGMOID_TABLE.astype(np.int64)
    entry = np.minimum(x >> fraction_bits, 254)
    fraction = x & ((1 << fraction_bits) - 1)
    between = (table[entry] << fraction_bits) + fraction * (table[entry + 1] - table[entry])
    return np.where(x >> fraction_bits >= 255, saturated, between)


def _lower_s16(op: Sigmoidal, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    m = op.argument_s16(graph)
    kernel = f"ek_{op.name.lower()}_s16"
    scalars = {"length": y.elements, "multiplier": m.multiplier, "shift": m.shift}
    tables = {"table": SIGMOID_TABLE}
    return (KernelCall(kernel, "ek_sigmoid_s16.h", scalars, tables, (x.index,), y.index),)


def _kernels(name: str) -> tuple[Kernel, ...]:
    interpolated = Kernel(
        f"{name}_s16",
        _lower_s16,
        lambda op, graph: 22.0 * op.output(graph).elements,
        accepts=first_input_is(DType.INT16),
        overlap=overlap_elementwise,
    )
    return (table_kernel(), interpolated, real_kernel(name))


Logistic.kernels = _kernels("logistic")
Tanh.kernels = _kernels("tanh")
