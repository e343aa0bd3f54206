"""ADD and SUB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.fixed_point import (
    Int64Array,
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.activation import (
    CLAMPS,
    Activation,
    activation_range,
    activation_range_f32,
)
from edgekiln.export.ops.base import Array, Kernel, KernelCall, as_int64
from edgekiln.export.ops.broadcasting import (
    Broadcasting,
    broadcast_calls,
    overlap_elementwise,
    value_of,
)
from edgekiln.export.ops.types import SUFFIX, bounds, first_input_is

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

TYPES = (DType.INT8, DType.INT16, DType.INT32, DType.FLOAT32)
VARIANTS = "int8, int16, int32, float32; broadcast; constants"

_RAISED_BITS = {DType.INT8: 20, DType.INT16: 15}
"""Bits by which the oracle raises codes before it scales them."""


@dataclass(frozen=True)
class Arithmetic(Broadcasting):
    """A function of two numbers, with a fused activation."""

    activation: Activation

    variants: ClassVar[str] = VARIANTS
    options: ClassVar[str]
    """The class of its options in the file format."""

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options(cls.options)
        activation = reader.enum(Activation, options.FusedActivationFunction(), "activation")
        return cls(reader.index, reader.inputs, reader.outputs, activation)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        a, b, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        for tensor in (a, b, y):
            self.check_type(graph, tensor, *TYPES)
            self.check_same_type(graph, a, tensor)
        for tensor in (a, b):
            if tensor.dtype in _RAISED_BITS and tensor.q.per_channel:
                self.unsupported(graph, f"tensor '{tensor.name}' is quantized per channel")
        self.check_broadcast(graph, a, b)
        if self.activation not in CLAMPS:
            self.unsupported(graph, "fused activation", self.activation, "a clamp")
        if y.dtype is not DType.FLOAT32:
            low, high = self.clamp(graph)
            if low > high:
                self.reject(graph, "the output's zero point is beyond its activation's range")

    def clamp(self, graph: Graph) -> tuple[int, int]:
        """Returns the smallest and the largest output code of an integer type."""
        y = self.output(graph)
        if y.dtype is DType.INT32:
            return _activation_range_s32(self.activation)
        return activation_range(self.activation, y.q, y.dtype)

    def clamp_real(self, graph: Graph, value: Array) -> tuple[Array, ...]:
        """Applies the fused activation to float32 results."""
        low, high = activation_range_f32(self.activation)
        return (np.minimum(np.maximum(value, np.float32(low)), np.float32(high)),)


def _activation_range_s32(activation: Activation) -> tuple[int, int]:
    """Returns the smallest and largest int32 output (``CalculateActivationRange``)."""
    low, high = bounds(DType.INT32)
    return {
        Activation.RELU: (0, high),
        Activation.RELU6: (0, 6),
        Activation.RELU_N1_TO_1: (-1, 1),
    }.get(activation, (low, high))


@dataclass(frozen=True)
class Add(Arithmetic):
    """Sum of two tensors."""

    name: ClassVar[str] = "ADD"
    options: ClassVar[str] = "AddOptions"
    sign: ClassVar[int] = 1

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        super().check(graph)
        y = self.output(graph)
        if y.dtype in _RAISED_BITS and self.multipliers(graph)[2].shift > 0:
            self.unsupported(graph, "the output's scale is too small", y.q.scale)
        tensors = (self.input(graph, 0), self.input(graph, 1), y)
        if y.dtype is DType.INT32 and any(t.quantization is not None for t in tensors):
            self.unsupported(graph, "int32 with a scale", allowed="plain numbers")

    def multipliers(self, graph: Graph) -> tuple[Multiplier, Multiplier, Multiplier]:
        """Returns the scales of both inputs and of the output (``CalculateOpDataAdd``)."""
        scales = [self.input(graph, position).q.scale for position in range(2)]
        twice_max = 2.0 * max(scales)
        first, second = (quantize_multiplier(scale / twice_max) for scale in scales)
        raised = 1 << _RAISED_BITS[self.output(graph).dtype]
        output = twice_max / (raised * self.output(graph).q.scale)
        return first, second, quantize_multiplier(output)

    def clamp(self, graph: Graph) -> tuple[int, int]:
        """Returns the smallest and the largest output code; the oracle never clamps int32."""
        if self.output(graph).dtype is DType.INT32:
            return bounds(DType.INT32)
        return super().clamp(graph)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: both inputs at twice the larger scale, then the output's."""
        y = self.output(graph)
        if y.dtype not in _RAISED_BITS:
            with np.errstate(over="ignore"):
                total = value_of(inputs[0]) + self.sign * value_of(inputs[1])
            if y.dtype is DType.FLOAT32:
                return self.clamp_real(graph, total)
            return (np.clip(total, *self.clamp(graph)).astype(np.int32),)
        first, second, output = self.multipliers(graph)
        a, b = self._scaled(graph, 0, inputs[0], first), self._scaled(graph, 1, inputs[1], second)
        scaled = multiply_by_quantized_multiplier(
            a + self.sign * b, output.multiplier, output.shift
        )
        codes = np.clip(scaled + y.q.zero_point, *self.clamp(graph))
        return (codes.astype(y.dtype.value),)

    def _scaled(
        self, graph: Graph, position: int, value: Array | None, m: Multiplier
    ) -> Int64Array:
        x = self.input(graph, position)
        shifted = (as_int64(value) - x.q.zero_point) << _RAISED_BITS[x.dtype]
        return multiply_by_quantized_multiplier(shifted, m.multiplier, m.shift)


