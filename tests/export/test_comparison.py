"""Comparisons, functions of truth values, SELECT_V2 and CAST against the oracle."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from everywhere import check_everywhere, oracle_is_missing, random_values
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench.runners import CompiledRunner
from edgekiln.errors import UnsupportedOpError
from edgekiln.export.compiler import compile_model, write_bundle

pytestmark = oracle_is_missing

RELATIONS = {
    "EQUAL": "EqualOptions",
    "NOT_EQUAL": "NotEqualOptions",
    "GREATER": "GreaterOptions",
    "GREATER_EQUAL": "GreaterEqualOptions",
    "LESS": "LessOptions",
    "LESS_EQUAL": "LessEqualOptions",
}
SHAPES = [((1, 6, 8), (1, 6, 8)), ((1, 6, 8), (8,)), ((1, 1, 8), (1, 6, 1)), ((1, 6, 8), ())]


def tensor(shape: tuple[int, ...], dtype: str, scale: float = 0.1, zero: int = 0) -> BuiltTensor:
    if dtype in ("INT8", "INT16"):
        return BuiltTensor(shape, dtype, (scale,), (zero,))
    return BuiltTensor(shape, dtype)


def narrow(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Values of which many are equal."""
    values = np.random.default_rng(seed).integers(0, 2 if dtype == "BOOL" else 5, shape)
    return values.astype({"BOOL": "bool"}.get(dtype, dtype.lower()))


CASES = [(name, dtype) for name in RELATIONS for dtype in ("INT32", "INT64", "FLOAT32")]
CASES += [("EQUAL", "BOOL"), ("NOT_EQUAL", "BOOL")]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_relations(name: str, dtype: str) -> None:
    for a, b in SHAPES:
        y = BuiltTensor(np.broadcast_shapes(a, b), "BOOL")
        op = BuiltOp(name, [0, 1], [2], RELATIONS[name])
        model = build_model([tensor(a, dtype), tensor(b, dtype), y], [op], [0, 1], [2])
        rows = [
            narrow(dtype, (3, *(s[1:] if s[:1] == (1,) else s)), i) for i, s in enumerate((a, b))
        ]
        check_everywhere(model, inputs=rows)


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_of_codes(name: str) -> None:
    @settings(max_examples=6)
    @given(
        st.sampled_from([0.01, 0.1, 0.9]),
        st.sampled_from([0.01, 0.03, 0.1]),
        st.sampled_from([-128, 0, 7]),
        st.sampled_from(SHAPES),
    )
    def check(
        first: float, second: float, zero: int, shapes: tuple[tuple[int, ...], tuple[int, ...]]
    ) -> None:
        a, b = tensor(shapes[0], "INT8", first, zero), tensor(shapes[1], "INT8", second, 3)
        y = BuiltTensor(np.broadcast_shapes(*shapes), "BOOL")
        op = BuiltOp(name, [0, 1], [2], RELATIONS[name])
        check_everywhere(build_model([a, b, y], [op], [0, 1], [2]))

    check()


@pytest.mark.parametrize("name", ["LOGICAL_AND", "LOGICAL_OR"])
def test_functions_of_truth_values(name: str) -> None:
    for a, b in SHAPES:
        y = BuiltTensor(np.broadcast_shapes(a, b), "BOOL")
        option = {"LOGICAL_AND": "LogicalAndOptions", "LOGICAL_OR": "LogicalOrOptions"}[name]
        op = BuiltOp(name, [0, 1], [2], option)
        check_everywhere(build_model([tensor(a, "BOOL"), tensor(b, "BOOL"), y], [op], [0, 1], [2]))


def test_not() -> None:
    x = BuiltTensor((1, 9), "BOOL")
    op = BuiltOp("LOGICAL_NOT", [0], [1], "LogicalNotOptions")
    check_everywhere(build_model([x, x], [op], [0], [1]))


@pytest.mark.parametrize("dtype", ["INT8", "INT16", "FLOAT32"])
@pytest.mark.parametrize(
    "shapes",
    [
        ((1, 6, 8), (1, 6, 8), (1, 6, 8)),
        ((1, 6, 1), (8,), (1, 6, 8)),
        ((1, 6, 8), (), (1, 1, 8)),
        ((), (1, 6, 8), (1, 6, 8)),
    ],
)
def test_select(dtype: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    y = np.broadcast_shapes(*shapes)
    tensors = [
        BuiltTensor(shapes[0], "BOOL"),
        tensor(shapes[1], dtype),
        tensor(shapes[2], dtype),
        tensor(y, dtype),
    ]
    op = BuiltOp("SELECT_V2", [0, 1, 2], [3], "SelectV2Options")
    check_everywhere(build_model(tensors, [op], [0, 1, 2], [3]))


@pytest.mark.parametrize("y", ["INT8", "INT16", "INT32", "FLOAT32"])
@pytest.mark.parametrize("x", ["INT8", "INT16", "INT32", "FLOAT32", "BOOL"])
def test_cast(x: str, y: str) -> None:
    op = BuiltOp("CAST", [0], [1], "CastOptions")
    model = build_model([tensor((1, 64), x), tensor((1, 64), y)], [op], [0], [1])
    dtype = np.dtype({"BOOL": "bool"}.get(x, x.lower()))
    values = random_values(np.random.default_rng(1), (4, 64), dtype)
    check_everywhere(model, inputs=[np.clip(values, -120, 120) if x == "FLOAT32" else values])


def test_cast_of_what_the_type_cannot_hold() -> None:
    """The oracle's conversion is undefined for these in C; numpy and C must agree."""
    values = np.array([[np.nan, np.inf, -np.inf, 3e9, -3e9, 2147483520.0]], np.float32)
    for y, want in (
        ("INT32", [-(2**31), 2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 2147483520]),
        ("INT8", [-128, 127, -128, 127, -128, 127]),
    ):
        op = BuiltOp("CAST", [0], [1], "CastOptions")
        model = build_model([tensor((1, 6), "FLOAT32"), tensor((1, 6), y)], [op], [0], [1])
        compiled = compile_model(model, name="m")
        (codes,) = compiled.graph.ops[0].define(compiled.graph, (values,))
        assert codes.tolist() == [want]
        assert run_c(model, values).tolist() == [want]


def run_c(model: bytes, values: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "c"
        write_bundle(compile_model(model, name="m", target="host"), bundle)
        return CompiledRunner(bundle).run((values,))[0]


def test_what_has_no_order() -> None:
    op = BuiltOp("LESS", [0, 1], [2], "LessOptions")
    x = BuiltTensor((1, 4), "BOOL")
    with pytest.raises(UnsupportedOpError, match="bool"):
        compile_model(build_model([x, x, x], [op], [0, 1], [2]), name="m")
