"""Functions of one number against the oracle, on all codes or over wide ranges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everywhere import check_everywhere, oracle_is_missing
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.errors import UnsupportedOpError
from edgekiln.export.compiler import compile_model
from edgekiln.export.ops import real_functions

pytestmark = oracle_is_missing

OPTIONS = {
    "LEAKY_RELU": "LeakyReluOptions",
    "ABS": "AbsOptions",
    "NEG": "NegOptions",
    "EXP": "ExpOptions",
    "HARD_SWISH": "HardSwishOptions",
    "SQUARE": "SquareOptions",
    "COS": "CosOptions",
}
ALL_S8 = np.arange(-128, 128).astype(np.int8).reshape(1, 256)
ALL_S16 = np.arange(-32768, 32768).astype(np.int16).reshape(1, 65536)


def one_op(name: str, x: BuiltTensor, y: BuiltTensor, values: Mapping[str, Any] = {}) -> bytes:
    op = BuiltOp(name, [0], [1], OPTIONS.get(name, ""), values)
    return build_model([x, y], [op], [0], [1])


def codes(dtype: str, scale: float, zero_point: int = 0) -> BuiltTensor:
    return BuiltTensor((1, 256 if dtype == "INT8" else 65536), dtype, (scale,), (zero_point,))


@pytest.mark.parametrize("zero_point", [-128, 3, 127])
@pytest.mark.parametrize("scale", [0.0005, 0.03, 0.25])
@pytest.mark.parametrize("name", ["ABS", "ELU", "HARD_SWISH", "LEAKY_RELU"])
def test_int8_functions(name: str, scale: float, zero_point: int) -> None:
    values = {"Alpha": 0.3} if name == "LEAKY_RELU" else {}
    for out_scale, out_zero in ((scale, zero_point), (0.9 * scale, -20)):
        x, y = codes("INT8", scale, zero_point), codes("INT8", out_scale, out_zero)
        check_everywhere(one_op(name, x, y, values), inputs=[ALL_S8])


@pytest.mark.parametrize("scale", [1e-5, 0.002, 0.03, 0.4])
@pytest.mark.parametrize("out", [(0.01, -128), (0.2, 0), (3.0, -100)])
@pytest.mark.parametrize("zero_point", [-128, 0])
def test_rsqrt_of_codes(scale: float, out: tuple[float, int], zero_point: int) -> None:
    x, y = codes("INT8", scale, zero_point), codes("INT8", *out)
    inputs = [np.maximum(ALL_S8, np.int8(zero_point))]
    check_everywhere(one_op("RSQRT", x, y), inputs=inputs)


@pytest.mark.parametrize("name", ["EXP", "LOG", "RELU_N1_TO_1"])
@pytest.mark.parametrize(("scale", "zero_point"), [(0.02, 3), (0.05, -128), (0.006, 127)])
def test_int8_functions_of_litert(name: str, scale: float, zero_point: int) -> None:
    x = codes("INT8", scale, -128 if name == "LOG" else zero_point)
    for out in ((0.05, -128), (0.01, 5)):
        check_everywhere(one_op(name, x, codes("INT8", *out)), inputs=[ALL_S8], litert=True)


@pytest.mark.parametrize("alpha", [0.3, 0.0, 1.7, -0.25])
@pytest.mark.parametrize("out_scale", [0.0009, 0.0004, 0.002])
def test_leaky_relu_int16(alpha: float, out_scale: float) -> None:
    x, y = codes("INT16", 0.0009), codes("INT16", out_scale)
    check_everywhere(one_op("LEAKY_RELU", x, y, {"Alpha": alpha}), inputs=[ALL_S16])


@pytest.mark.parametrize("name", ["RELU", "RELU6", "ABS"])
@pytest.mark.parametrize("out_scale", [0.0009, 0.0005, 0.02])
def test_int16_functions(name: str, out_scale: float) -> None:
    y = codes("INT16", 0.0009 if name == "RELU6" else out_scale)
    check_everywhere(one_op(name, codes("INT16", 0.0009), y), inputs=[ALL_S16])


@pytest.mark.parametrize("scale", [2.0**-12, 2.0**-11, 2.0**-13, 0.00031, 0.0001, 0.01, 1.3])
@pytest.mark.parametrize("name", ["LOGISTIC", "TANH"])
def test_saturating_functions_int16(name: str, scale: float) -> None:
    x, y = codes("INT16", scale), codes("INT16", 2.0**-15)
    check_everywhere(one_op(name, x, y), inputs=[ALL_S16])


REAL = {
    **dict.fromkeys(["RELU", "RELU6", "LOGISTIC", "TANH", "ELU", "HARD_SWISH"], (-20, 20)),
    **dict.fromkeys(["ABS", "NEG", "SQUARE", "LEAKY_RELU"], (-1000, 1000)),
    **dict.fromkeys(["FLOOR", "CEIL", "ROUND"], (-9, 9)),
    **dict.fromkeys(["SIN", "COS"], (-1000, 1000)),
    **dict.fromkeys(["SQRT", "RSQRT", "LOG"], (1e-6, 1e6)),
    "EXP": (-80, 80),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_functions(name: str) -> None:
    x = BuiltTensor((1, 4000), "FLOAT32")
    low, high = REAL[name]
    generator = np.random.default_rng(0)
    wide = generator.uniform(low, high, 2000)
    near = generator.uniform(1e-4, 2.5, 1900)
    halves = np.arange(-50, 50) / 2 if low < 0 else np.arange(1, 101) / 2
    values = np.concatenate([wide, near, halves]).astype(np.float32).reshape(1, 4000)
    options = {"Alpha": 0.3} if name == "LEAKY_RELU" else {}
    check_everywhere(one_op(name, x, x, options), inputs=[values])


def test_relu_n1_to_1_of_real_numbers() -> None:
    x = BuiltTensor((1, 64), "FLOAT32")
    check_everywhere(one_op("RELU_N1_TO_1", x, x), litert=True)


@pytest.mark.parametrize(
    "name", ["RELU", "TANH", "LOGISTIC", "EXP", "LOG", "ELU", "SQRT", "FLOOR", "COS"]
)
def test_numbers_at_the_ends(name: str) -> None:
    x = BuiltTensor((1, 8), "FLOAT32")
    ends = np.array([[0, np.inf, 1e-42, 3e38, 1e-30, 90, 8388609, 2.0**31]], np.float32)
    check_everywhere(one_op(name, x, x), inputs=[ends])


def test_error_of_the_real_functions() -> None:
    """They are within a few units in the last place of the true value."""
    generator = np.random.default_rng(0)
    cases = {
        real_functions.exp_f32: (np.exp, generator.uniform(-87, 88, 100_000)),
        real_functions.expm1_f32: (np.expm1, generator.uniform(-10, 3, 100_000)),
        real_functions.log_f32: (np.log, np.exp(generator.uniform(-80, 80, 100_000))),
        real_functions.tanh_f32: (np.tanh, generator.uniform(-10, 10, 100_000)),
        real_functions.sin_f32: (np.sin, 10.0 ** generator.uniform(-3, 38, 100_000)),
        real_functions.cos_f32: (np.cos, 10.0 ** generator.uniform(-3, 38, 100_000)),
    }
    for function, (true, values) in cases.items():
        x = values.astype(np.float32)
        want = true(x.astype(np.float64))
        units = np.abs(function(x) - want) / np.spacing(np.abs(want).astype(np.float32))
        assert units.max() <= 4


@pytest.mark.parametrize("dtype", ["INT8", "INT16", "FLOAT32"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 5), (5,), (1, 3, 4, 5), (4, 1), (1,)])
def test_prelu(dtype: str, shape: tuple[int, ...]) -> None:
    full = (1, 3, 4, 5)
    generator = np.random.default_rng(len(shape))
    if dtype == "FLOAT32":
        alpha = BuiltTensor(shape, dtype, data=generator.normal(0, 1, shape).astype(np.float32))
        tensors = [BuiltTensor(full, dtype), alpha, BuiltTensor(full, dtype)]
    else:
        data = generator.integers(-128, 128, shape).astype(np.int8)
        zero = -3 if dtype == "INT8" else 0
        tensors = [
            BuiltTensor(full, dtype, (0.02,), (zero,)),
            BuiltTensor(shape, "INT8", (0.004,), (7,), data=data),
            BuiltTensor(full, dtype, (0.013,), (zero,)),
        ]
    op = BuiltOp("PRELU", [0, 1], [2])
    check_everywhere(build_model(tensors, [op], [0], [2]))


def test_a_row_of_functions_needs_no_memory_of_its_own() -> None:
    """Each writes over what it reads."""
    tensors = [BuiltTensor((1, 64), "INT16", (0.001,), (0,)) for _ in range(3)]
    tensors.append(BuiltTensor((1, 64), "INT16", (2.0**-15,), (0,)))
    ops = [
        BuiltOp("RELU", [0], [1]),
        BuiltOp("LEAKY_RELU", [1], [2], "LeakyReluOptions", {"Alpha": 0.1}),
        BuiltOp("TANH", [2], [3]),
    ]
    compiled = check_everywhere(build_model(tensors, ops, [0], [3]))
    assert compiled.report["arena_bytes"] == 128


@pytest.mark.parametrize("number", [0, 12])
def test_seanet(shared: Path, number: int) -> None:
    path = shared / "models" / "tflite_micro" / f"seanet_leaky_relu{number}.tflite"
    check_everywhere(path.read_bytes())


def test_a_scale_that_the_table_cannot_stand_for() -> None:
    with pytest.raises(UnsupportedOpError, match="input's scale"):
        compile_model(one_op("TANH", codes("INT16", 3.0), codes("INT16", 2.0**-15)), name="m")
