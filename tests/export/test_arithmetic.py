"""ADD, SUB, MUL and the other functions of two numbers against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from everywhere import check_everywhere, oracle_is_missing
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, build_model

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
