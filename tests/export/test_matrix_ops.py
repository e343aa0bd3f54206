"""Convolutions and matrix products in all types: float32, int16, and with int4 filters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from everywhere import check_everywhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tflite_builder import BuiltOp, BuiltTensor, build_model, pack_int4

from edgekiln.bench.runners import tflm_available
from edgekiln.errors import UnsupportedOpError
from edgekiln.export.compiler import compile_model

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
CLAMPS = st.sampled_from([0, 1, 2, 3])
KINDS = st.sampled_from(["f32", "s16", "s16 with int32 bias"])


def activations(shape: tuple[int, ...], kind: str, scale: float) -> BuiltTensor:
    """A float32 or int16 tensor."""
    if kind == "f32":
        return BuiltTensor(shape, "FLOAT32")
    return BuiltTensor(shape, "INT16", (scale,), (0,))


def filters(
    generator: np.random.Generator, shape: tuple[int, ...], kind: str, axis: int, per_channel: bool
) -> BuiltTensor:
    """Weights of a layer whose outputs stay in the range of its output's scale."""
    if kind == "f32":
        return BuiltTensor(shape, "FLOAT32", data=generator.normal(0, 0.3, shape).astype("f4"))
    scales = generator.uniform(0.001, 0.03, shape[axis] if per_channel else 1)
    codes = generator.integers(-127, 128, shape).astype(np.int8)
    return BuiltTensor(
        shape, "INT8", scales.tolist(), (0,) * len(scales), axis if per_channel else 0, codes
    )


def biases(
    generator: np.random.Generator, channels: int, kind: str, x: BuiltTensor, w: BuiltTensor
) -> BuiltTensor:
    """A bias of the type that goes with the activations."""
    if kind == "f32":
        data = generator.normal(0, 1, channels).astype(np.float32)
        return BuiltTensor((channels,), "FLOAT32", data=data)
    wide = kind == "s16"
    data = generator.integers(-(10**6), 10**6, channels).astype(np.int64 if wide else np.int32)
    scales = [float(np.float32(x.scale[0]) * np.float32(s)) for s in w.scale]
    kind_name = "INT64" if wide else "INT32"
    return BuiltTensor((channels,), kind_name, scales, (0,) * len(scales), 0, data)


