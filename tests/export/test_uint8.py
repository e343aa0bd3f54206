"""Models of the old uint8 quantization, against LiteRT's reference kernels."""

from __future__ import annotations

import numpy as np
import pytest
from everywhere import check_everywhere
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.errors import UnsupportedOpError
from edgekiln.export.compiler import compile_model
from edgekiln.export.passes import run_passes
from edgekiln.export.tflite_reader import read_tflite

pytest.importorskip("ai_edge_litert", reason="the oracle of uint8 models is not installed")

EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SCALES = st.floats(0.005, 0.2)
ZERO_POINTS = st.sampled_from([0, 3, 128, 200, 255])
SEEDS = st.integers(0, 2**32 - 1)


def code(
    shape: tuple[int, ...], scale: float, zero_point: int, data: np.ndarray | None = None
) -> BuiltTensor:
    """A uint8 tensor."""
    return BuiltTensor(shape, "UINT8", (scale,), (zero_point,), data=data)


@st.composite
def convolutions(draw: st.DrawFn) -> bytes:
    depthwise, same = draw(st.booleans()), draw(st.booleans())
    generator = np.random.default_rng(draw(SEEDS))
    filter_zero = draw(st.sampled_from([100, 128, 140]))
    shape = (1, 3, 3, 4) if depthwise else (5, 3, 3, 4)
    channels = 4 if depthwise else 5
    low, high = max(0, filter_zero - 128), min(255, filter_zero + 127)
    weights = generator.integers(low, high, shape, endpoint=True).astype(np.uint8)
    bias = generator.integers(-3000, 3000, channels).astype(np.int32)
    size = 6 if same else 4
    tensors = [
        code((1, 6, 6, 4), draw(SCALES), draw(ZERO_POINTS)),
        code(shape, draw(st.floats(0.002, 0.02)), filter_zero, weights),
        BuiltTensor(bias.shape, "INT32", data=bias),
        code((1, size, size, channels), draw(SCALES), draw(ZERO_POINTS)),
    ]
    tensors[2].scale = (float(np.float32(tensors[0].scale[0]) * np.float32(tensors[1].scale[0])),)
    tensors[2].zero_point = (0,)
    values = {"Padding": 0 if same else 1, "StrideH": 1, "StrideW": 1}
    values |= {"DilationHFactor": 1, "DilationWFactor": 1}
    values["FusedActivationFunction"] = draw(st.sampled_from([0, 1, 3]))
    if depthwise:
        op = BuiltOp("DEPTHWISE_CONV_2D", [0, 1, 2], [3], "DepthwiseConv2DOptions", values)
        values["DepthMultiplier"] = 1
    else:
        op = BuiltOp("CONV_2D", [0, 1, 2], [3], "Conv2DOptions", values)
    return build_model(tensors, [op], [0], [3])


@settings(EXAMPLES, max_examples=25)
@given(convolutions(), SEEDS)
def test_convolutions(model: bytes, seed: int) -> None:
    check_everywhere(model, seed, litert=True)


@EXAMPLES
@given(
    st.sampled_from(["ADD", "SUB", "MUL"]),
    st.tuples(SCALES, SCALES, SCALES),
    st.tuples(ZERO_POINTS, ZERO_POINTS, ZERO_POINTS),
    st.booleans(),
    SEEDS,
)
def test_arithmetic(
    name: str,
    scales: tuple[float, ...],
    zero_points: tuple[int, ...],
    constant: bool,
    seed: int,
) -> None:
    shape = (1, 4, 4, 2)
    a, b, y = (code(shape, s, z) for s, z in zip(scales, zero_points, strict=True))
    if constant:
        b.data = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    op = BuiltOp(name, [0, 1], [2], f"{name.title()}Options")
    model = build_model([a, b, y], [op], [0] if constant else [0, 1], [2])
    check_everywhere(model, seed, litert=True)


@EXAMPLES
@given(
    st.sampled_from(["AVERAGE_POOL_2D", "MAX_POOL_2D"]),
    SCALES,
    ZERO_POINTS,
    st.sampled_from([0, 1, 3]),
    SEEDS,
)
def test_pools(name: str, scale: float, zero_point: int, activation: int, seed: int) -> None:
    x, y = code((1, 5, 6, 3), scale, zero_point), code((1, 3, 3, 3), scale, zero_point)
    values = {"Padding": 0, "StrideH": 2, "StrideW": 2, "FilterHeight": 2, "FilterWidth": 2}
    values["FusedActivationFunction"] = activation
    op = BuiltOp(name, [0], [1], "Pool2DOptions", values)
    check_everywhere(build_model([x, y], [op], [0], [1]), seed, litert=True)


