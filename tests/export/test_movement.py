"""Operators that only move elements: numpy and C against the oracle, in all types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from everywhere import check_everywhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench.runners import tflm_available
from edgekiln.errors import EdgekilnError
from edgekiln.export.compiler import CompiledModel, compile_model

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
COMMON = ["INT8", "INT16", "INT32", "FLOAT32"]
SIZES = st.integers(1, 4)


def value(shape: Sequence[int], dtype: str, zero_point: int = -3) -> BuiltTensor:
    """An activation of any type."""
    if dtype in ("INT8", "INT16"):
        return BuiltTensor(tuple(shape), dtype, (0.1,), (zero_point if dtype == "INT8" else 0,))
    return BuiltTensor(tuple(shape), dtype)


def integers(values: object, kind: str = "INT32") -> BuiltTensor:
    """A constant of integers."""
    array = np.array(values, {"INT32": np.int32, "INT64": np.int64}[kind])
    return BuiltTensor(array.shape, kind, data=array)


def one_op(
    name: str,
    tensors: Sequence[BuiltTensor],
    outputs: int = 1,
    options: str = "",
    values: Mapping[str, Any] | None = None,
) -> bytes:
    """A model of one operator that reads all tensors but the last ones, which it writes."""
    count = len(tensors) - outputs
    op = BuiltOp(name, range(count), range(count, len(tensors)), options, values or {})
    inputs = [i for i in range(count) if tensors[i].data is None]
    return build_model(tensors, [op], inputs, list(range(count, len(tensors))))


def shapes(draw: st.DrawFn, rank: int) -> tuple[int, ...]:
    """A shape with a batch of one."""
    return (1, *(draw(SIZES) for _ in range(rank - 1)))


@st.composite
def transposes(draw: st.DrawFn) -> bytes:
    rank = draw(st.integers(2, 5))
    shape = tuple(draw(SIZES) for _ in range(rank))
    order = draw(st.permutations(range(rank)))
    dtype = draw(st.sampled_from(["INT8", "INT16", "FLOAT32"]))
    y = value([shape[axis] for axis in order], dtype)
    return one_op("TRANSPOSE", [value(shape, dtype), integers(order), y], 1, "TransposeOptions")


@EXAMPLES
@given(transposes(), SEEDS)
def test_transpose(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def strided_slices(draw: st.DrawFn, litert: bool) -> bytes:
    """STRIDED_SLICE; new axes and ellipses only for LiteRT, as the first oracle ignores them."""
    rank = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 6)) for _ in range(rank))
    kinds = ["dimension"] * rank
    if litert and draw(st.booleans()):
        first = draw(st.integers(0, rank))
        kinds[first : draw(st.integers(first, rank))] = ["ellipsis"]
    if litert and draw(st.booleans()):
        kinds.insert(draw(st.integers(0, len(kinds))), "new")
    masks = dict.fromkeys(["Begin", "End", "ShrinkAxis", "NewAxis", "Ellipsis"], 0)
    index, entries, dimension = [], [], 0
    for bit, kind in enumerate(kinds):
        size = shape[dimension] if kind == "dimension" else 1
        b, e = draw(st.integers(-size - 1, size)), draw(st.integers(-size - 1, size + 1))
        s = draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        if kind == "ellipsis":
            masks["Ellipsis"] |= 1 << bit
            index.append(Ellipsis)
            dimension += rank - kinds.count("dimension")
        elif kind == "new":
            masks["NewAxis"] |= 1 << bit
            index.append(None)
        elif draw(st.integers(0, 4)) == 4 and -size <= b < size:
            masks["ShrinkAxis"] |= 1 << bit
            s = 1
            index.append(b)
            dimension += 1
        else:
            all_before, all_after = draw(st.booleans()), draw(st.booleans())
            masks["Begin"] |= all_before << bit
            masks["End"] |= all_after << bit
            index.append(slice(None if all_before else b, None if all_after else e, s))
            dimension += 1
        entries.append((b, e, s))
    y = np.zeros(shape)[tuple(index)].shape
    dtype = draw(st.sampled_from(COMMON))
    begin_end_stride = [integers([entry[i] for entry in entries]) for i in range(3)]
    tensors = [value(shape, dtype), *begin_end_stride, value(y, dtype)]
    options = {f"{name}Mask": mask for name, mask in masks.items()}
    return one_op("STRIDED_SLICE", tensors, 1, "StridedSliceOptions", options)


def is_empty(model: bytes) -> bool:
    """Tells whether the model is refused for a tensor without elements."""
    try:
        compile_model(model, name="m")
    except EdgekilnError as error:
        assert "no elements" in str(error)
        return True
    return False


@settings(EXAMPLES, max_examples=40)
@given(strided_slices(litert=False), SEEDS)
def test_strided_slice(model: bytes, seed: int) -> None:
    if not is_empty(model):
        check_everywhere(model, seed)


@settings(EXAMPLES, max_examples=40)
@given(strided_slices(litert=True), SEEDS)
def test_strided_slice_with_new_axes_and_ellipsis(model: bytes, seed: int) -> None:
    if not is_empty(model):
        check_everywhere(model, seed, litert=True)


@st.composite
def slices(draw: st.DrawFn) -> bytes:
    shape = shapes(draw, draw(st.integers(1, 5)))
    begin = [draw(st.integers(0, n - 1)) for n in shape]
    count = [draw(st.integers(1, n - b)) for n, b in zip(shape, begin, strict=True)]
    dtype, kind = draw(st.sampled_from(COMMON)), draw(st.sampled_from(["INT32", "INT64"]))
    tensors = [value(shape, dtype), integers(begin, kind), integers(count, kind)]
    return one_op("SLICE", [*tensors, value(count, dtype)], 1, "SliceOptions")


@EXAMPLES
@given(slices(), SEEDS)
def test_slice(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


def test_slice_to_the_end() -> None:
    tensors = [value((1, 5, 3), "INT8"), integers([0, 2, 1]), integers([-1, -1, 2])]
    model = one_op("SLICE", [*tensors, value((1, 3, 2), "INT8")], 1, "SliceOptions")
    check_everywhere(model, litert=True)


@st.composite
def splits(draw: st.DrawFn) -> bytes:
    rank, parts = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    dtype = draw(st.sampled_from(COMMON))
    shape = list(shapes(draw, rank))
    equal = draw(st.booleans())
    sizes = [draw(SIZES)] * parts if equal else [draw(SIZES) for _ in range(parts)]
    shape[axis] = sum(sizes)
    outputs = [value((*shape[:axis], s, *shape[axis + 1 :]), dtype) for s in sizes]
    x, at = value(shape, dtype), integers(draw(st.sampled_from([axis, axis - rank])))
    if equal:
        return one_op("SPLIT", [at, x, *outputs], parts, "SplitOptions", {"NumSplits": parts})
    tensors = [x, integers(sizes), at, *outputs]
    return one_op("SPLIT_V", tensors, parts, "SplitVOptions", {"NumSplits": parts})


@settings(EXAMPLES, max_examples=20)
@given(splits(), SEEDS)
def test_split(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def packs(draw: st.DrawFn) -> bytes:
    rank, parts = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank))
    shape = shapes(draw, rank)
    packed = (*shape[:axis], parts, *shape[axis:])
    at = draw(st.sampled_from([axis, axis - rank - 1]))
    if draw(st.booleans()):
        dtype = draw(st.sampled_from([*COMMON, "INT64"]))
        tensors = [*(value(shape, dtype) for _ in range(parts)), value(packed, dtype)]
        return one_op("PACK", tensors, 1, "PackOptions", {"Axis": at, "ValuesCount": parts})
    dtype = draw(st.sampled_from(COMMON))
    tensors = [value(packed, dtype), *(value(shape, dtype) for _ in range(parts))]
    return one_op("UNPACK", tensors, parts, "UnpackOptions", {"Axis": at, "Num": parts})


@settings(EXAMPLES, max_examples=20)
@given(packs(), SEEDS)
def test_pack_and_unpack(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def concatenations(draw: st.DrawFn) -> bytes:
    rank, parts = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    axis = draw(st.integers(0, rank - 1))
    shape = list(shapes(draw, rank))
    sizes = [draw(SIZES) for _ in range(parts)]
    dtype = draw(st.sampled_from([*COMMON, "INT64", "BOOL"]))
    inputs = [value((*shape[:axis], s, *shape[axis + 1 :]), dtype) for s in sizes]
    y = value((*shape[:axis], sum(sizes), *shape[axis + 1 :]), dtype)
    return one_op("CONCATENATION", [*inputs, y], 1, "ConcatenationOptions", {"Axis": axis - rank})


@settings(EXAMPLES, max_examples=20)
@given(concatenations(), SEEDS)
def test_concatenation(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def pads(draw: st.DrawFn) -> tuple[bytes, bool]:
    rank = draw(st.integers(1, 5))
    shape = shapes(draw, rank)
    padded = draw(st.lists(st.booleans(), min_size=rank, max_size=rank))
    if rank == 5:
        padded[draw(st.integers(1, 4))] = False
    pairs = [[draw(st.integers(0, 3)) * p, draw(st.integers(0, 3)) * p] for p in padded]
    dtype = draw(st.sampled_from(COMMON))
    y = tuple(n + b + a for n, (b, a) in zip(shape, pairs, strict=True))
    tensors = [value(shape, dtype), integers(pairs)]
    if draw(st.booleans()):
        return one_op("PAD", [*tensors, value(y, dtype)], 1, "PadOptions"), False
    filler = value((), dtype)
    number = draw(st.sampled_from([0, 1, -7, 100]))
    kind = {"INT8": "i1", "INT16": "i2", "INT32": "i4", "FLOAT32": "f4"}[dtype]
    filler.data = np.array(number, kind)
    return one_op("PADV2", [*tensors, filler, value(y, dtype)], 1, "PadV2Options"), False


@settings(EXAMPLES, max_examples=30)
@given(pads(), SEEDS)
def test_pad(model: tuple[bytes, bool], seed: int) -> None:
    check_everywhere(model[0], seed)


@st.composite
def mirror_pads(draw: st.DrawFn) -> bytes:
    rank = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    reflect = draw(st.booleans())
    pairs = [[draw(st.integers(0, n - reflect)), draw(st.integers(0, n - reflect))] for n in shape]
    y = tuple(n + b + a for n, (b, a) in zip(shape, pairs, strict=True))
    dtype = draw(st.sampled_from(["INT8", "FLOAT32"]))
    tensors = [value(shape, dtype), integers(pairs), value(y, dtype)]
    return one_op("MIRROR_PAD", tensors, 1, "MirrorPadOptions", {"Mode": 0 if reflect else 1})


@settings(EXAMPLES, max_examples=20)
@given(mirror_pads(), SEEDS)
def test_mirror_pad(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    block, (n, h, w, c) = draw(st.integers(1, 3)), shapes(draw, 4)
    wide, deep = (n, h * block, w * block, c), (n, h, w, c * block * block)
    dtype = draw(st.sampled_from(["INT8", "FLOAT32"]))
    values = {"BlockSize": block}
    if draw(st.booleans()):
        tensors = [value(deep, dtype), value(wide, dtype)]
        return one_op("DEPTH_TO_SPACE", tensors, 1, "DepthToSpaceOptions", values)
    tensors = [value(wide, dtype), value(deep, dtype)]
    return one_op("SPACE_TO_DEPTH", tensors, 1, "SpaceToDepthOptions", values)


@settings(EXAMPLES, max_examples=20)
@given(blocks(), SEEDS)
def test_depth_and_space(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def broadcasts(draw: st.DrawFn) -> bytes:
    y = shapes(draw, draw(st.integers(1, 5)))
    x = tuple(n if draw(st.booleans()) else 1 for n in y)[draw(st.integers(0, len(y) - 1)) :]
    dtype = draw(st.sampled_from(COMMON))
    tensors = [value(x, dtype), integers(y), value(y, dtype)]
    return one_op("BROADCAST_TO", tensors, 1, "BroadcastToOptions")


@EXAMPLES
@given(broadcasts(), SEEDS)
def test_broadcast_to(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def tiles(draw: st.DrawFn) -> bytes:
    x = shapes(draw, draw(st.integers(1, 3)))
    multiples = [draw(st.integers(1, 3)) for _ in x]
    dtype = draw(st.sampled_from(COMMON))
    y = value([m * n for m, n in zip(multiples, x, strict=True)], dtype)
    return one_op("TILE", [value(x, dtype), integers(multiples), y], 1, "TileOptions")


@EXAMPLES
@given(tiles(), SEEDS)
def test_tile(model: bytes, seed: int) -> None:
    check_everywhere(model, seed, litert=True)


@st.composite
def reversals(draw: st.DrawFn) -> bytes:
    x = shapes(draw, draw(st.integers(1, 4)))
    first = draw(st.integers(0, len(x) - 1))
    axes = range(first, draw(st.integers(first + 1, len(x))))
    dtype = draw(st.sampled_from([*COMMON, "INT64", "BOOL"]))
    tensors = [value(x, dtype), integers(list(axes)), value(x, dtype)]
    return one_op("REVERSE_V2", tensors, 1, "ReverseV2Options")


@EXAMPLES
@given(reversals(), SEEDS)
def test_reverse(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@pytest.mark.parametrize("dtype", ["INT8", "INT32", "FLOAT32"])
def test_fill(dtype: str) -> None:
    tensors = [integers([2, 3, 2]), value((), dtype), value((2, 3, 2), dtype)]
    check_everywhere(one_op("FILL", tensors, 1, "FillOptions"))


@pytest.mark.parametrize("dtype", ["INT8", "INT32", "FLOAT32", "INT64"])
def test_zeros_like(dtype: str) -> None:
    tensors = [value((1, 3, 2), dtype), value((1, 3, 2), dtype)]
    check_everywhere(one_op("ZEROS_LIKE", tensors, 1, "ZerosLikeOptions"))


@pytest.mark.parametrize("dtype", ["INT8", "INT16", "INT32", "FLOAT32", "BOOL"])
def test_reshape(dtype: str) -> None:
    tensors = [value((1, 3, 4), dtype), integers([6, 2]), value((6, 2), dtype)]
    compiled = check_everywhere(one_op("RESHAPE", tensors, 1, "ReshapeOptions"))
    assert [node["kernel"] for node in compiled.report["nodes"]] == [None]


def test_squeeze_and_expand_dims() -> None:
    tensors = [value((1, 3, 1, 4), "INT8"), value((3, 4), "INT8")]
    check_everywhere(one_op("SQUEEZE", tensors, 1, "SqueezeOptions"))
    tensors = [value((3, 4), "INT8"), integers(1), value((3, 1, 4), "INT8")]
    check_everywhere(one_op("EXPAND_DIMS", tensors, 1, "ExpandDimsOptions"))


def test_shape_of_an_activation_is_a_constant() -> None:
    model = one_op(
        "SHAPE", [value((1, 3, 4), "INT8"), BuiltTensor((3,), "INT32")], 1, "ShapeOptions"
    )
    check_everywhere(model)


def chain(*ops: BuiltOp, tensors: Sequence[BuiltTensor], outputs: Sequence[int]) -> CompiledModel:
    """Compiles and checks a model of several operators."""
    return check_everywhere(build_model(tensors, list(ops), [0], list(outputs)))


def test_slice_lies_over_its_input() -> None:
    relu = BuiltOp("RELU", [0], [1])
    slice_op = BuiltOp("SLICE", [1, 2, 3], [4], "SliceOptions")
    tensors = [
        *(value((1, 10, 8), "INT8"),) * 2,
        integers([0, 3, 0]),
        integers([1, 7, 8]),
        value((1, 7, 8), "INT8"),
        value((1, 7, 8), "INT8"),
    ]
    compiled = chain(relu, slice_op, BuiltOp("RELU", [4], [5]), tensors=tensors, outputs=[5])
    assert compiled.report["arena_bytes"] == 80


def test_concatenation_lies_over_its_inputs() -> None:
    ops = [
        BuiltOp("RELU", [0], [1]),
        BuiltOp("RELU", [0], [2]),
        BuiltOp("CONCATENATION", [1, 2], [3], "ConcatenationOptions", {"Axis": 1}),
        BuiltOp("RELU", [3], [4]),
    ]
    shape, joined = value((1, 4, 8), "INT8"), value((1, 8, 8), "INT8")
    compiled = chain(*ops, tensors=[shape, shape, shape, joined, joined], outputs=[4])
    assert compiled.report["arena_bytes"] == 64


def test_padding_lies_over_its_input() -> None:
    ops = [
        BuiltOp("RELU", [0], [1]),
        BuiltOp("PAD", [1, 2], [3], "PadOptions"),
        BuiltOp("RELU", [3], [4]),
    ]
    x, y = value((1, 6, 8, 2), "INT8"), value((1, 8, 10, 2), "INT8")
    tensors = [x, x, integers([[0, 0], [1, 1], [1, 1], [0, 0]]), y, y]
    compiled = chain(*ops, tensors=tensors, outputs=[4])
    assert compiled.report["arena_bytes"] < 160 + 96


@pytest.mark.parametrize("order", [[0, 2, 1], [2, 1, 0], [1, 0, 2]])
def test_transposed_memory_is_not_overwritten_before_it_is_read(order: list[int]) -> None:
    ops = [
        BuiltOp("RELU", [0], [1]),
        BuiltOp("TRANSPOSE", [1, 2], [3], "TransposeOptions"),
        BuiltOp("RELU", [3], [4]),
    ]
    x = value((4, 6, 8), "INT8")
    y = value([x.shape[axis] for axis in order], "INT8")
    chain(*ops, tensors=[x, x, integers(order), y, y], outputs=[4])


@pytest.mark.parametrize("optimize", ["balanced", "flash"])
def test_shared_functions_copy_alike(optimize: str) -> None:
    ops = [
        BuiltOp("TRANSPOSE", [0, 1], [2], "TransposeOptions"),
        BuiltOp("TRANSPOSE", [2, 1], [3], "TransposeOptions"),
        BuiltOp("REVERSE_V2", [3, 4], [5], "ReverseV2Options"),
    ]
    x = value((2, 3, 5), "INT8")
    tensors = [x, integers([1, 2, 0]), value((3, 5, 2), "INT8"), value((5, 2, 3), "INT8")]
    tensors += [integers([0]), value((5, 2, 3), "INT8")]
    check_everywhere(build_model(tensors, ops, [0], [5]), optimize=optimize)


BAD = {
    "axis out of range": one_op(
        "PACK",
        [value((2,), "INT8"), value((1, 2), "INT8")],
        1,
        "PackOptions",
        {"Axis": 5, "ValuesCount": 1},
    ),
    "order": one_op(
        "TRANSPOSE",
        [value((2, 3), "INT8"), integers([0, 0]), value((2, 2), "INT8")],
        1,
        "TransposeOptions",
    ),
    "range of dimension 1": one_op(
        "SLICE",
        [value((2, 3), "INT8"), integers([0, 2]), integers([2, 2]), value((2, 2), "INT8")],
        1,
        "SliceOptions",
    ),
    "stride": one_op(
        "STRIDED_SLICE",
        [value((2,), "INT8"), *map(integers, ([0], [2], [0])), value((2,), "INT8")],
        1,
        "StridedSliceOptions",
    ),
    "padding of dimension 0": one_op(
        "MIRROR_PAD",
        [value((2,), "INT8"), integers([[2, 0]]), value((4,), "INT8")],
        1,
        "MirrorPadOptions",
        {"Mode": 0},
    ),
    "multiples": one_op(
        "TILE",
        [value((2,), "INT8"), integers([2, 2]), value((4,), "INT8")],
        1,
        "TileOptions",
    ),
    "computed at run time": one_op(
        "TRANSPOSE",
        [value((2, 3), "INT8"), BuiltTensor((2,), "INT32"), value((3, 2), "INT8")],
        1,
        "TransposeOptions",
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_compiled_is_refused_with_a_reason(message: str) -> None:
    with pytest.raises(EdgekilnError, match=message):
        compile_model(BAD[message], name="m")
