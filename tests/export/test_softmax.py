"""SOFTMAX and LOG_SOFTMAX against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from everywhere import check_everywhere, oracle_is_missing
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.errors import UnsupportedOpError
from edgekiln.export.compiler import compile_model

pytestmark = oracle_is_missing

OUTPUTS = {
    ("INT8", "INT8"): (1 / 256, -128),
    ("INT8", "INT16"): (1 / 65536, -32768),
    ("INT16", "INT16"): (1 / 32768, 0),
}


def softmax(
    x: str, y: str, scale: float, shape: tuple[int, ...] = (1, 2, 10), beta: float = 1.0
) -> bytes:
    if x == "FLOAT32":
        tensors = [BuiltTensor(shape, x), BuiltTensor(shape, x)]
    else:
        out_scale, out_zero = OUTPUTS[x, y]
        tensors = [
            BuiltTensor(shape, x, (scale,), (0,)),
            BuiltTensor(shape, y, (out_scale,), (out_zero,)),
        ]
    op = BuiltOp("SOFTMAX", [0], [1], "SoftmaxOptions", {"Beta": beta})
    return build_model(tensors, [op], [0], [1])


@pytest.mark.parametrize("types", OUTPUTS, ids=str)
def test_softmax_of_codes(types: tuple[str, str]) -> None:
    smaller = 1 if types[0] == "INT8" else 256

    @settings(max_examples=20)
    @given(
        st.sampled_from([0.001, 0.02, 0.1, 0.4, 1.7]),
        st.sampled_from([1, 2, 10, 63]),
        st.sampled_from([1.0, 0.3]),
        st.integers(0, 1000),
    )
    def check(scale: float, depth: int, beta: float, seed: int) -> None:
        model = softmax(*types, scale / smaller, (1, 2, depth), beta)
        generator = np.random.default_rng(seed)
        spread = generator.uniform(1, 127 * smaller, (4, 1, 1))
        codes = generator.normal(0, spread, (4, 2, depth))
        limit = 128 * smaller
        inputs = np.clip(codes, -limit, limit - 1).astype(types[0].lower())
        check_everywhere(model, inputs=[inputs])

    check()


def test_tables_of_int16_are_those_of_the_oracle() -> None:
    """Two elements whose difference goes through every entry of both tables."""
    model = softmax("INT16", "INT16", 10 / 65535, (1, 2))
    low = np.arange(-32768, 32768, 37)
    codes = np.stack([np.full_like(low, 32767), low], axis=1).astype(np.int16)
    check_everywhere(model, inputs=[codes])


@pytest.mark.parametrize("beta", [1.0, 0.25])
@pytest.mark.parametrize("shape", [(1, 10), (1, 3, 5), (1, 1), (1, 200)])
def test_softmax_of_real_numbers(shape: tuple[int, ...], beta: float) -> None:
    check_everywhere(softmax("FLOAT32", "FLOAT32", 0, shape, beta), samples=6)


def test_in_place() -> None:
    compiled = check_everywhere(softmax("INT16", "INT16", 0.001, (1, 64)))
    assert compiled.report["arena_bytes"] == 128


def test_rows_that_are_too_long() -> None:
    with pytest.raises(UnsupportedOpError, match="last dimension"):
        compile_model(softmax("INT8", "INT8", 0.1, (1, 5000)), name="m")


def log_softmax(scale: float, shape: tuple[int, ...] = (1, 2, 10)) -> bytes:
    tensors = [
        BuiltTensor(shape, "INT8", (scale,), (3,)),
        BuiltTensor(shape, "INT8", (1 / 16,), (127,)),
    ]
    if not scale:
        tensors = [BuiltTensor(shape, "FLOAT32"), BuiltTensor(shape, "FLOAT32")]
    op = BuiltOp("LOG_SOFTMAX", [0], [1], "LogSoftmaxOptions")
    return build_model(tensors, [op], [0], [1])


@settings(max_examples=25)
@given(
    st.sampled_from([0.001, 0.02, 0.0625, 0.1, 0.4, 1.7]),
    st.sampled_from([1, 2, 3, 10, 63, 500]),
    st.integers(0, 1000),
)
def test_log_softmax_of_codes(scale: float, depth: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    codes = generator.normal(0, generator.uniform(1, 127, (4, 1, 1)), (4, 2, depth))
    inputs = np.clip(codes, -128, 127).astype(np.int8)
    check_everywhere(log_softmax(scale, (1, 2, depth)), inputs=[inputs])


@pytest.mark.parametrize("shape", [(1, 10), (1, 3, 5), (1, 200)])
def test_log_softmax_of_real_numbers(shape: tuple[int, ...]) -> None:
    check_everywhere(log_softmax(0, shape), samples=6)


def test_log_softmax_has_one_output_scale() -> None:
    x = BuiltTensor((1, 4), "INT8", (0.1,), (0,))
    op = BuiltOp("LOG_SOFTMAX", [0], [1], "LogSoftmaxOptions")
    with pytest.raises(UnsupportedOpError, match="output"):
        compile_model(build_model([x, x], [op], [0], [1]), name="m")
