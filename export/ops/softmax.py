"""SOFTMAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.fixed_point import (
    Int64Array,
    Multiplier,
    doubling_high_mul,
    exp_on_negative_values,
    input_radius,
    quantize_multiplier,
    reciprocal,
    rounding_divide_by_pot,
    wrap_int32,
)
from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, as_int64, overlap_in_place
from edgekiln.export.ops.elementwise import check_output_quantization

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_DIFF_INTEGER_BITS = 5
_SUM_INTEGER_BITS = 12


@dataclass(frozen=True)
class Softmax(Op):
    """Softmax over the last dimension of an ``int8`` tensor."""

    beta: float

    name: ClassVar[str] = "SOFTMAX"
    variants: ClassVar[str] = "int8; last dimension; any beta"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        beta = reader.options("SoftmaxOptions").Beta()
        return cls(reader.index, reader.inputs, reader.outputs, float(beta))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_int8(graph, x)
        self.check_int8(graph, y)
        self.check_same_shape(graph, x, y)
        check_output_quantization(self, graph, 1.0 / 256, -128)
        if not x.shape or not 0 < x.shape[-1] < 1 << (_SUM_INTEGER_BITS - 1):
            self.unsupported(graph, "size of the last dimension", x.shape, "1 to 2047")
        if not self.beta * x.q.scale * (1 << (31 - _DIFF_INTEGER_BITS)) > 1.0:
            self.unsupported(graph, "beta times the input's scale is too small", self.beta)

    def argument(self, graph: Graph) -> tuple[Multiplier, int]:
        """Returns the scale of a difference to Q5, and the smallest difference that counts."""
        real = self.beta * self.input(graph, 0).q.scale * (1 << (31 - _DIFF_INTEGER_BITS))
        multiplier = quantize_multiplier(min(real, (1 << 31) - 1.0))
        return multiplier, -input_radius(_DIFF_INTEGER_BITS, multiplier.shift)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output with gemmlowp's exp and reciprocal."""
        x = as_int64(inputs[0])
        multiplier, diff_min = self.argument(graph)
        differences = x - x.max(axis=-1, keepdims=True)
        counts = differences >= diff_min
        exps = self._exp(np.where(counts, differences, 0), multiplier)
        terms = np.where(counts, rounding_divide_by_pot(exps, _SUM_INTEGER_BITS), 0)
        scale, bits = reciprocal(terms.sum(axis=-1, keepdims=True), _SUM_INTEGER_BITS)
        codes = rounding_divide_by_pot(doubling_high_mul(exps, scale), bits + 31 - 8) - 128
        return (np.where(counts, np.clip(codes, -128, 127), -128).astype(np.int8),)

    @staticmethod
    def _exp(differences: Int64Array, multiplier: Multiplier) -> Int64Array:
        shifted = wrap_int32(differences << multiplier.shift)
        return exp_on_negative_values(
            doubling_high_mul(shifted, multiplier.multiplier), _DIFF_INTEGER_BITS
        )


def _lower(op: Softmax, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    multiplier, diff_min = op.argument(graph)
    scalars = {
        "rows": x.elements // x.shape[-1],
        "depth": x.shape[-1],
        "multiplier": multiplier.multiplier,
        "shift": multiplier.shift,
        "diff_min": diff_min,
    }
    return (KernelCall("ek_softmax_s8", "ek_softmax_s8.h", scalars, {}, (x.index,), y.index),)


def _cost(op: Softmax, graph: Graph) -> float:
    return 250.0 * op.output(graph).elements


Softmax.kernels = (Kernel("softmax_s8", _lower, _cost, overlap=overlap_in_place),)
