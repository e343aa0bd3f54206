"""UNIDIRECTIONAL_SEQUENCE_LSTM."""

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
    round_half_away_f32,
)
from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.activation import Activation
from edgekiln.export.ops.base import (
    Array,
    Kernel,
    KernelCall,
    Op,
    Overlap,
    Overlaps,
    Tolerance,
    as_int64,
)
from edgekiln.export.ops.convolution import (
    Requantization,
    check_finite,
    dot_f32,
    matrix_overlap,
    requantization,
)
from edgekiln.export.ops.real_functions import logistic_f32, tanh_f32
from edgekiln.export.ops.sigmoid import SIGMOID_TABLE, logistic_s16, tanh_s16
from edgekiln.export.ops.types import SUFFIX, bounds

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_INPUTS = 24
_GATES = ("forget", "input", "cell", "output")
_INPUT_WEIGHTS = dict(zip(_GATES, (2, 1, 3, 4), strict=True))
_RECURRENT_WEIGHTS = dict(zip(_GATES, (6, 5, 7, 8), strict=True))
_BIASES = dict(zip(_GATES, (13, 12, 14, 15), strict=True))
_HIDDEN, _CELL = 18, 19
_ABSENT = (
    ("peephole", range(9, 12)),
    ("projection", range(16, 18)),
    ("normalization", range(20, 24)),
)
"""Positions of the inputs."""

_GATE_SCALE = 2.0**-12
_FUNCTION_SCALE = 2.0**-15
"""Scales of the int16 values before and after a gate's function."""

_MAX_CELL_SHIFT = 14
"""Largest left shift of the cell state at which its argument to tanh fits 32 bits."""


