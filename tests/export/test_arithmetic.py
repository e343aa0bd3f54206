"""ADD, SUB, MUL and the other functions of two numbers against the oracle."""

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
from edgekiln.export.ops.broadcasting import plan_loops

pytestmark = oracle_is_missing

SHAPES = [
    ((1, 3, 4, 5), (1, 3, 4, 5)),
    ((1, 3, 4, 5), (5,)),
    ((1, 3, 4, 5), (1, 1, 1, 5)),
    ((1, 1, 1, 5), (1, 3, 4, 5)),
    ((1, 3, 4, 5), (1, 3, 4, 1)),
    ((1, 3, 1, 5), (1, 1, 4, 1)),
    ((1, 4, 6), ()),
    ((1, 7), (1, 1)),
    ((1, 2, 1, 3, 1, 2), (1, 1, 3, 1, 2, 1)),
]
TYPES = ("INT8", "INT16", "INT32", "FLOAT32")
NAMES = ("ADD", "SUB", "MUL", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM")
CASES = [(name, dtype) for name in NAMES for dtype in TYPES] + [("DIV", "FLOAT32")]


@st.composite
def pairs(
    draw: st.DrawFn,
    name: str,
    dtype: str,
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
) -> bytes:
    """An operator of two inputs, one of them perhaps a constant."""
    a, b = draw(st.sampled_from(SHAPES)) if shapes is None else shapes
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    zero_points = {"INT8": [-128, -7, 0, 5, 127], "INT16": [0]}.get(dtype)

    def tensor(shape: tuple[int, ...]) -> BuiltTensor:
        if zero_points is None:
            return BuiltTensor(shape, dtype)
        scale = draw(st.floats(0.001, 0.3))
        return BuiltTensor(shape, dtype, (scale,), (draw(st.sampled_from(zero_points)),))

    tensors = [tensor(a), tensor(b), tensor(np.broadcast_shapes(a, b))]
    inputs = [0, 1]
    fixed = draw(st.sampled_from([None, None, 0, 1]))
    if fixed is not None:
        constant = tensors[fixed]
        if dtype == "FLOAT32":
            constant.data = generator.normal(0, 2, constant.shape).astype(np.float32)
        else:
            info = np.iinfo(dtype.lower())
            constant.data = generator.integers(
                info.min, info.max, constant.shape, dtype.lower(), endpoint=True
            )
        inputs.remove(fixed)
    values = {}
    if name in ("ADD", "SUB", "MUL", "DIV"):
        values["FusedActivationFunction"] = draw(st.sampled_from([0, 0, 1, 2, 3]))
    options = "".join(word.capitalize() for word in name.split("_")) + "Options"
    if name in ("MAXIMUM", "MINIMUM"):
        options = "MaximumMinimumOptions"
    op = BuiltOp(name, [0, 1], [2], options, values)
    return build_model(tensors, [op], inputs, [2])


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_type_and_shape(name: str, dtype: str) -> None:
    @settings(max_examples=15)
    @given(pairs(name, dtype), st.integers(0, 1000), st.sampled_from(["time", "flash"]))
    def check(model: bytes, seed: int, optimize: str) -> None:
        check_everywhere(model, seed, optimize=optimize)

    check()


@pytest.mark.parametrize("name", ["ADD", "SUB", "MUL", "SQUARED_DIFFERENCE"])
def test_the_last_bit_of_the_scales(name: str) -> None:
    """Many codes show whether ratios are rounded to float32 on the way: they are not."""
    generator = np.random.default_rng(7)
    option = "".join(word.capitalize() for word in name.split("_")) + "Options"
    shape = (1, 20_000)
    for _ in range(4):
        scales = generator.uniform(1e-4, 1e-2, 3) * (1, 1, 100 if "S" not in name else 1)
        tensors = [BuiltTensor(shape, "INT16", (scale,), (0,)) for scale in scales]
        model = build_model(tensors, [BuiltOp(name, [0, 1], [2], option)], [0, 1], [2])
        check_everywhere(model, samples=1)


def test_loops_are_fused() -> None:
    same = plan_loops((1, 3, 4, 5), ((1, 3, 4, 5), (1, 3, 4, 5)))
    assert same.sizes == (1, 1, 1, 60)
    assert same.steps == ((0, 0, 0, 1), (0, 0, 0, 1))
    channels = plan_loops((1, 3, 4, 5), ((1, 3, 4, 5), (5,)))
    assert channels.sizes == (1, 1, 12, 5)
    assert channels.steps == ((0, 0, 5, 1), (0, 0, 0, 1))
    turns = plan_loops((2, 3, 2, 3, 2), ((2, 1, 2, 1, 2), (1, 3, 1, 3, 1)))
    assert turns.sizes == (3, 2, 3, 2)
    assert turns.input_offsets == ((0, 0), (4, 0))
    assert turns.output_offsets == (0, 36)


def sum_of(shapes: list[tuple[int, ...]], dtype: str = "INT8", **values: int) -> bytes:
    quantized = dtype in ("INT8", "INT16")
    tensors = [BuiltTensor(s, dtype, (0.1,) * quantized, (0,) * quantized) for s in shapes]
    return build_model(tensors, [BuiltOp("ADD", [0, 1], [2], "AddOptions", values)], [0, 1], [2])


def test_in_place_over_the_input_that_is_not_repeated() -> None:
    compiled = check_everywhere(sum_of([(1, 4, 8), (8,), (1, 4, 8)], "INT16"))
    assert compiled.report["arena_bytes"] == 64 + 16


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(BadModelError, match="do not fit"):
        compile_model(sum_of([(1, 3), (1, 4), (1, 4)]), name="m")
    with pytest.raises(BadModelError, match="shape of"):
        compile_model(sum_of([(1, 3), (1, 3), (2, 3)]), name="m")


def test_what_the_oracle_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="uint8"):
        compile_model(sum_of([(1, 3)] * 3, "UINT8"), name="m")
    with pytest.raises(UnsupportedOpError, match="fused activation"):
        compile_model(sum_of([(1, 3)] * 3, FusedActivationFunction=4), name="m")
    many = (3, 2) * 4
    left, right = (3, 1) * 4, (1, 2) * 4
    with pytest.raises(UnsupportedOpError, match="in turns"):
        compile_model(sum_of([(5, 4, *left[2:]), (5, 1, *right[2:]), (5, 4, *many[2:])]), name="m")


@pytest.mark.parametrize("model", ["seanet_add0", "seanet_add1", "seanet_sub0", "simple_add_model"])
def test_real_models(shared: Path, model: str) -> None:
    path = shared / "models" / "tflite_micro" / f"{model}.tflite"
    check_everywhere(path.read_bytes(), samples=1)
