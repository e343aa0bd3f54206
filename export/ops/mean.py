"""MEAN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.fixed_point import (
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlap, Overlaps, as_int64

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class Mean(Op):
    """The average of an ``int8`` tensor over some of its dimensions."""

    keep_dims: bool

    name: ClassVar[str] = "MEAN"
    variants: ClassVar[str] = "int8; constant axes that are neighbours"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("ReducerOptions")
        return cls(reader.index, reader.inputs, reader.outputs, bool(options.KeepDims()))

    def axes(self, graph: Graph) -> tuple[int, ...]:
        """Returns the reduced dimensions in ascending order, each once."""
        rank = len(self.input(graph, 0).shape)
        axes = {int(axis) for axis in self.input(graph, 1).value.reshape(-1)}
        if any(not -rank <= axis < rank for axis in axes):
            self.reject(graph, "axis out of range", sorted(axes), f"-{rank} to {rank - 1}")
        return tuple(sorted({axis % rank for axis in axes}))

    def runs(self, graph: Graph) -> tuple[int, int, int]:
        """Returns the sizes before, in and after the reduced dimensions."""
        shape = self.input(graph, 0).shape
        axes = [axis for axis in self.axes(graph) if shape[axis] != 1]
        if not axes:
            return self.input(graph, 0).elements, 1, 1
        first, last = axes[0], axes[-1] + 1
        if any(shape[a] != 1 and a not in axes for a in range(first, last)):
            self.unsupported(graph, "axes that are not neighbours", tuple(axes))
        return (
            math.prod(shape[:first]),
            math.prod(shape[first:last]),
            math.prod(shape[last:]),
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_int8(graph, x)
        self.check_int8(graph, y)
        if self.constant(graph, 1, "axes").dtype is not DType.INT32:
            self.reject(graph, "type of the axes", self.input(graph, 1).dtype.value, "int32")
        outer, _, inner = self.runs(graph)
        if x.elements == 0 or y.elements != outer * inner:
            self.reject(graph, f"shape of '{y.name}'", y.shape, f"{outer * inner} elements")

    def multiplier(self, graph: Graph) -> Multiplier:
        """Returns the scale, with the division by the count in it (``QuantizedMeanOrSum``)."""
        x, y = self.input(graph, 0), self.output(graph)
        m = quantize_multiplier(x.q.scale / y.q.scale)
        _, count, _ = self.runs(graph)
        shift = min(count.bit_length() - 1, 32, 31 + m.shift)
        return Multiplier((m.multiplier << shift) // count, m.shift - shift)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output from the exact sum."""
        x, y = self.input(graph, 0), self.output(graph)
        runs = self.runs(graph)
        sums = as_int64(inputs[0]).reshape(runs).sum(axis=1) - x.q.zero_point * runs[1]
        m = self.multiplier(graph)
        scaled = multiply_by_quantized_multiplier(sums, m.multiplier, m.shift) + y.q.zero_point
        return (np.clip(scaled, -128, 127).astype(np.int8).reshape(y.shape),)


def _lower(op: Mean, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    outer, count, inner = op.runs(graph)
    m = op.multiplier(graph)
    scalars = {
        "outer": outer,
        "reduced": count,
        "inner": inner,
        "sum_offset": -count * x.q.zero_point,
        "multiplier": m.multiplier,
        "shift": m.shift,
        "output_zero_point": y.q.zero_point,
    }
    return (KernelCall("ek_mean_s8", "ek_mean_s8.h", scalars, {}, (x.index,), y.index),)


def _cost(op: Mean, graph: Graph) -> float:
    return 5.0 * op.input(graph, 0).elements + 30.0 * op.output(graph).elements


def _overlap(op: Mean, graph: Graph) -> Overlaps:
    """Output (o, i) is written when only inputs after the i-th of block o are left."""
    return {0: Overlap(0)}


Mean.kernels = (Kernel("mean_s8", _lower, _cost, overlap=_overlap),)