@dataclass(frozen=True)
class UnidirectionalSequenceLstm(Op):
    """An LSTM over ``[batches, steps, inputs]`` (steps first with ``time_major``).

    Without peepholes, projection and layer normalization. Per step, with the hidden state h
    and the cell state c::

        forget, input, output = sigmoid(W x + R h + b)      candidate = tanh(W x + R h + b)
        c = forget * c + input * candidate                  h = output * tanh(c)

    The output is h of every step. Both states are variables. In the integer forms the products
    W x + b and R h are rescaled to int16 each, and c is int16 with a scale that is a power of
    two.
    """

    time_major: bool
    cell_clip: float

    name: ClassVar[str] = "UNIDIRECTIONAL_SEQUENCE_LSTM"
    state_inputs: ClassVar[tuple[int, ...]] = (_HIDDEN, _CELL)
    variants: ClassVar[str] = (
        "int8, int16 activations with int8 filters, float32; no peephole, projection, layer"
        " normalization"
    )
    tolerance: ClassVar[Tolerance] = Tolerance(absolute=1e-5)

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("UnidirectionalSequenceLSTMOptions")
        activation = reader.enum(Activation, options.FusedActivationFunction(), "activation")
        if activation is not Activation.TANH:
            reader.unsupported("fused activation", activation, Activation.TANH)
        return cls(
            reader.index,
            reader.inputs,
            reader.outputs,
            time_major=bool(options.TimeMajor()),
            cell_clip=float(options.CellClip()),
        )

    def sizes(self, graph: Graph) -> tuple[int, int, int, int]:
        """Returns the numbers of batches, steps, inputs and units."""
        first, second, inputs = self.input(graph, 0).shape
        batches, steps = (second, first) if self.time_major else (first, second)
        return batches, steps, inputs, self.input(graph, _INPUT_WEIGHTS["forget"]).shape[0]

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(_INPUTS, _INPUTS + 1))
        for what, absent in _ABSENT:
            if any(self.optional_input(graph, position) for position in absent):
                self.unsupported(graph, f"has a {what}")
        x, y = self.input(graph, 0), self.output(graph)
        for tensor in (x, y):
            self.check_rank(graph, tensor, (3,))
        for positions in (_INPUT_WEIGHTS, _RECURRENT_WEIGHTS):
            for gate, position in positions.items():
                weights = self.constant(graph, position, f"filter of the {gate} gate")
                self.check_rank(graph, weights, (2,))
        for gate, position in _BIASES.items():
            self.constant(graph, position, f"bias of the {gate} gate")
        if min(self.sizes(graph)) < 1 or y.shape != (*x.shape[:2], self.sizes(graph)[3]):
            self.reject(graph, f"shape of '{y.name}'", y.shape)
        self._check_shapes(graph)
        self._check_types(graph)

    def _check_shapes(self, graph: Graph) -> None:
        batches, _, inputs, units = self.sizes(graph)
        expected: dict[int, tuple[int, ...]] = {}
        expected |= dict.fromkeys(_INPUT_WEIGHTS.values(), (units, inputs))
        expected |= dict.fromkeys(_RECURRENT_WEIGHTS.values(), (units, units))
        expected |= dict.fromkeys(_BIASES.values(), (units,))
        for position, shape in expected.items():
            tensor = self.input(graph, position)
            if tensor.shape != shape:
                self.reject(graph, f"shape of '{tensor.name}'", tensor.shape, shape)
        hidden, cell = self.input(graph, _HIDDEN), self.input(graph, _CELL)
        for tensor in (hidden, cell):
            if not tensor.is_variable:
                self.reject(graph, f"the state '{tensor.name}' is not a variable")
            if tensor.elements != batches * units:
                self.reject(graph, f"shape of '{tensor.name}'", tensor.shape, (batches, units))
        if hidden.index == cell.index:
            self.reject(graph, "both states are one variable")

    def _check_types(self, graph: Graph) -> None:
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, x, DType.INT8, DType.INT16, DType.FLOAT32)
        is_float = x.dtype is DType.FLOAT32
        bias_type = {DType.INT8: DType.INT32, DType.INT16: DType.INT64}.get(x.dtype, x.dtype)
        weights = [self.input(graph, p) for p in (*_INPUT_WEIGHTS.values(),)]
        weights += [self.input(graph, p) for p in (*_RECURRENT_WEIGHTS.values(),)]
        biases = [self.input(graph, p) for p in _BIASES.values()]
        for tensor in (y, self.input(graph, _HIDDEN)):
            self.check_type(graph, tensor, x.dtype)
        self.check_type(graph, self.input(graph, _CELL), DType.FLOAT32 if is_float else DType.INT16)
        for tensor in weights:
            self.check_type(graph, tensor, DType.FLOAT32 if is_float else DType.INT8)
        for tensor in biases:
            self.check_type(graph, tensor, bias_type)
        if is_float:
            for tensor in (*weights, *biases):
                check_finite(self, graph, tensor)
        else:
            self._check_quantized(graph, weights)

    def _check_quantized(self, graph: Graph, weights: list[Tensor]) -> None:
        x, hidden, cell = (self.input(graph, p) for p in (0, _HIDDEN, _CELL))
        for tensor in weights:
            if tensor.q.per_channel or tensor.q.zero_point:
                self.unsupported(graph, f"'{tensor.name}' has several scales or a zero point")
        zero_points = [cell.q.zero_point]
        if x.dtype is DType.INT16:
            zero_points += [x.q.zero_point, hidden.q.zero_point]
        if any(zero_points):
            self.unsupported(graph, "zero point of an int16 tensor", allowed=0)
        wide = x.dtype is DType.INT16
        requants = [
            self.gates(graph, positions) for positions in (_INPUT_WEIGHTS, _RECURRENT_WEIGHTS)
        ]
        shifts = np.concatenate([r.shifts for r in requants])
        if (shifts > (7 if wide else 30)).any() or any(m.shift > 30 for m in self.products(graph)):
            self.unsupported(graph, "the scales of input, filters and states do not go together")
        if abs(self.cell_power(graph) + 12) > _MAX_CELL_SHIFT:
            self.unsupported(graph, "scale of the cell state", cell.q.scale)
        limit = (1 << 47) - 1 if wide else INT32_MAX
        if self._largest_sum(graph) > limit:
            self.unsupported(graph, "the accumulator could overflow", self._largest_sum(graph))

    def _largest_sum(self, graph: Graph) -> int:
        worst = 0
        for source, positions in ((0, _INPUT_WEIGHTS), (_HIDDEN, _RECURRENT_WEIGHTS)):
            tensor = self.input(graph, source)
            low, high = bounds(tensor.dtype)
            largest = max(high - tensor.q.zero_point, tensor.q.zero_point - low)
            for gate in _GATES:
                weights = np.abs(as_int64(self.input(graph, positions[gate]).data))
                # The kernel sums codes: allow for the zero point twice.
                sums = int(weights.sum(axis=1).max()) * (largest + abs(tensor.q.zero_point))
                bias = self.input(graph, _BIASES[gate]).value if source == 0 else np.zeros(1)
                worst = max(worst, sums + max(abs(int(v)) for v in bias.reshape(-1)))
        return worst

    def gates(self, graph: Graph, positions: dict[str, int]) -> Requantization:
        """Returns the multipliers of the four gates, from sums of products to int16."""
        source = self.input(graph, 0 if positions is _INPUT_WEIGHTS else _HIDDEN)
        multipliers = []
        for gate in _GATES:
            scale = self.input(graph, positions[gate]).q.scale
            multipliers.append(quantize_multiplier(source.q.scale * scale / _GATE_SCALE))
        return requantization(multipliers, wide=source.dtype is DType.INT16)

    def products(self, graph: Graph) -> tuple[Multiplier, Multiplier, Multiplier]:
        """Returns the multipliers of forget * c, input * candidate, and output * tanh(c)."""
        cell, hidden = self.input(graph, _CELL).q.scale, self.input(graph, _HIDDEN).q.scale
        return (
            quantize_multiplier(_FUNCTION_SCALE * cell / cell),
            quantize_multiplier(_FUNCTION_SCALE * _FUNCTION_SCALE / cell),
            quantize_multiplier(_FUNCTION_SCALE * _FUNCTION_SCALE / hidden),
        )

    def cell_power(self, graph: Graph) -> int:
        """Returns the power of two nearest to the cell state's scale (``CheckedLog2``)."""
        scale = np.float32(self.input(graph, _CELL).q.scale)
        return round_half_away_f32(np.log(scale) * (np.float32(1) / np.log(np.float32(2))))

    def tanh_argument(self, graph: Graph) -> tuple[int, int]:
        """Returns the multiplier and right shift from the cell state to tanh's argument."""
        shift = 12 + self.cell_power(graph)
        return (3 << shift, 0) if shift >= 0 else (3, -shift)

    def quantized_clip(self, graph: Graph) -> int:
        """Returns the cell state's bound; 0 for none."""
        if not self.cell_clip > 0:
            return 0
        bound = float(np.float32(self.cell_clip)) / self.input(graph, _CELL).q.scale
        return int(min(bound, 32767.0))

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output and both states."""
        x, hidden, cell = (np.asarray(inputs[position]) for position in (0, _HIDDEN, _CELL))
        batches, steps, _, units = self.sizes(graph)
        by_step = x if self.time_major else x.swapaxes(0, 1)
        state = (hidden.reshape(batches, units), cell.reshape(batches, units))
        step = self._step_f32 if x.dtype == np.float32 else self._step_integer
        rows = []
        for number in range(steps):
            state = step(graph, by_step[number], *state)
            rows.append(state[0])
        output = np.stack(rows, axis=0 if self.time_major else 1)
        return output, state[0].reshape(hidden.shape), state[1].reshape(cell.shape)

    def _step_f32(self, graph: Graph, x: Array, hidden: Array, cell: Array) -> tuple[Array, Array]:
        gates = {}
        for gate in _GATES:
            total = dot_f32(x, self.input(graph, _INPUT_WEIGHTS[gate]).value)
            total = total + self.input(graph, _BIASES[gate]).value.reshape(-1)
            recurrent = dot_f32(hidden, self.input(graph, _RECURRENT_WEIGHTS[gate]).value)
            function = tanh_f32 if gate == "cell" else logistic_f32
            gates[gate] = function(total + recurrent)
        cell = gates["forget"] * cell + gates["input"] * gates["cell"]
        if self.cell_clip > 0:
            clip = np.float32(self.cell_clip)
            cell = np.maximum(np.minimum(clip, cell), -clip)
        return gates["output"] * tanh_f32(cell), cell

    def _step_integer(
        self, graph: Graph, x: Array, hidden: Array, cell: Array
    ) -> tuple[Array, Array]:
        source, state = self.input(graph, 0), self.input(graph, _HIDDEN)
        from_input = self.gates(graph, _INPUT_WEIGHTS)
        from_hidden = self.gates(graph, _RECURRENT_WEIGHTS)
        codes = as_int64(x) - source.q.zero_point
        hidden_codes = as_int64(hidden) - state.q.zero_point
        gates = {}
        for number, gate in enumerate(_GATES):
            sums = codes @ as_int64(self.input(graph, _INPUT_WEIGHTS[gate]).data).T
            sums = sums + as_int64(self.input(graph, _BIASES[gate]).data).reshape(-1)
            recurrent = hidden_codes @ as_int64(self.input(graph, _RECURRENT_WEIGHTS[gate]).data).T
            total = _clip_s16(_only(from_input, number).apply(sums))
            total = total + _clip_s16(_only(from_hidden, number).apply(recurrent))
            function = tanh_s16 if gate == "cell" else logistic_s16
            gates[gate] = function(_clip_s16(total) * 3)
        forget, update, result = self.products(graph)
        kept = _clip_s16(_multiply(gates["forget"] * as_int64(cell), forget))
        cell = _clip_s16(kept + _clip_s16(_multiply(gates["input"] * gates["cell"], update)))
        clip = self.quantized_clip(graph)
        if clip > 0:
            cell = np.clip(cell, -clip, clip)
        multiplier, shift = self.tanh_argument(graph)
        squashed = tanh_s16((cell * multiplier + ((1 << shift) >> 1)) >> shift)
        new = _multiply(squashed * gates["output"], result) + state.q.zero_point
        return (
            np.clip(new, *bounds(state.dtype)).astype(state.dtype.value),
            cell.astype(np.int16),
        )

    def macs(self, graph: Graph) -> int:
        """Counts one step per weight, batch and step."""
        batches, steps, inputs, units = self.sizes(graph)
        return batches * steps * 4 * units * (inputs + units)


def _only(requant: Requantization, gate: int) -> Requantization:
    piece = slice(gate, gate + 1)
    return Requantization(requant.multipliers[piece], requant.shifts[piece], requant.wide)


def _clip_s16(x: Int64Array) -> Int64Array:
    return np.clip(x, -32768, 32767)


def _multiply(x: Int64Array, m: Multiplier) -> Int64Array:
    return multiply_by_quantized_multiplier(x, m.multiplier, m.shift)


def _stacked(op: Op, graph: Graph, positions: dict[str, int]) -> Array:
    return np.concatenate([op.input(graph, positions[gate]).value.reshape(-1) for gate in _GATES])


def _size_scalars(op: UnidirectionalSequenceLstm, graph: Graph) -> dict[str, int | float]:
    batches, steps, inputs, units = op.sizes(graph)
    return {
        "batches": batches,
        "steps": steps,
        "inputs": inputs,
        "units": units,
        "batch_step": 1 if op.time_major else steps,
        "time_step": batches if op.time_major else 1,
    }


def _lower_f32(op: UnidirectionalSequenceLstm, graph: Graph) -> tuple[KernelCall, ...]:
    tables = {
        "input_filter": _stacked(op, graph, _INPUT_WEIGHTS),
        "hidden_filter": _stacked(op, graph, _RECURRENT_WEIGHTS),
        "bias": _stacked(op, graph, _BIASES),
    }
    scalars = _size_scalars(op, graph) | {"cell_clip": max(float(np.float32(op.cell_clip)), 0.0)}
    return (_call(op, "ek_lstm_f32", "ek_lstm_f32.h", scalars, tables),)


def _lower_integer(op: UnidirectionalSequenceLstm, graph: Graph) -> tuple[KernelCall, ...]:
    x, hidden = op.input(graph, 0), op.input(graph, _HIDDEN)
    forget, update, result = op.products(graph)
    multiplier, shift = op.tanh_argument(graph)
    low, high = bounds(hidden.dtype)
    scalars = _size_scalars(op, graph) | {
        "forget_multiplier": forget.multiplier,
        "forget_shift": forget.shift,
        "update_multiplier": update.multiplier,
        "update_shift": update.shift,
        "result_multiplier": result.multiplier,
        "result_shift": result.shift,
        "tanh_multiplier": multiplier,
        "tanh_shift": shift,
        "cell_clip": op.quantized_clip(graph),
        "hidden_zero_point": hidden.q.zero_point,
        "hidden_min": low,
        "hidden_max": high,
    }
    biases = as_int64(_stacked(op, graph, _BIASES))
    tables: dict[str, Array] = {}
    for name, source, positions, bias in (
        ("input", x, _INPUT_WEIGHTS, biases),
        ("hidden", hidden, _RECURRENT_WEIGHTS, np.zeros_like(biases)),
    ):
        filters = _stacked(op, graph, positions)
        sums = as_int64(filters).reshape(biases.size, -1).sum(axis=1)
        folded = bias - source.q.zero_point * sums
        requant = op.gates(graph, positions).as_c_arrays()
        tables |= {
            f"{name}_filter": filters,
            f"{name}_bias": folded.astype(np.int32 if x.dtype is DType.INT8 else np.int64),
            f"{name}_multiplier": requant["multiplier"],
            f"{name}_shift": requant["shift"],
        }
    tables["sigmoid"] = SIGMOID_TABLE
    kernel = f"ek_lstm_{SUFFIX[x.dtype]}"
    return (_call(op, kernel, "ek_lstm.h", scalars, tables),)


def _call(
    op: UnidirectionalSequenceLstm,
    kernel: str,
    header: str,
    scalars: dict[str, int | float],
    tables: dict[str, Array],
) -> KernelCall:
    states = (op.inputs[_HIDDEN], op.inputs[_CELL])
    return KernelCall(
        kernel, header, scalars, tables, (op.inputs[0],), op.outputs[0], states=states
    )


def _lower(op: UnidirectionalSequenceLstm, graph: Graph) -> tuple[KernelCall, ...]:
    is_float = op.input(graph, 0).dtype is DType.FLOAT32
    return _lower_f32(op, graph) if is_float else _lower_integer(op, graph)


def _cost(op: UnidirectionalSequenceLstm, graph: Graph) -> float:
    return 6.0 * op.macs(graph) + 400.0 * op.output(graph).elements


def _overlap(op: UnidirectionalSequenceLstm, graph: Graph) -> Overlaps:
    """Of one batch, row t of the output is written while row t of the input is still read."""
    batches, steps, _, _ = op.sizes(graph)
    if batches != 1:
        return {}
    return {0: Overlap(matrix_overlap(op, graph, steps)[0].before)}


UnidirectionalSequenceLstm.kernels = (Kernel("lstm", _lower, _cost, overlap=_overlap),)
