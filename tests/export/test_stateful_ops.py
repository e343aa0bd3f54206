"""Operators that remember: SVDF, LSTM and variables, as streams and one inference at a time."""

from __future__ import annotations

import numpy as np
import pytest
from everywhere import Array
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import check_stream
from tflite_builder import BuiltOp, BuiltSubgraph, BuiltTensor, build_model

from edgekiln.bench.runners import tflm_available
from edgekiln.errors import BadModelError, UnsupportedOpError
from edgekiln.export.compiler import compile_model

pytestmark = pytest.mark.skipif(
    not tflm_available(), reason="the oracle, the tflite-micro wheel, is not installed"
)

EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def svdfs(draw: st.DrawFn) -> bytes:
    """SVDF of any rank, memory and batch, with all types of state."""
    generator = np.random.default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["FLOAT32", "INT8", "INT16"]))
    batches, inputs = draw(st.integers(1, 2)), draw(st.integers(1, 7))
    units, rank, memory = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    filters = units * rank
    shapes = [(batches, inputs), (filters, inputs), (filters, memory), (units,)]
    shapes += [(batches, filters * memory), (batches, units)]
    if kind == "FLOAT32":
        tensors = [BuiltTensor(shape, kind) for shape in shapes]
        for tensor in tensors[1:4]:
            tensor.data = generator.normal(0, 0.5, tensor.shape).astype(np.float32)
    else:
        state_scale = 0.004 if kind == "INT16" else 0.2
        zero_point = 0 if kind == "INT16" else draw(st.sampled_from([0, -3, 10]))
        x_zero, y_zero = (draw(st.sampled_from([-128, 0, 7])) for _ in range(2))
        time = generator.integers(-127, 128, shapes[2]).astype(kind.lower())
        tensors = [
            BuiltTensor(shapes[0], "INT8", (0.1,), (x_zero,)),
            BuiltTensor(shapes[1], "INT8", (0.02,), (0,)),
            BuiltTensor(shapes[2], kind, (0.01,), (0,), 0, time),
            BuiltTensor(shapes[3], "INT32", (state_scale * 0.01,), (0,)),
            BuiltTensor(shapes[4], kind, (state_scale,), (zero_point,)),
            BuiltTensor(shapes[5], "INT8", (0.3,), (y_zero,)),
        ]
        tensors[1].data = generator.integers(-127, 128, shapes[1]).astype(np.int8)
        tensors[3].data = generator.integers(-500, 500, units).astype(np.int32)
    tensors[4].is_variable = True
    values = {"Rank": rank, "FusedActivationFunction": draw(st.sampled_from([0, 1]))}
    op = BuiltOp("SVDF", [0, 1, 2, 3, 4], [5], "SVDFOptions", values)
    return build_model(tensors, [op], [0], [5])


@EXAMPLES
@given(svdfs(), SEEDS, st.sampled_from(["arena", "separate"]))
def test_svdf(model: bytes, seed: int, io: str) -> None:
    check_stream(model, seed, io=io)


def test_svdf_multiplies_scales_in_double_precision() -> None:
    """Sums divided by 8 are often ties; units that subtract two near ones show how they round."""
    generator = np.random.default_rng(0)
    units, inputs = 100, 16
    feature = generator.integers(-127, 128, (units, 2, inputs)).astype(np.int8)
    feature[:, 1] = feature[:, 0]
    feature[:, 1, 0] ^= 1
    x_scale, scale = (float(np.float32(v)) for v in generator.uniform(0.01, 0.1, 2))
    state_scale = float(np.float32(8 * x_scale * scale))
    time = np.tile(np.array([[1], [-1]], np.int16), (units, 1))
    tensors = [
        BuiltTensor((1, inputs), "INT8", (x_scale,), (0,)),
        BuiltTensor((2 * units, inputs), "INT8", (scale,), (0,), 0, feature.reshape(-1, inputs)),
        BuiltTensor((2 * units, 1), "INT16", (1.0,), (0,), 0, time),
        BuiltTensor((units,), "INT32", (state_scale,), (0,), 0, np.zeros(units, np.int32)),
        BuiltTensor((1, 2 * units), "INT16", (state_scale,), (0,), is_variable=True),
        BuiltTensor((1, units), "INT8", (state_scale,), (0,)),
    ]
    op = BuiltOp("SVDF", [0, 1, 2, 3, 4], [5], "SVDFOptions", {"Rank": 2})
    check_stream(build_model(tensors, [op], [0], [5]), steps=20)


