"""Gathering, resizing, blocks and batches, searches, running sums: against the oracle."""

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
INT8_OR_FLOAT = st.sampled_from(["INT8", "FLOAT32"])


def value(shape: tuple[int, ...], dtype: str, zero_point: int = -3) -> BuiltTensor:
    """An activation of any type."""
    if dtype in ("INT8", "INT16"):
        return BuiltTensor(shape, dtype, (0.1,), (zero_point if dtype == "INT8" else 0,))
    return BuiltTensor(shape, dtype)


def integers(values: object) -> BuiltTensor:
    """A constant of int32."""
    array = np.array(values, np.int32)
    return BuiltTensor(array.shape, "INT32", data=array)


def stacked(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Several values of a tensor as runners take them: a batch of one is left out."""
    return rows.reshape(len(rows), *shape[1:]) if shape[0] == 1 else rows


def gather_model(
    x: tuple[int, ...], indices: np.ndarray | tuple[int, ...], axis: int, batch: int, dtype: str
) -> bytes:
    """GATHER with constant indices (an array) or computed ones (a shape)."""
    computed = isinstance(indices, tuple)
    shape = indices if computed else indices.shape
    y = (*x[:axis], *shape[batch:], *x[axis + 1 :])
    tensors = [
        value(x, dtype),
        BuiltTensor(shape, "INT32") if computed else integers(indices),
        value(y, dtype),
    ]
    options = {"Axis": axis, "BatchDims": batch}
    op = BuiltOp("GATHER", [0, 1], [2], "GatherOptions", options)
    return build_model(tensors, [op], [0, 1] if computed else [0], [2])


@st.composite
def gathers(draw: st.DrawFn) -> tuple[bytes, int, tuple[int, ...]]:
    rank = draw(st.integers(1, 4))
    x = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    axis = draw(st.integers(0, rank - 1))
    batch = draw(st.integers(0, axis))
    shape = (*x[:batch], *draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))
    generator = np.random.default_rng(draw(SEEDS))
    indices = generator.integers(0, x[axis], shape)
    dtype = draw(INT8_OR_FLOAT)
    constant = draw(st.booleans())
    return gather_model(x, indices if constant else shape, axis, batch, dtype), x[axis], shape


@settings(EXAMPLES, max_examples=25)
@given(gathers(), SEEDS)
def test_gather(case: tuple[bytes, int, tuple[int, ...]], seed: int) -> None:
    model, size, shape = case
    graph = compile_model(model, name="m").graph
    generator = np.random.default_rng(seed)
    x = graph.tensor(0)
    values = generator.integers(-128, 128, (3, *x.shape)).astype(x.dtype.value)
    inputs = [stacked(values, x.shape)]
    if len(graph.inputs) == 2:
        indices = generator.integers(0, size, (3, *shape)).astype(np.int32)
        inputs.append(stacked(indices, shape))
    check_everywhere(model, inputs=inputs)


def test_computed_indices_out_of_range_are_the_nearest_inside() -> None:
    model = gather_model((1, 4, 2), (3,), 1, 0, "INT8")
    graph = compile_model(model, name="m").graph
    x = np.arange(8, dtype=np.int8).reshape(1, 4, 2)
    (got,) = graph.ops[0].define(graph, (x, np.array([-5, 2, 99], np.int32)))
    np.testing.assert_array_equal(got, x[:, [0, 2, 3]])


@st.composite
def gathers_nd(draw: st.DrawFn) -> tuple[bytes, tuple[int, ...], tuple[int, ...]]:
    rank = draw(st.integers(1, 4))
    x = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    depth = draw(st.integers(1, rank))
    outer = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    dtype = draw(INT8_OR_FLOAT)
    tensors = [
        value(x, dtype),
        BuiltTensor((*outer, depth), "INT32"),
        value((*outer, *x[depth:]), dtype),
    ]
    op = BuiltOp("GATHER_ND", [0, 1], [2], "GatherNdOptions")
    return build_model(tensors, [op], [0, 1], [2]), x[:depth], (*outer, depth)


@EXAMPLES
@given(gathers_nd(), SEEDS)
def test_gather_nd(case: tuple[bytes, tuple[int, ...], tuple[int, ...]], seed: int) -> None:
    model, sizes, shape = case
    x = compile_model(model, name="m").graph.tensor(0)
    generator = np.random.default_rng(seed)
    values = generator.integers(-128, 128, (2, *x.shape)).astype(x.dtype.value)
    indices = generator.integers(0, sizes, (2, *shape)).astype(np.int32)
    inputs = [
        a.reshape(2, *s[1:]) if s[0] == 1 else a for a, s in ((values, x.shape), (indices, shape))
    ]
    check_everywhere(model, inputs=inputs)


@st.composite
def resizes(draw: st.DrawFn, name: str) -> bytes:
    h, w, c = draw(st.integers(1, 7)), draw(st.integers(1, 7)), draw(st.integers(1, 3))
    size = (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    mode = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    nearest = name == "RESIZE_NEAREST_NEIGHBOR"
    dtype = draw(st.sampled_from(["INT8", "FLOAT32", "INT16"]) if nearest else INT8_OR_FLOAT)
    tensors = [value((1, h, w, c), dtype), integers(size), value((1, *size, c), dtype)]
    options = "ResizeNearestNeighborOptions" if nearest else "ResizeBilinearOptions"
    values = {"AlignCorners": mode[0], "HalfPixelCenters": mode[1]}
    return build_model(tensors, [BuiltOp(name, [0, 1], [2], options, values)], [0], [2])


@settings(EXAMPLES, max_examples=30)
@given(resizes("RESIZE_NEAREST_NEIGHBOR"), SEEDS)
def test_resize_nearest_neighbor(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@settings(EXAMPLES, max_examples=40)
@given(resizes("RESIZE_BILINEAR"), SEEDS)
def test_resize_bilinear(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


def test_a_size_at_which_rounding_leads_out_of_the_input_is_refused() -> None:
    tensors = [value((1, 2, 1, 1), "INT8"), integers((3000, 1)), value((1, 3000, 1, 1), "INT8")]
    op = BuiltOp("RESIZE_BILINEAR", [0, 1], [2], "ResizeBilinearOptions")
    with pytest.raises(EdgekilnError, match="out of the input"):
        compile_model(build_model(tensors, [op], [0], [2]), name="m")


@st.composite
def batch_spaces(draw: st.DrawFn, padded: bool) -> bytes:
    four = draw(st.booleans())
    spatial = 2 if four else 1
    block = [draw(st.integers(1, 3)) for _ in range(spatial)]
    deep = [draw(st.integers(1, 3)) for _ in range(spatial)]
    most = [(n * b - 1) // 2 for n, b in zip(deep, block, strict=True)]
    borders = [[draw(st.integers(0, m * padded)) for _ in range(2)] for m in most]
    wide = [n * b - sum(p) for n, b, p in zip(deep, block, borders, strict=True)]
    batches, channels = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    dtype = draw(INT8_OR_FLOAT)
    wide_tensor = value((batches, *wide, channels), dtype, zero_point=draw(st.sampled_from([0, 7])))
    deep_shape = (int(batches * np.prod(block)), *deep, channels)
    deep_tensor = BuiltTensor(deep_shape, dtype, wide_tensor.scale, wide_tensor.zero_point)
    if draw(st.booleans()):
        tensors = [wide_tensor, integers(block), integers(borders), deep_tensor]
        op = BuiltOp("SPACE_TO_BATCH_ND", [0, 1, 2], [3], "SpaceToBatchNDOptions")
    else:
        tensors = [deep_tensor, integers(block), integers(borders), wide_tensor]
        op = BuiltOp("BATCH_TO_SPACE_ND", [0, 1, 2], [3], "BatchToSpaceNDOptions")
    return build_model(tensors, [op], [0], [3])


@settings(EXAMPLES, max_examples=20)
@given(batch_spaces(padded=False), SEEDS)
def test_space_and_batch(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@settings(EXAMPLES, max_examples=20)
@given(batch_spaces(padded=True), SEEDS)
def test_space_and_batch_with_borders(model: bytes, seed: int) -> None:
    # TensorFlow Lite Micro does not set the value of the border.
    check_everywhere(model, seed, litert=True)


@st.composite
def searches(draw: st.DrawFn) -> bytes:
    rank = draw(st.integers(1, 4))
    x = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    axis = draw(st.integers(0, rank - 1))
    dtype = draw(INT8_OR_FLOAT)
    y = BuiltTensor((*x[:axis], *x[axis + 1 :]), "INT32")
    tensors = [value(x, dtype), integers(draw(st.sampled_from([axis, axis - rank]))), y]
    name = draw(st.sampled_from(["ARG_MAX", "ARG_MIN"]))
    options = "ArgMaxOptions" if name == "ARG_MAX" else "ArgMinOptions"
    op = BuiltOp(name, [0, 1], [2], options, {"OutputType": 2})
    return build_model(tensors, [op], [0], [2])


@settings(EXAMPLES, max_examples=20)
@given(searches(), SEEDS)
def test_arg_max_and_min(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@pytest.mark.parametrize("dtype", ["INT8", "FLOAT32"])
@pytest.mark.parametrize("name", ["ARG_MAX", "ARG_MIN"])
def test_arg_max_with_int64(name: str, dtype: str) -> None:
    tensors = [value((2, 3, 4), dtype), integers(1), BuiltTensor((2, 4), "INT64")]
    options = "ArgMaxOptions" if name == "ARG_MAX" else "ArgMinOptions"
    op = BuiltOp(name, [0, 1], [2], options, {"OutputType": 4})
    check_everywhere(build_model(tensors, [op], [0], [2]), litert=True)


def test_the_first_of_equals_is_found() -> None:
    tensors = [value((1, 6), "INT8"), integers(1), BuiltTensor((1,), "INT32")]
    op = BuiltOp("ARG_MAX", [0, 1], [2], "ArgMaxOptions", {"OutputType": 2})
    rows = np.array([[3, 5, 5, -1, 5, 0], [0, 0, 0, 0, 0, 0]], np.int8)
    check_everywhere(build_model(tensors, [op], [0], [2]), inputs=[rows])


@pytest.mark.parametrize("name", ["ARG_MAX", "ARG_MIN"])
def test_nan_is_found_only_where_it_is_the_first(name: str) -> None:
    tensors = [value((1, 4), "FLOAT32"), integers(1), BuiltTensor((1,), "INT32")]
    options = "ArgMaxOptions" if name == "ARG_MAX" else "ArgMinOptions"
    op = BuiltOp(name, [0, 1], [2], options, {"OutputType": 2})
    nan, inf = np.nan, np.inf
    rows = np.array([[nan, 1, 2, nan], [1, nan, 2, 0], [-inf, nan, nan, inf]], np.float32)
    check_everywhere(build_model(tensors, [op], [0], [2]), inputs=[rows])


@st.composite
def running_sums(draw: st.DrawFn) -> bytes:
    rank = draw(st.integers(1, 4))
    x = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    axis = draw(st.integers(-rank, rank - 1))
    dtype = draw(INT8_OR_FLOAT)
    y = value(x, dtype, zero_point=11)
    if dtype == "INT8":
        y.scale = (draw(st.floats(0.05, 2.0)),)
    tensors = [value(x, dtype), integers(axis), y]
    values = {"Exclusive": draw(st.booleans()), "Reverse": draw(st.booleans())}
    op = BuiltOp("CUMSUM", [0, 1], [2], "CumsumOptions", values)
    return build_model(tensors, [op], [0], [2])


@settings(EXAMPLES, max_examples=25)
@given(running_sums(), SEEDS)
def test_cumsum(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_running_sums_in_place(axis: int, reverse: bool) -> None:
    x = value((4, 6), "INT8")
    ops = [
        BuiltOp("RELU", [0], [1]),
        BuiltOp("CUMSUM", [1, 2], [3], "CumsumOptions", {"Reverse": reverse}),
        BuiltOp("RELU", [3], [4]),
    ]
    check_everywhere(build_model([x, x, integers(axis), x, x], ops, [0], [4]))


def test_constant_indices_out_of_range_are_refused() -> None:
    with pytest.raises(EdgekilnError, match="index out of range"):
        compile_model(gather_model((1, 4), np.array([0, 4]), 1, 0, "INT8"), name="m")
