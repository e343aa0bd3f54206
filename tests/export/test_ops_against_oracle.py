"""Every operator over generated shapes and parameters: numpy and C against the oracle.

Each example is a model with one operator. The oracle, the numpy definition and the generated
C (compiled with the strict flags) must agree on every byte.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model, constant

from edgekiln.bench.runners import STRICT_FLAGS, CompiledRunner, TflmRunner, tflm_available
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.export.interpret import run_graph

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
SCALES = st.floats(0.002, 0.3)
ZERO_POINTS = st.sampled_from([-128, -7, 0, 5, 127])
CLAMPS = st.sampled_from([0, 1, 2, 3])
SEEDS = st.integers(0, 2**32 - 1)


def assert_equal_everywhere(model: bytes, seed: int, samples: int = 3) -> None:
    """Runs the model on the oracle, by numpy and as C of all targets, and compares all bytes."""
    compiled = compile_model(model, name="m", optimize="time", target="host")
    generator = np.random.default_rng(seed)
    inputs = tuple(
        generator.integers(-128, 128, (samples, *compiled.graph.tensor(t).shape[1:])).astype(
            np.int8
        )
        for t in compiled.graph.inputs
    )
    want = TflmRunner(model).run(inputs)
    for sample in range(samples):
        shaped = [
            a[sample].reshape(compiled.graph.tensor(t).shape)
            for a, t in zip(inputs, compiled.graph.inputs, strict=True)
        ]
        for got, wanted in zip(run_graph(compiled.graph, shaped), want, strict=True):
            np.testing.assert_array_equal(got.reshape(-1), wanted[sample].reshape(-1))
    # The kernels of cortex-m0plus and cortex-m4 have a plain form, which runs here.
    for target in ("host", "cortex-m0plus", "cortex-m4"):
        for got, wanted in zip(run_c(model, target, inputs), want, strict=True):
            np.testing.assert_array_equal(got, wanted)


def run_c(model: bytes, target: str, inputs: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
    """Compiles a model for a target and runs the C on this machine."""
    compiled = compile_model(model, name="m", optimize="time", target=target)
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "c"
        write_bundle(compiled, bundle)
        return CompiledRunner(bundle, flags=STRICT_FLAGS).run(inputs)


def out_size(size: int, window: int, stride: int, dilation: int, same: bool) -> int:
    """The output size of a sliding window."""
    extent = (window - 1) * dilation + 1
    return -(-size // stride) if same else (size - extent) // stride + 1


def filter_scales(draw: st.DrawFn, channels: int) -> list[float]:
    """One scale, or one per channel."""
    count = draw(st.sampled_from([1, channels]))
    return [draw(st.floats(0.001, 0.05)) for _ in range(count)]


@st.composite
def convolutions(draw: st.DrawFn) -> bytes:
    """CONV_2D with any stride, dilation, padding, groups, bias and activation."""
    generator = np.random.default_rng(draw(SEEDS))
    same = draw(st.booleans())
    fh, fw = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dh, dw = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    sh, sw = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    h, w = draw(st.integers(7, 10)), draw(st.integers(7, 9))
    groups = draw(st.sampled_from([1, 1, 2]))
    group_channels, per_group = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    channels = groups * per_group
    scales = filter_scales(draw, channels)
    y = (1, out_size(h, fh, sh, dh, same), out_size(w, fw, sw, dw, same), channels)
    tensors = [
        activation((1, h, w, groups * group_channels), draw(SCALES), draw(ZERO_POINTS)),
        constant(
            generator.integers(-127, 128, (channels, fh, fw, group_channels)).astype(np.int8),
            scales,
        ),
        activation(y, draw(SCALES), draw(ZERO_POINTS)),
    ]
    inputs = [0, 1]
    if draw(st.booleans()):
        tensors.append(
            constant(
                generator.integers(-3000, 3000, channels).astype(np.int32),
                [tensors[0].scale[0] * s for s in scales],
            )
        )
        inputs.append(3)
    values = {
        "Padding": 0 if same else 1,
        "StrideH": sh,
        "StrideW": sw,
        "DilationHFactor": dh,
        "DilationWFactor": dw,
        "FusedActivationFunction": draw(CLAMPS),
    }
    op = BuiltOp("CONV_2D", inputs, [2], "Conv2DOptions", values)
    return build_model(tensors, [op], [0], [2])


@EXAMPLES
@given(convolutions(), SEEDS)
def test_conv_2d(model: bytes, seed: int) -> None:
    assert_equal_everywhere(model, seed)


@st.composite
def depthwise_convolutions(draw: st.DrawFn) -> bytes:
    """DEPTHWISE_CONV_2D with any stride, dilation, padding and depth multiplier."""
    generator = np.random.default_rng(draw(SEEDS))
    same = draw(st.booleans())
    fh, fw = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    dh, dw = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    sh, sw = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    h, w, c = draw(st.integers(7, 10)), draw(st.integers(7, 9)), draw(st.integers(1, 5))
    channels = c * draw(st.integers(1, 3))
    scales = filter_scales(draw, channels)
    multiplier = channels // c
    y = (1, out_size(h, fh, sh, dh, same), out_size(w, fw, sw, dw, same), channels)
    tensors = [
        activation((1, h, w, c), draw(SCALES), draw(ZERO_POINTS)),
        constant(generator.integers(-127, 128, (1, fh, fw, channels)).astype(np.int8), scales, 3),
        activation(y, draw(SCALES), draw(ZERO_POINTS)),
        constant(generator.integers(-3000, 3000, channels).astype(np.int32), [0.01] * len(scales)),
    ]
    values = {
        "Padding": 0 if same else 1,
        "StrideH": sh,
        "StrideW": sw,
        "DilationHFactor": dh,
        "DilationWFactor": dw,
        "DepthMultiplier": multiplier,
        "FusedActivationFunction": draw(CLAMPS),
    }
    op = BuiltOp("DEPTHWISE_CONV_2D", [0, 1, 3], [2], "DepthwiseConv2DOptions", values)
    return build_model(tensors, [op], [0], [2])


@EXAMPLES
@given(depthwise_convolutions(), SEEDS)
def test_depthwise_conv_2d(model: bytes, seed: int) -> None:
    assert_equal_everywhere(model, seed)


@st.composite
def dense_layers(draw: st.DrawFn) -> bytes:
    """FULLY_CONNECTED with and without bias, per tensor and per channel."""
    generator = np.random.default_rng(draw(SEEDS))
    depth, channels = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    rows = draw(st.integers(1, 3))
    scales = filter_scales(draw, channels)
    x_scale = draw(SCALES)
    tensors = [
        activation((rows, depth), x_scale, draw(ZERO_POINTS)),
        constant(generator.integers(-127, 128, (channels, depth)).astype(np.int8), scales),
        activation((rows, channels), draw(SCALES), draw(ZERO_POINTS)),
    ]
    inputs = [0, 1, -1]
    if draw(st.booleans()):
        bias = generator.integers(-3000, 3000, channels).astype(np.int32)
        product = np.float32(x_scale) * np.array(scales, np.float32)
        tensors.append(constant(bias, [float(s) for s in product]))
        inputs[2] = 3
    values = {"FusedActivationFunction": draw(CLAMPS)}
    op = BuiltOp("FULLY_CONNECTED", inputs, [2], "FullyConnectedOptions", values)
    return build_model(tensors, [op], [0], [2])


@EXAMPLES
@given(dense_layers(), SEEDS)
def test_fully_connected(model: bytes, seed: int) -> None:
    graph = compile_model(model, name="m").graph
    if graph.tensor(graph.inputs[0]).shape[0] == 1:
        assert_equal_everywhere(model, seed)
    else:
        assert_one_inference_equal(model, seed)


def assert_one_inference_equal(model: bytes, seed: int) -> None:
    """As `assert_equal_everywhere`, for models whose first dimension is not 1."""
    compiled = compile_model(model, name="m", optimize="flash", target="host")
    generator = np.random.default_rng(seed)
    inputs = tuple(
        generator.integers(-128, 128, (1, *compiled.graph.tensor(t).shape)).astype(np.int8)
        for t in compiled.graph.inputs
    )
    want = TflmRunner(model).run(inputs)
    defined = run_graph(compiled.graph, [a[0] for a in inputs])
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "c"
        write_bundle(compiled, bundle)
        ran = CompiledRunner(bundle, flags=STRICT_FLAGS).run(inputs)
    for numpy_value, c_value, wanted in zip(defined, ran, want, strict=True):
        np.testing.assert_array_equal(numpy_value, wanted[0])
        np.testing.assert_array_equal(c_value, wanted)


@st.composite
def additions(draw: st.DrawFn) -> bytes:
    """ADD of two tensors of one shape."""
    shape = (1, draw(st.integers(1, 4)), draw(st.integers(1, 50)))
    tensors = [activation(shape, draw(SCALES), draw(ZERO_POINTS)) for _ in range(3)]
    op = BuiltOp("ADD", [0, 1], [2], "AddOptions", {"FusedActivationFunction": draw(CLAMPS)})
    return build_model(tensors, [op], [0, 1], [2])


@EXAMPLES
@given(additions(), SEEDS)
def test_add(model: bytes, seed: int) -> None:
    assert_equal_everywhere(model, seed)


@st.composite
def pools(draw: st.DrawFn) -> bytes:
    """AVERAGE_POOL_2D and MAX_POOL_2D."""
    same = draw(st.booleans())
    fh, fw = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    sh, sw = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    h, w, c = draw(st.integers(4, 8)), draw(st.integers(4, 8)), draw(st.integers(1, 5))
    scale, zero_point = draw(SCALES), draw(ZERO_POINTS)
    y = (1, out_size(h, fh, sh, 1, same), out_size(w, fw, sw, 1, same), c)
    tensors = [activation((1, h, w, c), scale, zero_point), activation(y, scale, zero_point)]
    values = {
        "Padding": 0 if same else 1,
        "StrideH": sh,
        "StrideW": sw,
        "FilterHeight": fh,
        "FilterWidth": fw,
        "FusedActivationFunction": draw(CLAMPS),
    }
    name = draw(st.sampled_from(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
    return build_model(tensors, [BuiltOp(name, [0], [1], "Pool2DOptions", values)], [0], [1])


@EXAMPLES
@given(pools(), SEEDS)
def test_pools(model: bytes, seed: int) -> None:
    assert_equal_everywhere(model, seed)


@st.composite
def means(draw: st.DrawFn) -> bytes:
    """MEAN over neighbouring axes."""
    shape = (1, draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 6)))
    axes = draw(st.sampled_from([(1, 2), (2, 1), (1,), (2,), (3,), (-1,), (1, 2, 3), (-3, -2)]))
    keep = draw(st.booleans())
    y = np.zeros(shape).mean(axis=axes, keepdims=keep).shape
    tensors = [
        activation(shape, draw(SCALES), draw(ZERO_POINTS)),
        constant(np.array(axes, np.int32)),
        activation(y, draw(SCALES), draw(ZERO_POINTS)),
    ]
    op = BuiltOp("MEAN", [0, 1], [2], "ReducerOptions", {"KeepDims": keep})
    return build_model(tensors, [op], [0], [2])


@EXAMPLES
@given(means(), SEEDS)
def test_mean(model: bytes, seed: int) -> None:
    assert_equal_everywhere(model, seed)


@st.composite
def pads(draw: st.DrawFn) -> bytes:
    """PAD of up to four dimensions."""
    rank = draw(st.integers(2, 4))
    shape = (1, *(draw(st.integers(1, 5)) for _ in range(rank - 1)))
    pairs = [(0, 0)] + [(draw(st.integers(0, 3)), draw(st.integers(0, 2))) for _ in range(rank - 1)]
    y = tuple(b + n + a for n, (b, a) in zip(shape, pairs, strict=True))
    scale, zero_point = draw(SCALES), draw(ZERO_POINTS)
    tensors = [
        activation(shape, scale, zero_point),
        constant(np.array(pairs, np.int32)),
        activation(y, scale, zero_point),
    ]
    return build_model(tensors, [BuiltOp("PAD", [0, 1], [2], "PadOptions")], [0], [2])


@EXAMPLES
@given(pads(), SEEDS)
def test_pad(model: bytes, seed: int) -> None:
    assert_equal_everywhere(model, seed)


@st.composite
def softmaxes(draw: st.DrawFn) -> bytes:
    """SOFTMAX with small and large input scales, and several betas."""
    shape = (1, draw(st.integers(1, 3)), draw(st.integers(1, 40)))
    scale = draw(st.sampled_from([1e-6, 0.001, 0.01, 0.05, 0.2, 1.0, 7.0]))
    tensors = [activation(shape, scale, draw(ZERO_POINTS)), activation(shape, 1 / 256, -128)]
    op = BuiltOp("SOFTMAX", [0], [1], "SoftmaxOptions", {"Beta": draw(st.sampled_from([1.0, 0.3]))})
    return build_model(tensors, [op], [0], [1])


@EXAMPLES
@given(softmaxes(), SEEDS)
def test_softmax(model: bytes, seed: int) -> None:
    assert_equal_everywhere(model, seed)


@st.composite
def concatenations(draw: st.DrawFn) -> bytes:
    """CONCATENATION of two to four tensors along any axis but the first."""
    axis = draw(st.integers(1, 3))
    shape = [1, draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 5))]
    scale, zero_point = draw(SCALES), draw(ZERO_POINTS)
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    shapes = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]
    tensors = [activation(s, scale, zero_point) for s in shapes]
    tensors.append(activation((*shape[:axis], sum(sizes), *shape[axis + 1 :]), scale, zero_point))
    inputs, output = list(range(len(sizes))), len(sizes)
    values = {"Axis": draw(st.sampled_from([axis, axis - 4]))}
    op = BuiltOp("CONCATENATION", inputs, [output], "ConcatenationOptions", values)
    return build_model(tensors, [op], inputs, [output])


@EXAMPLES
@given(concatenations(), SEEDS)
def test_concatenation(model: bytes, seed: int) -> None:
    assert_equal_everywhere(model, seed)


def all_codes(name: str, x: BuiltTensor, y: BuiltTensor, options: str = "") -> None:
    """Runs an elementwise operator on all 256 codes."""
    model = build_model([x, y], [BuiltOp(name, [0], [1], options)], [0], [1])
    compiled = compile_model(model, name="m", target="host")
    codes = np.arange(-128, 128).astype(np.int8).reshape(1, 256)
    (want,) = TflmRunner(model).run((codes,))
    np.testing.assert_array_equal(run_graph(compiled.graph, [codes])[0], want)
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "c"
        write_bundle(compiled, bundle)
        (ran,) = CompiledRunner(bundle, flags=STRICT_FLAGS).run((codes,))
    np.testing.assert_array_equal(ran, want)


@pytest.mark.parametrize("zero_point", [-128, 3, 127])
@pytest.mark.parametrize("scale", [0.0005, 0.03, 0.0625, 0.5])
@pytest.mark.parametrize(("name", "out"), [("LOGISTIC", (1 / 256, -128)), ("TANH", (1 / 128, 0))])
def test_saturating_functions(
    name: str, out: tuple[float, int], scale: float, zero_point: int
) -> None:
    all_codes(name, activation((1, 256), scale, zero_point), activation((1, 256), *out))


@pytest.mark.parametrize("out", [(0.03, 0), (0.02, -128), (0.4, 9), (0.004, -50)])
@pytest.mark.parametrize("name", ["RELU", "QUANTIZE"])
@pytest.mark.parametrize("zero_point", [-128, 0, 40])
def test_rescaling(name: str, out: tuple[float, int], zero_point: int) -> None:
    x, y = activation((1, 256), 0.03, zero_point), activation((1, 256), *out)
    all_codes(name, x, y, "QuantizeOptions" if name == "QUANTIZE" else "")


@pytest.mark.parametrize(("scale", "zero_point"), [(0.03, 0), (0.1, -128), (0.0235, -128), (1, 5)])
def test_relu6(scale: float, zero_point: int) -> None:
    x = activation((1, 256), scale, zero_point)
    all_codes("RELU6", x, x)


def test_reshape_is_the_same_bytes() -> None:
    tensors = [
        activation((1, 4, 6), 0.1, 3),
        constant(np.array([1, 24], np.int32)),
        activation((1, 24), 0.1, 3),
    ]
    op = BuiltOp("RESHAPE", [0, 1], [2], "ReshapeOptions")
    model = build_model(tensors, [op], [0], [2])
    assert_equal_everywhere(model, seed=1)
    assert compile_model(model, name="m").report["arena_bytes"] == 24