@dataclass(frozen=True)
class Sub(Add):
    """Difference of two tensors."""

    name: ClassVar[str] = "SUB"
    options: ClassVar[str] = "SubOptions"
    sign: ClassVar[int] = -1

    def clamp(self, graph: Graph) -> tuple[int, int]:
        """Returns the smallest and the largest output code."""
        return Arithmetic.clamp(self, graph)


def clamp_scalars(op: Arithmetic, graph: Graph) -> dict[str, int | float]:
    """Returns the fused activation as the kernels know it."""
    if op.output(graph).dtype is DType.FLOAT32:
        low, high = activation_range_f32(op.activation)
        return {"low": low, "high": high}
    smallest, largest = op.clamp(graph)
    return {"activation_min": smallest, "activation_max": largest}


def lower_arithmetic(op: Arithmetic, graph: Graph) -> tuple[KernelCall, ...]:
    """Returns the calls for int32 and float32."""
    suffix = SUFFIX[op.output(graph).dtype]
    kernel = f"ek_{op.name.lower()}_{suffix}"
    return broadcast_calls(op, graph, kernel, f"ek_arithmetic_{suffix}.h", clamp_scalars(op, graph))


def quantized_scalars(op: Add, graph: Graph) -> dict[str, int | float]:
    """Returns offsets, multipliers and the clamp of the int8 kernels."""
    a, b, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    first, second, output = op.multipliers(graph)
    return {
        "input_1_offset": -a.q.zero_point,
        "input_1_multiplier": first.multiplier,
        "input_1_shift": first.shift,
        "input_2_offset": -b.q.zero_point,
        "input_2_multiplier": second.multiplier,
        "input_2_shift": second.shift,
        "output_multiplier": output.multiplier,
        "output_shift": output.shift,
        "output_zero_point": y.q.zero_point,
        **clamp_scalars(op, graph),
    }


def _lower_same_shape(op: Add, graph: Graph) -> tuple[KernelCall, ...]:
    a, b, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    scalars = {"length": y.elements, **quantized_scalars(op, graph)}
    return (KernelCall("ek_add_s8", "ek_add_s8.h", scalars, {}, (a.index, b.index), y.index),)


def _lower_quantized(op: Add, graph: Graph) -> tuple[KernelCall, ...]:
    kernel = f"ek_add_sub_{SUFFIX[op.output(graph).dtype]}"
    scalars = {"sign": op.sign, **quantized_scalars(op, graph)}
    return broadcast_calls(op, graph, kernel, f"{kernel}.h", scalars)


def has_one_size(op: Add, graph: Graph) -> bool:
    """Tells whether the inputs are int8 and neither is broadcast."""
    a, b = op.input(graph, 0), op.input(graph, 1)
    return a.dtype is DType.INT8 and a.elements == b.elements


def arithmetic_kernel(types: tuple[DType, ...] = (DType.INT32, DType.FLOAT32)) -> Kernel:
    """Returns the kernel for int32 and float32."""
    return Kernel(
        "arithmetic",
        lower_arithmetic,
        lambda op, graph: 8.0 * op.output(graph).elements,
        accepts=first_input_is(*types),
        overlap=overlap_elementwise,
    )


Sub.kernels = (
    Kernel(
        "add_sub",
        _lower_quantized,
        lambda op, graph: 48.0 * op.output(graph).elements,
        accepts=first_input_is(DType.INT8, DType.INT16),
        overlap=overlap_elementwise,
    ),
    arithmetic_kernel(),
)
Add.kernels = (
    Kernel(
        "add_s8",
        _lower_same_shape,
        lambda op, graph: 45.0 * op.output(graph).elements,
        accepts=has_one_size,
        overlap=overlap_elementwise,
    ),
    *Sub.kernels,
)
