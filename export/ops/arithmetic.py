"""MUL, DIV, SQUARED_DIFFERENCE, MAXIMUM and MINIMUM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from edgekiln.export.fixed_point import (
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    wrap_int32,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.activation import Activation
from edgekiln.export.ops.add import Arithmetic, arithmetic_kernel, clamp_scalars
from edgekiln.export.ops.base import Array, Kernel, KernelCall, as_int64
from edgekiln.export.ops.broadcasting import broadcast_calls, overlap_elementwise, value_of
from edgekiln.export.ops.types import SUFFIX, bounds, first_input_is

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_QUANTIZED = (DType.INT8, DType.INT16)


@dataclass(frozen=True)
class Mul(Arithmetic):
    """Product of two tensors."""

    name: ClassVar[str] = "MUL"
    options: ClassVar[str] = "MulOptions"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        a, b, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        if y.dtype is DType.INT16 and any(t.q.zero_point for t in (a, b, y)):
            self.unsupported(graph, "zero point of an int16 tensor", allowed=0)
        if y.dtype in _QUANTIZED and self.multiplier(graph).shift > 30:
            self.unsupported(graph, "the output's scale is too small", y.q.scale)

    def multiplier(self, graph: Graph) -> Multiplier:
        """Returns the scale of the product (``CalculateOpDataMul``)."""
        a, b = self.input(graph, 0).q.scale, self.input(graph, 1).q.scale
        return quantize_multiplier(a * b / self.output(graph).q.scale)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        y = self.output(graph)
        if y.dtype not in _QUANTIZED:
            with np.errstate(all="ignore"):
                product = value_of(inputs[0]) * value_of(inputs[1])
            if y.dtype is DType.FLOAT32:
                return self.clamp_real(graph, product)
            return (np.clip(product, *self.clamp(graph)).astype(np.int32),)
        a, b = (
            as_int64(value) - self.input(graph, position).q.zero_point
            for position, value in enumerate(inputs)
        )
        m = self.multiplier(graph)
        scaled = multiply_by_quantized_multiplier(a * b, m.multiplier, m.shift)
        codes = np.clip(wrap_int32(scaled + y.q.zero_point), *self.clamp(graph))
        return (codes.astype(y.dtype.value),)


@dataclass(frozen=True)
class Div(Arithmetic):
    """Quotient of two tensors."""

    name: ClassVar[str] = "DIV"
    options: ClassVar[str] = "DivOptions"
    variants: ClassVar[str] = "float32; broadcast; constants"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        self.check_type(graph, self.output(graph), DType.FLOAT32)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        with np.errstate(all="ignore"):
            return self.clamp_real(graph, value_of(inputs[0]) / value_of(inputs[1]))


@dataclass(frozen=True)
class Unclamped(Arithmetic):
    """A function of two numbers without a fused activation."""

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        return cls(reader.index, reader.inputs, reader.outputs, Activation.NONE)

    def attributes(self) -> dict[str, object]:
        """Returns what the operator holds besides its tensors."""
        return {}


@dataclass(frozen=True)
class SquaredDifference(Unclamped):
    """Square of the difference of two tensors."""

    name: ClassVar[str] = "SQUARED_DIFFERENCE"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        a, b, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        if y.dtype is DType.INT16 and any(t.q.zero_point for t in (a, b, y)):
            self.unsupported(graph, "zero point of an int16 tensor", allowed=0)
        if y.dtype in _QUANTIZED and self.multipliers(graph)[2].shift > 30:
            self.unsupported(graph, "the output's scale is too small", y.q.scale)

    def raised_bits(self, graph: Graph) -> int:
        """Returns the bits by which the oracle raises codes before it scales them."""
        return 7 if self.output(graph).dtype is DType.INT8 else 0

    def multipliers(self, graph: Graph) -> tuple[Multiplier, Multiplier, Multiplier]:
        """Returns the scales of both inputs and of the output (``PrepareQuantized``)."""
        scales = [self.input(graph, position).q.scale for position in range(2)]
        twice_max = 2.0 * max(scales)
        first, second = (quantize_multiplier(scale / twice_max) for scale in scales)
        raised = 1 << (2 * self.raised_bits(graph))
        output = twice_max * twice_max / (raised * self.output(graph).q.scale)
        return first, second, quantize_multiplier(output)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: the difference at twice the larger scale, squared, scaled."""
        y = self.output(graph)
        if y.dtype not in _QUANTIZED:
            with np.errstate(all="ignore"):
                difference = value_of(inputs[0]) - value_of(inputs[1])
                return (difference * difference,)
        *scales, output = self.multipliers(graph)
        a, b = (
            multiply_by_quantized_multiplier(
                (as_int64(value) - self.input(graph, i).q.zero_point) << self.raised_bits(graph),
                scales[i].multiplier,
                scales[i].shift,
            )
            for i, value in enumerate(inputs)
        )
        square = wrap_int32((a - b) * (a - b))
        scaled = multiply_by_quantized_multiplier(square, output.multiplier, output.shift)
        codes = np.clip(wrap_int32(scaled + y.q.zero_point), *bounds(y.dtype))
        return (codes.astype(y.dtype.value),)


