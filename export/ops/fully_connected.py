"""FULLY_CONNECTED."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.activation import Activation
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlaps, as_int64
from edgekiln.export.ops.convolution import (
    INT4_INT8_INT16_FLOAT,
    KERNEL_TYPES,
    Requantization,
    bias_values,
    bias_values_f32,
    check_accumulator,
    check_bias,
    check_clamp,
    check_types,
    check_wide_shifts,
    clamp_f32,
    dot_f32,
    has_wide_accumulator,
    matrix_call,
    matrix_overlap,
    multiplies,
    per_channel_requantization,
    requantize,
)

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class FullyConnected(Op):
    """Product of ``[rows, depth]`` with a filter ``[channels, depth]``.

    The input may have any shape whose elements are a multiple of the filter's depth.
    """

    activation: Activation
    keep_num_dims: bool

    name: ClassVar[str] = "FULLY_CONNECTED"
    variants: ClassVar[str] = (
        f"{INT4_INT8_INT16_FLOAT}; per channel or per tensor; keep_num_dims; bias optional"
    )

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("FullyConnectedOptions")
        if options.WeightsFormat() != 0:
            reader.unsupported("weights format", options.WeightsFormat(), "0 (default)")
        return cls(
            reader.index,
            reader.inputs,
            reader.outputs,
            activation=reader.enum(Activation, options.FusedActivationFunction(), "activation"),
            keep_num_dims=bool(options.KeepNumDims()),
        )

    def rows(self, graph: Graph) -> int:
        """Returns how many vectors the input holds."""
        return self.input(graph, 0).elements // self.input(graph, 1).shape[1]

    def requantization(self, graph: Graph) -> Requantization:
        """Returns the multipliers, one per channel or one for all."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        return per_channel_requantization(x, weights, y, has_wide_accumulator(self, graph))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 4))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_rank(graph, self.input(graph, 1), (2,))
        weights = check_types(self, graph, channel_axis=0)
        channels, depth = weights.shape
        check_bias(self, graph, channels)
        check_clamp(self, graph, self.activation)
        if depth < 1 or x.elements % depth or x.elements == 0:
            self.reject(graph, "filter and input disagree on depth", weights.shape, x.shape)
        if y.elements != self.rows(graph) * channels:
            self.reject(graph, f"shape of '{y.name}'", y.shape, (self.rows(graph), channels))
        if x.dtype is not DType.FLOAT32:
            check_accumulator(self, graph, as_int64(weights.data), x)
            check_wide_shifts(self, graph, self.requantization(graph))

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: exact sums, then rounded, or float32 sums in the inputs' order."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        channels, depth = weights.shape
        if x.dtype is DType.FLOAT32:
            sums = dot_f32(np.asarray(inputs[0], np.float32).reshape(-1, depth), weights.value)
            found = clamp_f32(sums + bias_values_f32(self, graph, channels), self.activation)
            return (found.reshape(y.shape),)
        values = as_int64(inputs[0]).reshape(-1, depth) - x.q.zero_point
        # float64 holds every sum exactly: the checker has proved them to fit 48 bits.
        exact = (values.astype(np.float64) @ weights.value.astype(np.float64).T).astype(np.int64)
        accumulators = exact + bias_values(self, graph, channels)
        codes = requantize(y, self.requantization(graph), self.activation, accumulators)
        return (codes.reshape(y.shape),)

    def macs(self, graph: Graph) -> int:
        """Counts one step per weight and row."""
        return self.rows(graph) * self.input(graph, 1).elements


def _lower(op: FullyConnected, graph: Graph) -> tuple[KernelCall, ...]:
    is_float = op.input(graph, 0).dtype is DType.FLOAT32
    requant = None if is_float else op.requantization(graph)
    return matrix_call(op, graph, op.rows(graph), requant, op.activation)


def _cost(op: FullyConnected, graph: Graph) -> float:
    return 5.0 * op.macs(graph) + 30.0 * op.output(graph).elements


def _overlap(op: FullyConnected, graph: Graph) -> Overlaps:
    return matrix_overlap(op, graph, op.rows(graph))


FullyConnected.kernels = tuple(
    Kernel(f"fully_connected_{kind}", _lower, _cost, accepts=multiplies(*types), overlap=_overlap)
    for kind, types in KERNEL_TYPES.items()
)