def out_size(size: int, window: int, stride: int, dilation: int, same: bool) -> int:
    """The output size of a sliding window."""
    extent = (window - 1) * dilation + 1
    return -(-size // stride) if same else (size - extent) // stride + 1


def draw_window(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """Options of a sliding window, input sizes and output sizes, filter sizes at the end."""
    same = draw(st.booleans())
    fh, fw = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dh, dw = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    sh, sw = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    h, w = draw(st.integers(5, 8)), draw(st.integers(5, 8))
    options = {
        "Padding": 0 if same else 1,
        "StrideH": sh,
        "StrideW": sw,
        "DilationHFactor": dh,
        "DilationWFactor": dw,
        "FusedActivationFunction": draw(CLAMPS),
    }
    outputs = (out_size(h, fh, sh, dh, same), out_size(w, fw, sw, dw, same))
    return options, (h, w, *outputs), (fh, fw)


@st.composite
def convolutions(draw: st.DrawFn) -> bytes:
    """CONV_2D of any window, groups, with and without bias."""
    generator = np.random.default_rng(draw(SEEDS))
    kind = draw(KINDS)
    options, (h, w, out_h, out_w), (fh, fw) = draw_window(draw)
    groups = draw(st.sampled_from([1, 1, 2]))
    depth, per_group = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    channels = groups * per_group
    x = activations((1, h, w, groups * depth), kind, 0.01)
    weights = filters(generator, (channels, fh, fw, depth), kind, 0, draw(st.booleans()))
    tensors = [x, weights, activations((1, out_h, out_w, channels), kind, 0.03)]
    inputs = [0, 1]
    if kind.endswith("bias") or draw(st.booleans()):
        tensors.append(biases(generator, channels, kind, x, weights))
        inputs.append(3)
    op = BuiltOp("CONV_2D", inputs, [2], "Conv2DOptions", options)
    return build_model(tensors, [op], [0], [2])


@EXAMPLES
@given(convolutions(), SEEDS)
def test_conv_2d(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def depthwise_convolutions(draw: st.DrawFn) -> bytes:
    """DEPTHWISE_CONV_2D of any window and depth multiplier."""
    generator = np.random.default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["f32", "s16"]))
    options, (h, w, out_h, out_w), (fh, fw) = draw_window(draw)
    depth, multiplier = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    channels = depth * multiplier
    x = activations((1, h, w, depth), kind, 0.01)
    # The oracle takes one scale per channel here.
    weights = filters(generator, (1, fh, fw, channels), kind, 3, True)
    y = activations((1, out_h, out_w, channels), kind, 0.02)
    tensors = [x, weights, y, biases(generator, channels, kind, x, weights)]
    options["DepthMultiplier"] = multiplier
    op = BuiltOp("DEPTHWISE_CONV_2D", [0, 1, 3], [2], "DepthwiseConv2DOptions", options)
    return build_model(tensors, [op], [0], [2])


@EXAMPLES
@given(depthwise_convolutions(), SEEDS)
def test_depthwise_conv_2d(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def dense_layers(draw: st.DrawFn) -> bytes:
    """FULLY_CONNECTED, with and without bias."""
    generator = np.random.default_rng(draw(SEEDS))
    kind = draw(KINDS)
    depth, channels = draw(st.integers(1, 60)), draw(st.integers(1, 9))
    x = activations((1, depth), kind, 0.01)
    weights = filters(generator, (channels, depth), kind, 0, draw(st.booleans()))
    tensors = [x, weights, activations((1, channels), kind, 0.1)]
    inputs = [0, 1, -1]
    if kind.endswith("bias") or draw(st.booleans()):
        tensors.append(biases(generator, channels, kind, x, weights))
        inputs[2] = 3
    values = {"FusedActivationFunction": draw(CLAMPS)}
    op = BuiltOp("FULLY_CONNECTED", inputs, [2], "FullyConnectedOptions", values)
    return build_model(tensors, [op], [0], [2])


@EXAMPLES
@given(dense_layers(), SEEDS)
def test_fully_connected(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> bytes:
    """TRANSPOSE_CONV of any window, with and without bias."""
    generator = np.random.default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["f32", "s8", "s16", "s16 with int16 bias"]))
    same = draw(st.booleans())
    (fh, fw), (sh, sw) = ([draw(st.integers(1, n)) for _ in range(2)] for n in (4, 3))
    h, w, depth, channels = (draw(st.integers(1, n)) for n in (5, 5, 4, 3))
    out = (h * sh, w * sw) if same else ((h - 1) * sh + fh, (w - 1) * sw + fw)
    x = activations((1, h, w, depth), kind, 0.01)
    y = activations((1, *out, channels), kind, 0.03)
    if kind == "s8":
        x = BuiltTensor(x.shape, "INT8", (0.05,), (draw(st.sampled_from([-128, 4])),))
        y = BuiltTensor(y.shape, "INT8", (0.1,), (draw(st.sampled_from([0, -9])),))
    weights = filters(generator, (channels, fh, fw, depth), kind, 0, draw(st.booleans()))
    shape = BuiltTensor((4,), "INT32", data=np.array(y.shape, np.int32))
    tensors, inputs = [shape, weights, x, y], [0, 1, 2]
    if draw(st.booleans()):
        bias_kind = {"f32": "f32", "s8": "s16 with int32 bias"}.get(kind, "s16")
        bias = biases(generator, channels, bias_kind, x, weights)
        if kind.endswith("int16 bias"):
            codes = generator.integers(-99, 99, channels, np.int16)
            bias = replace(bias, dtype="INT16", data=codes)
        tensors.append(bias)
        inputs.append(4)
    values = {
        "Padding": 0 if same else 1,
        "StrideH": sh,
        "StrideW": sw,
        "FusedActivationFunction": draw(CLAMPS),
    }
    op = BuiltOp("TRANSPOSE_CONV", inputs, [3], "TransposeConvOptions", values)
    return build_model(tensors, [op], [2], [3])


@EXAMPLES
@given(transposed_convolutions(), SEEDS)
def test_transpose_conv(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


@st.composite
def matrix_products(draw: st.DrawFn) -> bytes:
    """BATCH_MATMUL with broadcast batches, transposed and constant operands."""
    generator = np.random.default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["FLOAT32", "INT8", "INT16"]))
    rank = draw(st.integers(2, 5))
    batches = [1, *(draw(st.integers(1, 3)) for _ in range(rank - 3))] if rank > 2 else []
    right_batches = [draw(st.sampled_from([size, 1])) for size in batches]
    right_batches = right_batches[draw(st.integers(0, len(batches))) :]
    rows, depth, columns = (draw(st.integers(1, n)) for n in (4, 9, 5))
    adj_x, adj_y = draw(st.booleans()), draw(st.booleans())
    shapes = (
        (*batches, *((depth, rows) if adj_x else (rows, depth))),
        (*right_batches, *((columns, depth) if adj_y else (depth, columns))),
        (*batches, rows, columns),
    )
    zeros = [0, 0, 0] if kind != "INT8" else [draw(st.sampled_from([-128, 0, 5])) for _ in range(3)]
    scales = {"INT8": (0.05, 0.02, 0.1), "INT16": (0.001, 0.002, 0.02)}
    tensors = [
        BuiltTensor(shape, kind, (scales[kind][i],) if kind in scales else (), (zeros[i],))
        for i, shape in enumerate(shapes)
    ]
    inputs = [0, 1]
    if draw(st.booleans()):
        data = generator.normal(0, 100, shapes[1]).clip(-128, 127)
        tensors[1].data = data.astype(kind.lower())
        inputs = [0]
    op = BuiltOp("BATCH_MATMUL", [0, 1], [2], "BatchMatMulOptions", {"AdjX": adj_x, "AdjY": adj_y})
    return build_model(tensors, [op], inputs, [2])


