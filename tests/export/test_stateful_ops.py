"""Operators that remember: SVDF, LSTM and variables, as streams and one inference at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streams import check_stream
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench.runners import tflm_available

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
