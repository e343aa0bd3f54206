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
