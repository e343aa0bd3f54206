"""SVDF: a dense layer and a filter over time in rank-many factors, with a memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.fixed_point import (
    INT32_MAX,
    Int64Array,
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
)
from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.activation import Activation
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlap, Overlaps, as_int64
from edgekiln.export.ops.convolution import (
    check_clamp,
    check_finite,
    clamp_f32,
    dot_f32,
    scalars_f32,
)
from edgekiln.export.ops.types import SUFFIX, bounds

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_FEATURE, _TIME, _BIAS, _STATE = 1, 2, 3, 4
"""Positions of the inputs after the first."""


@dataclass(frozen=True)
class Svdf(Op):
    """One step of a stream: ``[batches, inputs]`` to ``[batches, units]``.

    Filter f, of rank-many per unit, multiplies the input by its row of ``[filters, inputs]``.
    The results of the last ``memory`` steps are the state ``[batches, filters * memory]``; the
    output adds up their products with ``[filters, memory]``. The int8 form ignores the fused
    activation, as the oracle does.
    """

    rank: int
    activation: Activation

    name: ClassVar[str] = "SVDF"
    state_inputs: ClassVar[tuple[int, ...]] = (_STATE,)
    variants: ClassVar[str] = "int8 with an int8 or int16 state; float32"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("SVDFOptions")
        return cls(
            reader.index,
            reader.inputs,
            reader.outputs,
            rank=options.Rank(),
            activation=reader.enum(Activation, options.FusedActivationFunction(), "activation"),
        )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(5, 6))
        x, y, state = self.input(graph, 0), self.output(graph), self.input(graph, _STATE)
        feature = self.constant(graph, _FEATURE, "feature filter")
        time = self.constant(graph, _TIME, "time filter")
        for tensor in (x, feature, time, state, y):
            self.check_rank(graph, tensor, (2,))
        if not state.is_variable:
            self.reject(graph, f"the state '{state.name}' is not a variable")
        filters, memory = time.shape
        if memory < 1:
            self.reject(graph, f"shape of '{time.name}'", time.shape, "1 step or more")
        if self.rank < 1 or filters < 1 or filters % self.rank:
            self.reject(graph, "rank", self.rank, f"a divisor of {filters} filters")
        for tensor, shape in (
            (feature, (filters, x.shape[1])),
            (state, (x.shape[0], filters * memory)),
            (y, (x.shape[0], filters // self.rank)),
        ):
            if tensor.shape != shape:
                self.reject(graph, f"shape of '{tensor.name}'", tensor.shape, shape)
        if self.optional_input(graph, _BIAS) is not None:
            bias = self.constant(graph, _BIAS, "bias")
            if bias.elements != filters // self.rank:
                self.reject(graph, "wrong number of biases", bias.elements, filters // self.rank)
        self._check_types(graph)

    def _check_types(self, graph: Graph) -> None:
        x, y, state = self.input(graph, 0), self.output(graph), self.input(graph, _STATE)
        feature, time = self.input(graph, _FEATURE), self.input(graph, _TIME)
        bias = self.optional_input(graph, _BIAS)
        self.check_type(graph, x, DType.INT8, DType.FLOAT32)
        self.check_type(graph, y, x.dtype)
        self.check_type(graph, feature, x.dtype)
        is_float = x.dtype is DType.FLOAT32
        self.check_type(graph, state, *([x.dtype] if is_float else [DType.INT8, DType.INT16]))
        self.check_type(graph, time, state.dtype)
        if is_float:
            check_clamp(self, graph, self.activation)
            for tensor in (feature, time, *([bias] if bias else [])):
                self.check_type(graph, tensor, DType.FLOAT32)
                check_finite(self, graph, tensor)
            return
        if bias is None:
            self.unsupported(graph, "the bias is missing")
        self.check_type(graph, bias, DType.INT32)
        for tensor in (feature, time):
            if tensor.q.per_channel or tensor.q.zero_point:
                self.unsupported(graph, f"'{tensor.name}' has several scales or a zero point")
        self._check_sums(graph, x, bias)

    def _check_sums(self, graph: Graph, x: Tensor, bias: Tensor) -> None:
        state = self.input(graph, _STATE)
        units = bias.elements
        largest = []
        for tensor in (x, state):
            low, high = bounds(tensor.dtype)
            largest.append(max(high - tensor.q.zero_point, tensor.q.zero_point - low))
        largest[0] += 128  # the kernel sums codes
        feature = np.abs(as_int64(self.input(graph, _FEATURE).data)).sum(axis=1) * largest[0]
        time = np.abs(as_int64(self.input(graph, _TIME).data)).reshape(units, -1).sum(axis=1)
        output = time * largest[1] + np.abs(as_int64(bias.data).reshape(-1))
        worst = max(int(feature.max(initial=0)), int(output.max(initial=0)))
        if worst > INT32_MAX:
            self.unsupported(graph, "the accumulator could overflow 32 bits", worst, INT32_MAX)
        if any(m.shift > 30 for m in self.multipliers(graph)):
            self.unsupported(graph, "the scales of input, filters and output do not go together")

    def multipliers(self, graph: Graph) -> tuple[Multiplier, Multiplier]:
        """Returns the scales from input to state, and from state to output (double products)."""
        x, feature, time, state = (
            self.input(graph, position).q.scale for position in (0, _FEATURE, _TIME, _STATE)
        )
        return (
            quantize_multiplier(x * feature / state),
            quantize_multiplier(state * time / self.output(graph).q.scale),
        )

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output and the new state."""
        x, state = self.input(graph, 0), self.input(graph, _STATE)
        filters, memory = self.input(graph, _TIME).shape
        batches = x.shape[0]
        newest = self._features(graph, np.asarray(inputs[0]))
        history = np.asarray(inputs[_STATE]).reshape(batches, filters, memory)
        history = np.concatenate([history[:, :, 1:], newest[:, :, None]], axis=2)
        output = self._output(graph, history)
        return output, history.reshape(state.shape).astype(state.dtype.value)

    def _features(self, graph: Graph, x: Array) -> Array:
        """Returns what the input adds to the state, [batches, filters]."""
        feature, state = self.input(graph, _FEATURE).value, self.input(graph, _STATE)
        if x.dtype == np.float32:
            return dot_f32(x, feature)
        codes = as_int64(x) - self.input(graph, 0).q.zero_point
        m, _ = self.multipliers(graph)
        scaled = multiply_by_quantized_multiplier(
            codes @ as_int64(feature).T, m.multiplier, m.shift
        )
        # The zero point is added after the clamp: a sum beyond the range wraps around.
        kept = np.clip(scaled, *bounds(state.dtype)) + state.q.zero_point
        return kept.astype(state.dtype.value)

    def _output(self, graph: Graph, history: Array) -> Array:
        """Returns the output from the state [batches, filters, memory]."""
        time, y = self.input(graph, _TIME).value, self.output(graph)
        batches, filters, memory = history.shape
        bias = self.optional_input(graph, _BIAS)
        if history.dtype == np.float32:
            products = np.zeros((batches, filters), np.float32)
            for step in range(memory):
                products += history[:, :, step] * time[:, step]
            total = np.zeros(y.shape, np.float32) + (0 if bias is None else bias.value)
            for factor in range(self.rank):
                total += products.reshape(batches, -1, self.rank)[:, :, factor]
            return clamp_f32(total, self.activation)
        codes = as_int64(history) - self.input(graph, _STATE).q.zero_point
        sums: Int64Array = (codes * as_int64(time)).reshape(*y.shape, -1).sum(axis=2)
        _, m = self.multipliers(graph)
        total = sums + as_int64(bias.value if bias else np.zeros(1)).reshape(-1)
        scaled = multiply_by_quantized_multiplier(total, m.multiplier, m.shift)
        return np.clip(scaled + y.q.zero_point, -128, 127).astype(np.int8)

    def macs(self, graph: Graph) -> int:
        """Counts one step per weight and batch."""
        weights = self.input(graph, _FEATURE).elements + self.input(graph, _TIME).elements
        return self.input(graph, 0).shape[0] * weights


