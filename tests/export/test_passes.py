"""Passes, as text in and text out, and that they leave every value as it was."""

from __future__ import annotations

import numpy as np
from everywhere import check_everywhere
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model, constant

from edgekiln.export.interpret import run_graph
from edgekiln.export.ir import Graph, dump_graph
from edgekiln.export.passes import run_passes
from edgekiln.export.passes.fold_constants import fold_constants
from edgekiln.export.passes.remove_dead_ops import remove_dead_ops
from edgekiln.export.tflite_reader import read_tflite


def example() -> Graph:
    """A constant that is rescaled and joined to the input, and a node that nobody reads."""
    tensors = [
        activation((1, 4), 0.1, 0),
        constant(np.array([[10, 20]], np.int8), [0.05]),
        activation((1, 2), 0.1, 0),
        activation((1, 6), 0.1, 0),
        activation((1, 4), 0.1, 0),
    ]
    ops = [
        BuiltOp("QUANTIZE", [1], [2], "QuantizeOptions"),
        BuiltOp("RELU", [0], [4]),
        BuiltOp("CONCATENATION", [0, 2], [3], "ConcatenationOptions", {"Axis": 1}),
    ]
    return read_tflite(build_model(tensors, ops, [0], [3]), "m")


BEFORE = """\
inputs  t0:int8[1x4]*0.1@0
  0 QUANTIZE (t1:const int8[1x2]*0.05@0) -> t2:int8[1x2]*0.1@0
  1 RELU (t0:int8[1x4]*0.1@0) -> t4:int8[1x4]*0.1@0
  2 CONCATENATION axis=1 activation=NONE (t0:int8[1x4]*0.1@0, t2:int8[1x2]*0.1@0) -> \
t3:int8[1x6]*0.1@0
outputs t3:int8[1x6]*0.1@0
"""

AFTER = """\
inputs  t0:int8[1x4]*0.1@0
  2 CONCATENATION axis=1 activation=NONE (t0:int8[1x4]*0.1@0, t2:const int8[1x2]*0.1@0) -> \
t3:int8[1x6]*0.1@0
outputs t3:int8[1x6]*0.1@0
"""


def test_the_dump_is_stable() -> None:
    assert dump_graph(example()) == BEFORE


def test_constants_are_folded_and_dead_nodes_removed() -> None:
    assert dump_graph(remove_dead_ops(fold_constants(example()))) == AFTER


def test_passes_change_no_value() -> None:
    x = np.array([[1, -2, 3, -128]], np.int8)
    (before,) = run_graph(example(), [x])
    (after,) = run_graph(run_passes(example()), [x])
    np.testing.assert_array_equal(before, after)
    assert before.tolist() == [[1, -2, 3, -128, 5, 10]]


def shape_arithmetic() -> bytes:
    """What converters leave of a reshape to [batch, -1]."""
    tensors = [
        activation((1, 3, 4), 0.1, 0),
        BuiltTensor((3,), "INT32"),
        *(constant(np.array(v, np.int32)) for v in ([0], [1], [1])),
        BuiltTensor((), "INT32"),
        constant(np.array(12, np.int32)),
        BuiltTensor((2,), "INT32"),
        activation((1, 12), 0.1, 0),
        activation((1, 12), 0.1, 0),
    ]
    ops = [
        BuiltOp("SHAPE", [0], [1], "ShapeOptions"),
        BuiltOp("STRIDED_SLICE", [1, 2, 3, 4], [5], "StridedSliceOptions", {"ShrinkAxisMask": 1}),
        BuiltOp("PACK", [5, 6], [7], "PackOptions", {"ValuesCount": 2}),
        BuiltOp("RESHAPE", [0, 7], [8], "ReshapeOptions"),
        BuiltOp("RELU", [8], [9]),
    ]
    return build_model(tensors, ops, [0], [9])


def test_arithmetic_on_shapes_is_folded() -> None:
    graph = run_passes(read_tflite(shape_arithmetic(), "m"))
    assert [op.name for op in graph.ops] == ["RESHAPE", "RELU"]
    assert graph.tensor(7).value.tolist() == [1, 12]
    check_everywhere(shape_arithmetic())


def test_constants_of_operators_may_be_computed_from_constants() -> None:
    tensors = [
        activation((2, 3), 0.1, 0),
        *(constant(np.array(v, np.int32)) for v in (1, 0)),
        BuiltTensor((2,), "INT32"),
        activation((3, 2), 0.1, 0),
    ]
    ops = [
        BuiltOp("PACK", [1, 2], [3], "PackOptions", {"ValuesCount": 2}),
        BuiltOp("TRANSPOSE", [0, 3], [4], "TransposeOptions"),
    ]
    graph = run_passes(read_tflite(build_model(tensors, ops, [0], [4]), "m"))
    assert [op.name for op in graph.ops] == ["TRANSPOSE"]


