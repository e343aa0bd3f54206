"""QUANTIZE and DEQUANTIZE against the oracle, for every pair of types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from everywhere import check_everywhere, oracle_is_missing
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.errors import BadModelError, UnsupportedOpError
from edgekiln.export.compiler import compile_model

pytestmark = oracle_is_missing

SCALES = st.sampled_from([1e-6, 0.0004, 0.01, 0.0235, 0.9, 3.0])
ZERO_POINTS = {
    "INT8": [-128, -7, 0, 127],
    "UINT8": [0, 3, 128, 255],
    "INT16": [0, -300],
    "INT32": [0],
}
PAIRS = [
    *(("INT8", y) for y in ("INT8", "UINT8", "INT16", "INT32")),
    ("UINT8", "INT8"),
    *(("INT16", y) for y in ("INT8", "INT16", "INT32")),
    *(("INT32", y) for y in ("INT8", "INT16")),
]


def tensor(dtype: str, scale: float = 1.0, zero_point: int = 0, size: int = 64) -> BuiltTensor:
    if dtype == "FLOAT32":
        return BuiltTensor((1, size), dtype)
    return BuiltTensor((1, size), dtype, (scale,), (zero_point,))


def one_op(name: str, x: BuiltTensor, y: BuiltTensor) -> bytes:
    options = {"QUANTIZE": "QuantizeOptions", "DEQUANTIZE": "DequantizeOptions"}[name]
    return build_model([x, y], [BuiltOp(name, [0], [1], options)], [0], [1])


@pytest.mark.parametrize(("x", "y"), PAIRS)
def test_all_pairs_of_integers(x: str, y: str) -> None:
    @settings(max_examples=8)
    @given(SCALES, st.sampled_from(ZERO_POINTS[x]), SCALES, st.sampled_from(ZERO_POINTS[y]))
    def check(x_scale: float, x_zero: int, y_scale: float, y_zero: int) -> None:
        model = one_op("QUANTIZE", tensor(x, x_scale, x_zero), tensor(y, y_scale, y_zero))
        check_everywhere(model, seed=abs(y_zero))

    check()


@pytest.mark.parametrize(("x_zero", "y_zero"), [(0, 128), (-128, 0), (-5, 123)])
def test_a_change_of_signedness_flips_the_highest_bit(x_zero: int, y_zero: int) -> None:
    codes = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)
    model = one_op("QUANTIZE", tensor("INT8", 0.5, x_zero, 256), tensor("UINT8", 0.5, y_zero, 256))
    check_everywhere(model, inputs=[codes])


@pytest.mark.parametrize("y", ["INT8", "INT16"])
@pytest.mark.parametrize("scale", [0.004, 0.25, 7.3])
def test_real_numbers_to_codes(y: str, scale: float) -> None:
    zero_point = ZERO_POINTS[y][1]
    model = one_op("QUANTIZE", tensor("FLOAT32"), tensor(y, scale, zero_point))
    halves = (np.arange(-32, 32, dtype=np.float32) + 0.5) * np.float32(scale)
    below = np.nextafter(halves, np.float32(0))
    spread = np.random.default_rng(1).normal(0, 60 * scale, (4, 64)).astype(np.float32)
    check_everywhere(model, inputs=[np.concatenate([[halves, below], spread])])


def test_real_numbers_to_uint8_as_litert_does() -> None:
    model = one_op("QUANTIZE", tensor("FLOAT32"), tensor("UINT8", 0.02, 128))
    values = np.random.default_rng(2).normal(0, 1.2, (4, 64)).astype(np.float32)
    check_everywhere(model, inputs=[values], litert=True)


def test_what_no_code_stands_for_becomes_the_nearest_end() -> None:
    """The oracle's conversion is undefined for these in C."""
    model = one_op("QUANTIZE", tensor("FLOAT32", size=6), tensor("INT8", 0.1, 3, 6))
    values = np.array([[np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-40]], np.float32)
    compiled = compile_model(model, name="m")
    (codes,) = compiled.graph.ops[0].define(compiled.graph, (values,))
    assert codes.tolist() == [[127, -128, -128, 127, -128, 3]]


@pytest.mark.parametrize("x", ["INT8", "UINT8", "INT16"])
@pytest.mark.parametrize("scale", [1e-4, 0.0235, 3.1])
def test_codes_to_real_numbers(x: str, scale: float) -> None:
    model = one_op("DEQUANTIZE", tensor(x, scale, ZERO_POINTS[x][1]), tensor("FLOAT32"))
    check_everywhere(model)


def test_real_numbers_at_the_edges_take_the_place_of_codes() -> None:
    """The codes lie at the end of the float32 output, which is written over them."""
    tensors = [tensor("FLOAT32"), tensor("INT8", 0.1, 3), tensor("FLOAT32")]
    ops = [
        BuiltOp("QUANTIZE", [0], [1], "QuantizeOptions"),
        BuiltOp("DEQUANTIZE", [1], [2], "DequantizeOptions"),
    ]
    compiled = check_everywhere(build_model(tensors, ops, [0], [2]))
    assert compiled.report["arena_bytes"] == 256


def test_types_that_the_oracle_refuses() -> None:
    model = one_op("QUANTIZE", tensor("UINT8", 0.1), tensor("INT16", 0.1))
    with pytest.raises(UnsupportedOpError, match="uint8 to int16"):
        compile_model(model, name="m")


def test_codes_without_a_scale() -> None:
    model = one_op("QUANTIZE", BuiltTensor((1, 4), "INT32"), tensor("INT8", 0.1, size=4))
    with pytest.raises(BadModelError, match="no scale"):
        compile_model(model, name="m")


@pytest.mark.parametrize("number", [0, 1])
def test_seanet(shared: Path, number: int) -> None:
    path = shared / "models" / "tflite_micro" / f"seanet_quantize{number}.tflite"
    check_everywhere(path.read_bytes())