def _lower(op: Svdf, graph: Graph) -> tuple[KernelCall, ...]:
    x, y, state = op.input(graph, 0), op.output(graph), op.input(graph, _STATE)
    feature, time = op.input(graph, _FEATURE), op.input(graph, _TIME)
    bias = op.optional_input(graph, _BIAS)
    filters, memory = time.shape
    scalars: dict[str, int | float] = {
        "batches": x.shape[0],
        "inputs": x.shape[1],
        "units": filters // op.rank,
        "rank": op.rank,
        "memory": memory,
    }
    if x.dtype is DType.FLOAT32:
        scalars |= scalars_f32(op.activation)
        feature_bias: dict[str, Array] = {}
        zeros = np.zeros(filters // op.rank, np.float32)
        biases = zeros if bias is None else bias.value.reshape(-1)
    else:
        to_state, to_output = op.multipliers(graph)
        low, high = bounds(state.dtype)
        scalars |= {
            "state_zero_point": state.q.zero_point,
            "state_min": low,
            "state_max": high,
            "state_multiplier": to_state.multiplier,
            "state_shift": to_state.shift,
            "output_multiplier": to_output.multiplier,
            "output_shift": to_output.shift,
            "output_zero_point": y.q.zero_point,
        }
        sums = as_int64(feature.data).sum(axis=1)
        feature_bias = {"feature_bias": (-x.q.zero_point * sums).astype(np.int32)}
        biases = op.input(graph, _BIAS).value.reshape(-1)
    suffix = "f32" if x.dtype is DType.FLOAT32 else f"s8_{SUFFIX[state.dtype]}"
    tables = {
        "feature": feature.value.reshape(-1),
        **feature_bias,
        "time": time.value.reshape(-1),
        "bias": biases,
    }
    header = "ek_svdf_f32.h" if x.dtype is DType.FLOAT32 else "ek_svdf_s8.h"
    call = KernelCall(
        f"ek_svdf_{suffix}", header, scalars, tables, (x.index,), y.index, states=(state.index,)
    )
    return (call,)


def _cost(op: Svdf, graph: Graph) -> float:
    return 6.0 * op.macs(graph) + 30.0 * op.output(graph).elements


def _overlap(op: Svdf, graph: Graph) -> Overlaps:
    """All units but the last of a single batch are written while the input is still read."""
    x, y = op.input(graph, 0), op.output(graph)
    return {0: Overlap((y.shape[1] - 1) * y.dtype.bytes)} if x.shape[0] == 1 else {}


Svdf.kernels = (Kernel("svdf", _lower, _cost, overlap=_overlap),)
