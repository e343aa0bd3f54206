"""Reductions and pools: numpy and C against the oracle, in all types."""

from __future__ import annotations

import numpy as np
import pytest
from everywhere import check_everywhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench.runners import tflm_available
from edgekiln.errors import EdgekilnError
from edgekiln.export.compiler import compile_model

pytestmark = pytest.mark.skipif(
    not tflm_available(), reason="the oracle, the tflite-micro wheel, is not installed"
)

EXAMPLES = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(0.002, 0.3)
ZERO_POINTS = st.sampled_from([-128, -7, 0, 5, 127])
TYPES = st.sampled_from(["INT8", "INT16", "FLOAT32"])


def quantized(shape: tuple[int, ...], dtype: str, scale: float, zero_point: int) -> BuiltTensor:
    """An activation with a scale where its type takes one."""
    if dtype not in ("INT8", "INT16"):
        return BuiltTensor(shape, dtype)
    return BuiltTensor(shape, dtype, (scale,), (zero_point if dtype == "INT8" else 0,))


def reduction(
    name: str, x: BuiltTensor, y: BuiltTensor, axes: list[int], keep_dims: bool = False
) -> bytes:
    """A model of one reduction."""
    array = np.array(axes, np.int32)
    tensors = [x, BuiltTensor(array.shape, "INT32", data=array), y]
    op = BuiltOp(name, [0, 1], [2], "ReducerOptions", {"KeepDims": keep_dims})
    return build_model(tensors, [op], [0], [2])


@st.composite
def reductions(draw: st.DrawFn, name: str, same_scale: bool) -> bytes:
    """Any axes of one to four dimensions, from either end, some of them twice."""
    rank = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 6)) for _ in range(rank))
    axes = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank))
    keep = draw(st.booleans())
    y_shape = np.zeros(shape).mean(axis=tuple(set(axes)), keepdims=keep).shape
    dtype = draw(TYPES if not same_scale else st.sampled_from(["INT8", "FLOAT32"]))
    signed = [axis - rank if draw(st.booleans()) else axis for axis in axes]
    x = quantized(shape, dtype, draw(SCALES), draw(ZERO_POINTS))
    y = quantized(y_shape, dtype, draw(SCALES), draw(ZERO_POINTS))
    if same_scale:
        y.scale, y.zero_point = x.scale, x.zero_point
    return reduction(name, x, y, signed, keep)


@settings(EXAMPLES, max_examples=30)
@given(reductions("MEAN", False), SEEDS)
def test_mean(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@settings(EXAMPLES, max_examples=20)
@given(reductions("SUM", False), SEEDS)
def test_sum(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@EXAMPLES
@given(st.sampled_from(["REDUCE_MAX", "REDUCE_MIN"]).flatmap(lambda n: reductions(n, True)), SEEDS)
def test_reduce_max_and_min(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@pytest.mark.parametrize("name", ["REDUCE_MAX", "REDUCE_MIN"])
def test_the_extreme_of_int16(name: str) -> None:
    x, y = quantized((2, 3, 4), "INT16", 0.1, 0), quantized((3,), "INT16", 0.1, 0)
    check_everywhere(reduction(name, x, y, [0, 2]), litert=True)


@pytest.mark.parametrize("name", ["REDUCE_MAX", "REDUCE_MIN"])
def test_the_extreme_passes_over_nan(name: str) -> None:
    x, y = BuiltTensor((1, 4), "FLOAT32"), BuiltTensor((1,), "FLOAT32")
    values = np.array([[[1.5, np.nan, -2.0, np.nan]], [[np.nan] * 4]], np.float32)
    check_everywhere(reduction(name, x, y, [1]), inputs=[values])


@st.composite
def pools(draw: st.DrawFn) -> bytes:
    batches, h, w = draw(st.integers(1, 2)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    same = draw(st.booleans())
    fh = draw(st.integers(1, h + 1 if same else h))
    fw = draw(st.integers(1, w + 1 if same else w))
    sh, sw, c = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    out_h = -(-h // sh) if same else (h - fh) // sh + 1
    out_w = -(-w // sw) if same else (w - fw) // sw + 1
    dtype, scale, zero_point = draw(TYPES), draw(SCALES), draw(ZERO_POINTS)
    tensors = [
        quantized((batches, h, w, c), dtype, scale, zero_point),
        quantized((batches, out_h, out_w, c), dtype, scale, zero_point),
    ]
    values = {
        "Padding": 0 if same else 1,
        "StrideH": sh,
        "StrideW": sw,
        "FilterHeight": fh,
        "FilterWidth": fw,
        "FusedActivationFunction": draw(st.sampled_from([0, 1, 2, 3])),
    }
    name = draw(st.sampled_from(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
    return build_model(tensors, [BuiltOp(name, [0], [1], "Pool2DOptions", values)], [0], [1])


@settings(EXAMPLES, max_examples=30)
@given(pools(), SEEDS)
def test_pools(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@pytest.mark.parametrize("name", ["MEAN", "REDUCE_MAX"])
@pytest.mark.parametrize("axes", [[0, 2], [1], [1, 3]])
def test_the_output_lies_over_the_input(name: str, axes: list[int]) -> None:
    shape = (3, 4, 5, 2)
    y_shape = tuple(n for axis, n in enumerate(shape) if axis not in axes)
    axis_values = np.array(axes, np.int32)
    tensors = [
        quantized(shape, "INT8", 0.1, 3),
        quantized(shape, "INT8", 0.1, 3),
        BuiltTensor(axis_values.shape, "INT32", data=axis_values),
        quantized(y_shape, "INT8", 0.1, 3),
        quantized(y_shape, "INT8", 0.1, 3),
    ]
    ops = [
        BuiltOp("RELU", [0], [1]),
        BuiltOp(name, [1, 2], [3], "ReducerOptions"),
        BuiltOp("RELU", [3], [4]),
    ]
    compiled = check_everywhere(build_model(tensors, ops, [0], [4]))
    assert compiled.report["arena_bytes"] == 120


def test_pools_of_different_scales_are_refused() -> None:
    x, y = quantized((1, 2, 2, 1), "INT8", 0.1, 0), quantized((1, 1, 1, 1), "INT8", 0.2, 0)
    values = {"Padding": 1, "StrideH": 1, "StrideW": 1, "FilterHeight": 2, "FilterWidth": 2}
    op = BuiltOp("MAX_POOL_2D", [0], [1], "Pool2DOptions", values)
    with pytest.raises(EdgekilnError, match="scale and zero point"):
        compile_model(build_model([x, y], [op], [0], [1]), name="m")


def test_a_sum_that_could_overflow_is_refused() -> None:
    x, y = quantized((1, 70000), "INT16", 0.1, 0), quantized((1,), "INT16", 0.1, 0)
    with pytest.raises(EdgekilnError, match="overflow"):
        compile_model(reduction("SUM", x, y, [1]), name="m")


def test_axes_in_three_groups_are_refused() -> None:
    x, y = quantized((2, 2, 2, 2, 2), "INT8", 0.1, 0), quantized((2, 2), "INT8", 0.1, 0)
    with pytest.raises(EdgekilnError, match="two groups"):
        compile_model(reduction("MEAN", x, y, [0, 2, 4]), name="m")