def lstm_tensors(
    generator: np.random.Generator, kind: str, batches: int, inputs: int, units: int
) -> list[BuiltTensor]:
    """Filters, biases and states of an LSTM, at the positions of its inputs from 1 on."""
    real, wide = kind == "FLOAT32", kind == "INT16"
    tensors = []
    for position in range(1, 20):
        depth = inputs if position < 5 else units
        if 9 <= position < 12 or 16 <= position < 18:
            continue
        if position < 9:
            shape, scale, low = (units, depth), 0.01, 128
            dtype = "FLOAT32" if real else "INT8"
        elif position < 16:
            shape, scale, low = (units,), 0.0005, 3000
            dtype = "FLOAT32" if real else "INT64" if wide else "INT32"
        else:
            shape, low = (batches, units), 0
            scale = (1 / 32768 if wide else 1 / 128) if position == 18 else 2.0**-11
            dtype = kind if position == 18 or real else "INT16"
        zero_point = 3 if position == 18 and kind == "INT8" else 0
        tensor = BuiltTensor(shape, dtype, () if real else (scale,), (zero_point,))
        if position < 16:
            codes = generator.integers(-low, low, shape)
            data = (codes * scale).astype("f4") if real else codes.astype(dtype.lower())
            tensor.data = data
        else:
            tensor.is_variable = True
        tensors.append(tensor)
    return tensors


@st.composite
def lstms(draw: st.DrawFn) -> bytes:
    """LSTMs of all types, either order of batches and steps, with and without a clip."""
    generator = np.random.default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["FLOAT32", "INT8", "INT16"]))
    batches, steps = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    inputs, units = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    time_major = draw(st.booleans())
    outer = (steps, batches) if time_major else (batches, steps)
    scales: dict[str, tuple[float, ...]] = {"INT8": (0.02,), "INT16": (0.0001,), "FLOAT32": ()}
    zero_point = (draw(st.sampled_from([-128, 0, 6])) if kind == "INT8" else 0,)
    hidden_scale = {"INT8": (1 / 128,), "INT16": (1 / 32768,), "FLOAT32": ()}[kind]
    x = BuiltTensor((*outer, inputs), kind, scales[kind], zero_point)
    y = BuiltTensor((*outer, units), kind, hidden_scale, (3 if kind == "INT8" else 0,))
    tensors = [x, *lstm_tensors(generator, kind, batches, inputs, units), y]
    numbers = iter(range(1, 15))
    present = [p < 9 or 12 <= p < 16 or 18 <= p < 20 for p in range(1, 24)]
    positions = [0, *(next(numbers) if there else -1 for there in present)]
    values = {
        "FusedActivationFunction": 4,
        "TimeMajor": time_major,
        "CellClip": draw(st.sampled_from([0.0, 0.3, 10.0])),
    }
    name = "UNIDIRECTIONAL_SEQUENCE_LSTM"
    op = BuiltOp(name, positions, [15], "UnidirectionalSequenceLSTMOptions", values)
    return build_model(tensors, [op], [0], [15])


@EXAMPLES
@given(lstms(), SEEDS)
def test_lstm(model: bytes, seed: int) -> None:
    check_stream(model, seed)


def variable_model(
    *, initial: Array | None, first: bool = True, kind: str = "INT8", subgraphs: int = 1
) -> bytes:
    """A stream that returns the last three inputs: a variable keeps two of them.

    Args:
        initial: What CALL_ONCE assigns; None for a model without.
        first: Whether CALL_ONCE is the first node.
        kind: Type of all values.
        subgraphs: How often the subgraph of CALL_ONCE is there.
    """
    scale, zero_point = ((0.1,), (-3,)) if kind == "INT8" else ((), ())
    shapes = [(1, 1, 4), (), (1, 2, 4), (1, 3, 4), (3,), (3,), (1, 2, 4)]
    tensors = [BuiltTensor(shape, kind, scale, zero_point) for shape in shapes]
    tensors[1] = BuiltTensor((), "RESOURCE", name="history handle")
    tensors[4] = BuiltTensor((3,), "INT32", data=np.array([0, 1, 0], np.int32))
    tensors[5] = BuiltTensor((3,), "INT32", data=np.array([1, 2, 4], np.int32))
    name = {"Container": "", "SharedName": "history"}
    ops = [
        BuiltOp("VAR_HANDLE", [], [1], "VarHandleOptions", name),
        BuiltOp("READ_VARIABLE", [1], [2], "ReadVariableOptions"),
        BuiltOp("CONCATENATION", [2, 0], [3], "ConcatenationOptions", {"Axis": 1}),
        BuiltOp("SLICE", [3, 4, 5], [6], "SliceOptions"),
        BuiltOp("ASSIGN_VARIABLE", [1, 6], [], "AssignVariableOptions"),
    ]
    if initial is None:
        return build_model(tensors, ops, [0], [3])
    once = BuiltOp("CALL_ONCE", [], [], "CallOnceOptions", {"InitSubgraphIndex": 1})
    ops.insert(0 if first else 3, once)
    start = BuiltSubgraph(
        [
            BuiltTensor((), "RESOURCE"),
            BuiltTensor((8,), kind, scale, zero_point, 0, initial.reshape(8)),
            BuiltTensor((3,), "INT32", data=np.array([1, 2, 4], np.int32)),
            BuiltTensor((1, 2, 4), kind, scale, zero_point),
        ],
        [
            BuiltOp("VAR_HANDLE", [], [0], "VarHandleOptions", name),
            BuiltOp("RESHAPE", [1, 2], [3], "ReshapeOptions"),
            BuiltOp("ASSIGN_VARIABLE", [0, 3], [], "AssignVariableOptions"),
        ],
        [],
        [],
    )
    return build_model(tensors, ops, [0], [3], [start] * subgraphs)


