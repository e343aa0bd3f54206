"""FULLY_CONNECTED."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import Graph
from edgekiln.export.ops.activation import Activation, activation_range
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlaps, as_int64
from edgekiln.export.ops.convolution import (
    Requantization,
    bias_values,
    check_accumulator,
    check_bias,
    check_clamp,
    check_weights,
    matrix_call,
    matrix_overlap,
    per_channel_requantization,
    per_tensor_requantization,
)

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class FullyConnected(Op):
    """Product of ``int8 [rows, depth]`` with a filter ``int8 [channels, depth]``.

    The input may have any shape whose elements are a multiple of the filter's depth.
    """

    activation: Activation
    keep_num_dims: bool

    name: ClassVar[str] = "FULLY_CONNECTED"
    variants: ClassVar[str] = "int8; per channel or per tensor; keep_num_dims; bias optional"

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
        """Returns the multipliers. One per tensor is a float32 product, as in the oracle."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        if weights.q.per_channel:
            return per_channel_requantization(x, weights, y)
        return per_tensor_requantization(x, weights, y)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 4))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_rank(graph, self.input(graph, 1), (2,))
        self.check_int8(graph, x)
        self.check_int8(graph, y)
        weights = check_weights(self, graph, channel_axis=0)
        channels, depth = weights.shape
        check_bias(self, graph, channels)
        check_clamp(self, graph, self.activation)
        if depth < 1 or x.elements % depth or x.elements == 0:
            self.reject(graph, "filter and input disagree on depth", weights.shape, x.shape)
        if y.elements != self.rows(graph) * channels:
            self.reject(graph, f"shape of '{y.name}'", y.shape, (self.rows(graph), channels))
        check_accumulator(self, graph, as_int64(weights.data), x)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: exact sums, double rounding."""
        x, weights, y = self.input(graph, 0), self.input(graph, 1), self.output(graph)
        channels, depth = weights.shape
        values = as_int64(inputs[0]).reshape(-1, depth) - x.q.zero_point
        sums = (values.astype(np.float64) @ weights.value.astype(np.float64).T).astype(np.int64)
        accumulators = sums + bias_values(self, graph, channels)
        scaled = self.requantization(graph).apply(accumulators)
        low, high = activation_range(self.activation, y.q)
        return (np.clip(scaled + y.q.zero_point, low, high).astype(np.int8).reshape(y.shape),)

    def macs(self, graph: Graph) -> int:
        """Counts one step per weight and row."""
        return self.rows(graph) * self.input(graph, 1).elements


def _lower(op: FullyConnected, graph: Graph) -> tuple[KernelCall, ...]:
    return matrix_call(op, graph, op.rows(graph), op.requantization(graph), op.activation)


def _cost(op: FullyConnected, graph: Graph) -> float:
    return 5.0 * op.macs(graph) + 30.0 * op.output(graph).elements


def _overlap(op: FullyConnected, graph: Graph) -> Overlaps:
    return matrix_overlap(op, graph, op.rows(graph))


FullyConnected.kernels = (Kernel("fully_connected_s8", _lower, _cost, overlap=_overlap),)