@dataclass(frozen=True)
class Maximum(Unclamped):
    """The larger of two tensors' elements; the oracle compares codes, whatever their scales."""

    name: ClassVar[str] = "MAXIMUM"

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        a, b = value_of(inputs[0]), value_of(inputs[1])
        return (np.where(a > b, a, b),)


@dataclass(frozen=True)
class Minimum(Unclamped):
    """The smaller of two tensors' elements; the oracle compares codes, whatever their scales."""

    name: ClassVar[str] = "MINIMUM"

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        a, b = value_of(inputs[0]), value_of(inputs[1])
        return (np.where(a < b, a, b),)


def _lower_mul(op: Mul, graph: Graph) -> tuple[KernelCall, ...]:
    a, b, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    m = op.multiplier(graph)
    scalars = {
        "input_1_offset": -a.q.zero_point,
        "input_2_offset": -b.q.zero_point,
        "multiplier": m.multiplier,
        "shift": m.shift,
        "output_zero_point": y.q.zero_point,
        **clamp_scalars(op, graph),
    }
    return broadcast_calls(op, graph, f"ek_mul_{SUFFIX[y.dtype]}", "ek_mul.h", scalars)


def _lower_squared_difference(op: SquaredDifference, graph: Graph) -> tuple[KernelCall, ...]:
    a, b, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    first, second, output = op.multipliers(graph)
    scalars = {
        "raised_bits": op.raised_bits(graph),
        "input_1_offset": -a.q.zero_point,
        "input_1_multiplier": first.multiplier,
        "input_1_shift": first.shift,
        "input_2_offset": -b.q.zero_point,
        "input_2_multiplier": second.multiplier,
        "input_2_shift": second.shift,
        "output_multiplier": output.multiplier,
        "output_shift": output.shift,
        "output_zero_point": y.q.zero_point,
    }
    kernel = f"ek_squared_difference_{SUFFIX[y.dtype]}"
    return broadcast_calls(op, graph, kernel, "ek_squared_difference.h", scalars)


def _lower_unclamped(op: Unclamped, graph: Graph) -> tuple[KernelCall, ...]:
    suffix = SUFFIX[op.output(graph).dtype]
    header = (
        "ek_extremum.h" if op.output(graph).dtype in _QUANTIZED else f"ek_arithmetic_{suffix}.h"
    )
    return broadcast_calls(op, graph, f"ek_{op.name.lower()}_{suffix}", header)


def _kernel(name: str, lower: Any, cost: float, *types: DType) -> Kernel:
    return Kernel(
        name,
        lower,
        lambda op, graph: cost * op.output(graph).elements,
        accepts=first_input_is(*types),
        overlap=overlap_elementwise,
    )


_PLAIN = (DType.INT32, DType.FLOAT32)

Mul.kernels = (_kernel("mul", _lower_mul, 24.0, *_QUANTIZED), arithmetic_kernel())
Div.kernels = (arithmetic_kernel((DType.FLOAT32,)),)
SquaredDifference.kernels = (
    _kernel("squared_difference", _lower_squared_difference, 50.0, *_QUANTIZED),
    _kernel("arithmetic", _lower_unclamped, 8.0, *_PLAIN),
)
Maximum.kernels = (_kernel("extremum", _lower_unclamped, 8.0, *_QUANTIZED, *_PLAIN),)
Minimum.kernels = (_kernel("extremum", _lower_unclamped, 8.0, *_QUANTIZED, *_PLAIN),)