@pytest.mark.parametrize("kind", ["INT8", "FLOAT32"])
def test_a_variable_starts_at_its_zero_point(kind: str) -> None:
    compiled = check_stream(variable_model(initial=None, kind=kind))
    assert compiled.report["state_bytes"] == (8 if kind == "INT8" else 32)
    assert "memset" in compiled.files["m.c"]


@pytest.mark.parametrize("kind", ["INT8", "FLOAT32"])
@pytest.mark.parametrize("optimize", ["balanced", "time", "ram", "flash"])
def test_call_once_gives_a_variable_its_first_value(kind: str, optimize: str) -> None:
    initial = (10 * np.arange(8) - 30).astype(kind.lower())
    compiled = check_stream(variable_model(initial=initial, kind=kind), optimize=optimize)
    assert "ek_copy_table(state->" in compiled.files["m.c"]


def test_variables_that_cannot_be_resolved() -> None:
    initial = np.arange(8, dtype=np.int8)
    with pytest.raises(UnsupportedOpError, match="node 3 CALL_ONCE: comes after a node that uses"):
        compile_model(variable_model(initial=initial, first=False), name="m")
    with pytest.raises(UnsupportedOpError, match="several subgraphs; got 3; allowed: 1, and those"):
        compile_model(variable_model(initial=initial, subgraphs=2), name="m")
    with pytest.raises(BadModelError, match="CALL_ONCE names a subgraph that is not there"):
        compile_model(variable_model(initial=initial, subgraphs=0), name="m")


def test_a_variable_that_is_only_read_is_refused() -> None:
    tensors = [BuiltTensor((), "RESOURCE"), BuiltTensor((1, 4), "INT32")]
    ops = [
        BuiltOp("VAR_HANDLE", [], [0], "VarHandleOptions", {"SharedName": "lost"}),
        BuiltOp("READ_VARIABLE", [0], [1], "ReadVariableOptions"),
    ]
    with pytest.raises(BadModelError, match="READ_VARIABLE: reads a variable that is never assig"):
        compile_model(build_model(tensors, ops, [], [1]), name="m")


def test_a_variable_has_one_type() -> None:
    tensors = [
        BuiltTensor((), "RESOURCE"),
        BuiltTensor((1, 4), "INT32"),
        BuiltTensor((1, 5), "INT32"),
    ]
    ops = [
        BuiltOp("VAR_HANDLE", [], [0], "VarHandleOptions", {"SharedName": "history"}),
        BuiltOp("ASSIGN_VARIABLE", [0, 1], [], "AssignVariableOptions"),
        BuiltOp("READ_VARIABLE", [0], [2], "ReadVariableOptions"),
    ]
    with pytest.raises(BadModelError, match=r"'history' has another type or size; got int32 .1, 5"):
        compile_model(build_model(tensors, ops, [1], [2]), name="m")


def test_a_handle_is_no_value() -> None:
    tensors = [BuiltTensor((1, 4), "RESOURCE"), BuiltTensor((4,))]
    model = build_model(tensors, [BuiltOp("RESHAPE", [0], [1], "ReshapeOptions")], [0], [1])
    with pytest.raises(UnsupportedOpError, match="RESHAPE: uses a resource"):
        compile_model(model, name="m")