@EXAMPLES
@given(matrix_products(), SEEDS)
def test_batch_matmul(model: bytes, seed: int) -> None:
    check_everywhere(model, seed)


def int16_dense(depth: int, code: int, bias: NDArray[Any]) -> bytes:
    """A layer of one channel with equal weights."""
    tensors = [
        BuiltTensor((1, depth), "INT16", (0.001,), (0,)),
        BuiltTensor((1, depth), "INT8", (0.01,), (0,), 0, np.full((1, depth), code, np.int8)),
        BuiltTensor((1, 1), "INT16", (0.1,), (0,)),
        BuiltTensor((1,), bias.dtype.name.upper(), (0.00001,), (0,), 0, bias),
    ]
    op = BuiltOp("FULLY_CONNECTED", [0, 1, 3], [2], "FullyConnectedOptions")
    return build_model(tensors, [op], [0], [2])


def test_int16_sums_that_need_64_bits() -> None:
    model = int16_dense(600, 127, np.array([1 << 33], np.int64))
    rows = np.stack([np.full(600, code, np.int16) for code in (-32768, 32767, -20000, 3)])
    check_everywhere(model, inputs=[rows])


def test_int16_sums_that_could_overflow_32_bits_are_refused() -> None:
    model = int16_dense(600, 127, np.array([5], np.int32))
    with pytest.raises(UnsupportedOpError, match=r"node 0 FULLY_CONNECTED.*overflow 32 bits"):
        compile_model(model, name="m")


def test_the_depthwise_oracle_reads_any_int16_bias_as_int64() -> None:
    generator = np.random.default_rng(1)
    x = activations((1, 3, 3, 2), "s16", 0.1)
    weights = filters(generator, (1, 2, 2, 2), "s16", 3, True)
    bias = biases(generator, 2, "s16 with int32 bias", x, weights)
    options = {"Padding": 0, "StrideH": 1, "StrideW": 1, "DepthMultiplier": 1}
    options |= {"DilationHFactor": 1, "DilationWFactor": 1}
    op = BuiltOp("DEPTHWISE_CONV_2D", [0, 1, 3], [2], "DepthwiseConv2DOptions", options)
    model = build_model([x, weights, x, bias], [op], [0], [2])
    with pytest.raises(UnsupportedOpError, match="type of the bias; got int32; allowed: int64"):
        compile_model(model, name="m")


def test_float_weights_have_to_be_finite() -> None:
    weights = BuiltTensor((1, 2), "FLOAT32", data=np.array([[1.0, np.inf]], np.float32))
    tensors = [BuiltTensor((1, 2), "FLOAT32"), weights, BuiltTensor((1, 1), "FLOAT32")]
    op = BuiltOp("FULLY_CONNECTED", [0, 1, -1], [2], "FullyConnectedOptions")
    with pytest.raises(UnsupportedOpError, match="not finite"):
        compile_model(build_model(tensors, [op], [0], [2]), name="m")