@pytest.mark.parametrize("name", ["SOFTMAX", "LOGISTIC", "TANH", "RELU"])
def test_functions(name: str) -> None:
    scale, zero_point = (1 / 128, 128) if name == "TANH" else (1 / 256, 0)
    options = {"SOFTMAX": "SoftmaxOptions"}.get(name, "")
    values = {"Beta": 1.0} if name == "SOFTMAX" else {}
    tensors = [code((1, 256), 0.05, 100), code((1, 256), scale, zero_point)]
    model = build_model(tensors, [BuiltOp(name, [0], [1], options, values)], [0], [1])
    check_everywhere(model, litert=True)


def network() -> bytes:
    """Convolution, pool, reshape, softmax, and an output that is read inside, too."""
    generator = np.random.default_rng(3)
    weights = generator.integers(1, 256, (4, 1, 1, 2)).astype(np.uint8)
    tensors = [
        code((1, 4, 4, 2), 0.05, 120),
        code((4, 1, 1, 2), 0.01, 128, weights),
        code((1, 4, 4, 4), 0.1, 128),
        code((1, 1, 1, 4), 0.1, 128),
        code((1, 4), 0.1, 128),
        code((1, 4), 1 / 256, 0),
        BuiltTensor((4,), "INT32", (0.0005,), (0,), data=np.arange(4, dtype=np.int32)),
        BuiltTensor((2,), "INT32", data=np.array([1, 4], np.int32)),
    ]
    conv = {"Padding": 1, "StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    pool = {"Padding": 1, "StrideH": 4, "StrideW": 4, "FilterHeight": 4, "FilterWidth": 4}
    ops = [
        BuiltOp("CONV_2D", [0, 1, 6], [2], "Conv2DOptions", conv),
        BuiltOp("AVERAGE_POOL_2D", [2], [3], "Pool2DOptions", pool),
        BuiltOp("RESHAPE", [3, 7], [4], "ReshapeOptions"),
        BuiltOp("SOFTMAX", [4], [5], "SoftmaxOptions", {"Beta": 1.0}),
    ]
    return build_model(tensors, ops, [0], [4, 5])


def test_a_network_keeps_uint8_at_its_edges() -> None:
    compiled = check_everywhere(network(), litert=True)
    names = [op.name for op in compiled.graph.ops]
    assert names == [
        "QUANTIZE",
        "CONV_2D",
        "AVERAGE_POOL_2D",
        "RESHAPE",
        "SOFTMAX",
        *["QUANTIZE"] * 2,
    ]
    assert {e["dtype"] for key in ("inputs", "outputs") for e in compiled.report[key]} == {"uint8"}


def test_moving_uint8_codes_needs_no_rewriting() -> None:
    tensors = [code((1, 2, 3), 0.1, 3), code((1, 6), 0.1, 3)]
    model = build_model(tensors, [BuiltOp("RESHAPE", [0], [1], "ReshapeOptions")], [0], [1])
    assert [op.name for op in run_passes(read_tflite(model, "m")).ops] == ["RESHAPE"]


def test_a_filter_that_does_not_fit_int8_is_refused() -> None:
    tensors = [
        code((1, 4, 4, 1), 0.05, 0),
        code((1, 1, 1, 1), 0.01, 90, np.full((1, 1, 1, 1), 255, np.uint8)),
        code((1, 4, 4, 1), 0.1, 0),
    ]
    values = {"Padding": 1, "StrideH": 1, "StrideW": 1}
    values |= {"DilationHFactor": 1, "DilationWFactor": 1}
    op = BuiltOp("CONV_2D", [0, 1], [2], "Conv2DOptions", values)
    with pytest.raises(UnsupportedOpError, match="do not fit int8"):
        compile_model(build_model(tensors, [op], [0], [2]), name="m")


def test_an_operator_with_other_results_on_int8_is_refused() -> None:
    weights = np.full((2, 4), 130, np.uint8)
    tensors = [code((1, 4), 0.05, 0), code((2, 4), 0.01, 128, weights), code((1, 2), 0.1, 0)]
    op = BuiltOp("FULLY_CONNECTED", [0, 1], [2], "FullyConnectedOptions")
    with pytest.raises(UnsupportedOpError, match=r"node 0 FULLY_CONNECTED: .*uint8"):
        compile_model(build_model(tensors, [op], [0], [2]), name="m")
