"""ADD."""

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
from edgekiln.export.ir import Graph
from edgekiln.export.ops.activation import Activation, activation_range
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, as_int64, overlap_in_place
from edgekiln.export.ops.convolution import check_clamp

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_LEFT_SHIFT = 20


@dataclass(frozen=True)
class Add(Op):
    """Sum of two ``int8`` tensors of one shape."""

    activation: Activation

    name: ClassVar[str] = "ADD"
    variants: ClassVar[str] = "int8; both inputs computed, of the same shape"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("AddOptions")
        activation = reader.enum(Activation, options.FusedActivationFunction(), "activation")
        return cls(reader.index, reader.inputs, reader.outputs, activation)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        y = self.output(graph)
        self.check_int8(graph, y)
        for position in range(2):
            x = self.input(graph, position)
            self.check_int8(graph, x)
            if x.is_constant:
                self.unsupported(graph, f"input {position} is a constant", allowed="an activation")
            if x.shape != y.shape:
                self.unsupported(graph, "broadcast of an input", x.shape, y.shape)
        check_clamp(self, graph, self.activation)

    def multipliers(self, graph: Graph) -> tuple[Multiplier, Multiplier, Multiplier]:
        """Returns the scales of both inputs and of the output (``CalculateOpDataAdd``)."""
        scales = [self.input(graph, position).q.scale for position in range(2)]
        twice_max = 2.0 * max(scales)
        output = twice_max / ((1 << _LEFT_SHIFT) * self.output(graph).q.scale)
        if output >= 1.0:
            self.unsupported(graph, "the output's scale is too small", self.output(graph).q.scale)
        first, second = (quantize_multiplier(scale / twice_max) for scale in scales)
        return first, second, quantize_multiplier(output)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: both inputs at twice the larger scale, then the output's."""
        y = self.output(graph)
        first, second, output = self.multipliers(graph)
        total = self._scaled(graph, 0, inputs[0], first) + self._scaled(graph, 1, inputs[1], second)
        scaled = multiply_by_quantized_multiplier(total, output.multiplier, output.shift)
        low, high = activation_range(self.activation, y.q)
        return (np.clip(scaled + y.q.zero_point, low, high).astype(np.int8),)

    def _scaled(
        self, graph: Graph, position: int, value: Array | None, m: Multiplier
    ) -> Int64Array:
        shifted = (as_int64(value) - self.input(graph, position).q.zero_point) << _LEFT_SHIFT
        return multiply_by_quantized_multiplier(shifted, m.multiplier, m.shift)


def _lower(op: Add, graph: Graph) -> tuple[KernelCall, ...]:
    a, b, y = op.input(graph, 0), op.input(graph, 1), op.output(graph)
    first, second, output = op.multipliers(graph)
    low, high = activation_range(op.activation, y.q)
    scalars = {
        "length": y.elements,
        "input_1_offset": -a.q.zero_point,
        "input_1_multiplier": first.multiplier,
        "input_1_shift": first.shift,
        "input_2_offset": -b.q.zero_point,
        "input_2_multiplier": second.multiplier,
        "input_2_shift": second.shift,
        "output_multiplier": output.multiplier,
        "output_shift": output.shift,
        "output_zero_point": y.q.zero_point,
        "activation_min": low,
        "activation_max": high,
    }
    return (KernelCall("ek_add_s8", "ek_add_s8.h", scalars, {}, (a.index, b.index), y.index),)


def _cost(op: Add, graph: Graph) -> float:
    return 45.0 * op.output(graph).elements


Add.kernels = (Kernel("add_s8", _lower, _cost, overlap=overlap_in_place),)