def test_float_outputs_lie_over_their_inputs() -> None:
    """A chain of layers whose buffers the planner overlaps."""
    generator = np.random.default_rng(2)
    shapes = [(1, 6, 5, 3), (1, 6, 5, 3), (1, 6, 5, 4), (1, 6, 5, 4), (1, 3, 3, 4)]
    tensors = [BuiltTensor(shape, "FLOAT32") for shape in shapes]
    conv = {"Padding": 0, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    plan = [
        ("CONV_2D", (3, 3, 3, 3), conv),
        ("CONV_2D", (4, 1, 1, 3), conv),
        ("DEPTHWISE_CONV_2D", (1, 3, 3, 4), conv | {"DepthMultiplier": 1}),
        ("CONV_2D", (4, 2, 2, 4), conv | {"StrideH": 2, "StrideW": 2}),
    ]
    ops = []
    for node, (name, shape, options) in enumerate(plan):
        weights = len(tensors)
        tensors.append(filters(generator, shape, "f32", 0, False))
        tensors.append(BuiltTensor((shape[3 if name[0] == "D" else 0],), "FLOAT32", data=None))
        tensors[-1].data = generator.normal(0, 1, tensors[-1].shape).astype(np.float32)
        kind = "DepthwiseConv2DOptions" if name[0] == "D" else "Conv2DOptions"
        ops.append(BuiltOp(name, [node, weights, weights + 1], [node + 1], kind, options))
    compiled = check_everywhere(build_model(tensors, ops, [0], [4]))
    apart = sum(np.prod(shapes[i]) * 4 for i in (2, 3))
    assert compiled.report["arena_bytes"] < apart


@st.composite
def int4_layers(draw: st.DrawFn) -> tuple[list[BuiltTensor], BuiltOp]:
    """Layers with codes from -8 to 7 in their filters: tensors and operator."""
    generator = np.random.default_rng(draw(SEEDS))
    name = draw(st.sampled_from(["FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"]))
    options, (h, w, out_h, out_w), (fh, fw) = draw_window(draw)
    depth, channels = draw(st.sampled_from([1, 3, 4, 7, 8, 12])), draw(st.integers(1, 5))
    if name == "FULLY_CONNECTED":
        shapes = ((1, depth), (channels, depth), (1, channels))
        kind, options = "FullyConnectedOptions", {"FusedActivationFunction": draw(CLAMPS)}
    elif name == "CONV_2D":
        shapes = ((1, h, w, depth), (channels, fh, fw, depth), (1, out_h, out_w, channels))
        kind = "Conv2DOptions"
    else:
        channels *= depth
        shapes = ((1, h, w, depth), (1, fh, fw, channels), (1, out_h, out_w, channels))
        kind, options = "DepthwiseConv2DOptions", options | {"DepthMultiplier": channels // depth}
    per_channel = name != "FULLY_CONNECTED" or draw(st.booleans())
    scales = generator.uniform(0.02, 0.1, channels if per_channel else 1).tolist()
    axis = 3 if name == "DEPTHWISE_CONV_2D" else 0
    codes = generator.integers(-8, 8, shapes[1]).astype(np.int8)
    bias = generator.integers(-500, 500, channels).astype(np.int32)
    zeros = (0,) * len(scales)
    tensors = [
        BuiltTensor(shapes[0], "INT8", (0.05,), (draw(st.sampled_from([-128, 0, 9])),)),
        BuiltTensor(shapes[1], "INT8", scales, zeros, axis, codes),
        BuiltTensor(shapes[2], "INT8", (0.2,), (draw(st.sampled_from([-128, 2])),)),
        BuiltTensor((channels,), "INT32", [0.05 * s for s in scales], zeros, 0, bias),
    ]
    return tensors, BuiltOp(name, [0, 1, 3], [2], kind, options)


@settings(EXAMPLES, max_examples=20)
@given(int4_layers(), SEEDS)
def test_int4_filters(layer: tuple[list[BuiltTensor], BuiltOp], seed: int) -> None:
    tensors, op = layer
    same_codes = build_model(tensors, [op], [0], [2])
    wide = tensors[1]
    assert wide.data is not None
    packed = [tensors[0], replace(wide, dtype="INT4", data=pack_int4(wide.data)), *tensors[2:]]
    model = build_model(packed, [op], [0], [2])
    # The oracle cannot prepare dense layers of int4 per channel; int8 has the same definition.
    refused = op.name == "FULLY_CONNECTED" and len(wide.scale) > 1
    oracle = same_codes if refused else None
    compiled = check_everywhere(model, seed, oracle_model=oracle, also=("generic",))
    assert compiled.report["nodes"][0]["kernel"].endswith("_s4")
    assert (
        compiled.report["constants_bytes"]
        <= check_everywhere(same_codes, seed).report["constants_bytes"]
    )


@settings(EXAMPLES, max_examples=40)
@given(int4_layers(), SEEDS)
def test_int4_filters_with_dsp(layer: tuple[list[BuiltTensor], BuiltOp], seed: int) -> None:
    tensors, op = layer
    wide = tensors[1]
    assert wide.data is not None
    # A small output scale leads to multipliers above one half, whose shift is none.
    small = replace(tensors[2], scale=(max(wide.scale) * 0.05 * 1.5,))
    for output in (tensors[2], small):
        same_codes = build_model([tensors[0], wide, output, tensors[3]], [op], [0], [2])
        packed = replace(wide, dtype="INT4", data=pack_int4(wide.data))
        model = build_model([tensors[0], packed, output, tensors[3]], [op], [0], [2])
        check_everywhere(model, seed, oracle_model=same_codes, also=["cortex-m4"])