def test_no_file_makes_constants_explode() -> None:
    tensors = [
        activation((1, 4), 0.1, 0),
        constant(np.array([2000, 2000], np.int32)),
        constant(np.array(0, np.int32)),
        BuiltTensor((2000, 2000), "INT32"),
        activation((1, 4), 0.1, 0),
    ]
    ops = [BuiltOp("FILL", [1, 2], [3], "FillOptions"), BuiltOp("RELU", [0], [4])]
    graph = read_tflite(build_model(tensors, ops, [0], [4]), "m")
    assert not fold_constants(graph).tensor(3).is_constant


def test_moves_that_change_nothing_are_reshapes() -> None:
    tensors = [
        activation((1, 3, 4), 0.1, 0),
        constant(np.array([1, 0, 2], np.int32)),
        activation((3, 1, 4), 0.1, 0),
        constant(np.zeros((3, 2), np.int32)),
        *[activation((3, 1, 4), 0.1, 0)] * 3,
    ]
    ops = [
        BuiltOp("TRANSPOSE", [0, 1], [2], "TransposeOptions"),
        BuiltOp("PAD", [2, 3], [4], "PadOptions"),
        BuiltOp("QUANTIZE", [4], [5], "QuantizeOptions"),
        BuiltOp("CONCATENATION", [5], [6], "ConcatenationOptions"),
    ]
    model = build_model(tensors, ops, [0], [6])
    graph = run_passes(read_tflite(model, "m"))
    assert [(op.name, op.inputs, op.outputs) for op in graph.ops] == [("RESHAPE", (0,), (6,))]
    assert check_everywhere(model).report["arena_bytes"] == 12


@st.composite
def padded_convolutions(draw: st.DrawFn) -> tuple[bytes, bool]:
    """PAD, less on each side than the filter spans, before a convolution; is it VALID?"""
    height, width, channels = draw(st.integers(1, 7)), draw(st.integers(1, 7)), 2
    pads = [[draw(st.integers(0, 2)) for _ in range(2)] for _ in range(2)]
    filter_h, filter_w = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    stride, same = draw(st.integers(1, 2)), draw(st.booleans())
    sizes = [n + sum(pair) for n, pair in zip((height, width), pads, strict=True)]
    outs = [
        -(-n // stride) if same else (n - f) // stride + 1
        for n, f in zip(sizes, (filter_h, filter_w), strict=True)
    ]
    if min(outs) < 1 or any(max(p) >= f for p, f in zip(pads, (filter_h, filter_w), strict=True)):
        pads, outs, sizes = [[0, 1], [0, 1]], [height, width], [height + 1, width + 1]
        filter_h = filter_w = 2
        stride, same = 1, False
    depthwise = draw(st.booleans())
    weights_shape = (1, filter_h, filter_w, 2) if depthwise else (3, filter_h, filter_w, 2)
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    weights = generator.integers(-127, 128, weights_shape).astype(np.int8)
    zero_point = draw(st.sampled_from([-128, 0, 9]))
    outputs = 2 if depthwise else 3
    tensors = [
        activation((1, height, width, channels), 0.1, zero_point),
        constant(np.array([[0, 0], *pads, [0, 0]], np.int32)),
        activation((1, *sizes, channels), 0.1, zero_point),
        constant(weights, [0.01] * outputs, 3 if depthwise else 0),
        constant(generator.integers(-900, 900, outputs).astype(np.int32)),
        activation((1, *outs, outputs), 0.2, 3),
    ]
    values = {"Padding": 0 if same else 1, "StrideH": stride, "StrideW": stride}
    values |= {"DilationHFactor": 1, "DilationWFactor": 1}
    if depthwise:
        values["DepthMultiplier"] = 1
    name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    options = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    ops = [
        BuiltOp("PAD", [0, 1], [2], "PadOptions"),
        BuiltOp(name, [2, 3, 4], [5], options, values),
    ]
    return build_model(tensors, ops, [0], [5]), not same


@settings(max_examples=30)
@given(padded_convolutions(), st.integers(0, 2**32 - 1))
def test_padding_is_folded_into_convolutions(model: tuple[bytes, bool], seed: int) -> None:
    data, valid = model
    ops = [op.name for op in check_everywhere(data, seed).graph.ops]
    assert "PAD" not in ops or not valid


def test_padding_with_another_code_than_zero_stays() -> None:
    tensors = [
        activation((1, 4, 4, 1), 0.1, 0),
        constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)),
        constant(np.array(5, np.int8), [0.1]),
        activation((1, 6, 6, 1), 0.1, 0),
        constant(np.ones((1, 3, 3, 1), np.int8), [0.01]),
        activation((1, 4, 4, 1), 0.2, 3),
    ]
    values = {"Padding": 1, "StrideH": 1, "StrideW": 1}
    values |= {"DilationHFactor": 1, "DilationWFactor": 1}
    ops = [
        BuiltOp("PADV2", [0, 1, 2], [3], "PadV2Options"),
        BuiltOp("CONV_2D", [3, 4], [5], "Conv2DOptions", values),
    ]
    compiled = check_everywhere(build_model(tensors, ops, [0], [5]))
    assert [op.name for op in compiled.graph.ops] == ["PADV2", "CONV_2D"]
