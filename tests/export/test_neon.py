"""The kernels with NEON: the bytes of the numpy definition, and nothing beyond.

Each example is a model with one operator, whose arena lies between pages that may not be
touched. It runs on 64-bit and 32-bit Arm under qemu-user, and on this machine under sanitizers,
with the intrinsics in plain C. The five MLPerf Tiny models are compared node by node with the C of
the host.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import (
    CLANG,
    MACHINES,
    PLAIN_NEON,
    SANITIZED,
    Machine,
    compile_for,
    emulate,
    node_outputs,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model, constant, pack_int4

from edgekiln.bench.runners import CompiledRunner
from edgekiln.bench.verify import random_inputs
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.export.emit import read_kernels
from edgekiln.export.interpret import run_graph
from edgekiln.export.ops import neon

MODELS = (
    "image_classification/pretrainedResnet_quant",
    "keyword_spotting/kws_ref_model",
    "visual_wake_words/vww_96_int8",
    "anomaly_detection/ad01_int8",
    "streaming_wakeword/str_ww_ref_model",
)
EXAMPLES = settings(
    max_examples=3,
    phases=(Phase.explicit, Phase.generate),  # each example compiles a program
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
SCALES = st.floats(0.002, 0.3)
ZERO_POINTS = st.sampled_from([-128, -7, 0, 5, 127])
CLAMPS = st.sampled_from([0, 1, 2, 3])
SEEDS = st.integers(0, 2**32 - 1)


Place = tuple[str, Machine]
"""A target, and a machine for it."""

PLACES = {
    **{target: (target, machine) for target, machine in MACHINES.items()},
    **{f"{target}-sanitized": (target, machine) for target, machine in SANITIZED.items()},
}


@pytest.fixture(
    params=[
        pytest.param(place, marks=() if name.endswith("sanitized") else pytest.mark.emulator)
        for name, place in PLACES.items()
    ],
    ids=PLACES,
)
def place(request: pytest.FixtureRequest) -> Place:
    target, machine = request.param
    machine.require()
    return target, machine


def check(model: bytes, seed: int, place: Place) -> None:
    """Compares every output byte with the numpy definition, for random and extreme inputs."""
    target, machine = place
    compiled = compile_model(model, name="m", target=target, optimize="time")
    kernel = compiled.report["nodes"][-1]["kernel"]
    assert "neon" in kernel or "dotprod" in kernel
    shape = compiled.graph.tensor(compiled.graph.inputs[0]).shape
    random = np.random.default_rng(seed).integers(-128, 128, (3, *shape))
    inputs = np.concatenate([random, np.full((1, *shape), -128), np.full((1, *shape), 127)])
    inputs = inputs.astype(np.int8)
    with tempfile.TemporaryDirectory() as directory:
        found = node_outputs(compiled, inputs, Path(directory), machine)
    for x, got in zip(inputs, found, strict=True):
        (want,) = run_graph(compiled.graph, [x])
        assert got[-want.nbytes :] == want.tobytes()


def draw_weights(draw: st.DrawFn, shape: tuple[int, ...], axis: int) -> BuiltTensor:
    """Random codes, or the extreme ones alone; one scale, or one per channel."""
    generator = np.random.default_rng(draw(SEEDS))
    values = generator.integers(-128, 128, shape)
    if draw(st.booleans()):
        values = generator.choice([-128, -128, -128, 127], shape)
    count = draw(st.sampled_from([1, shape[axis]]))
    scales = [draw(st.floats(0.0005, 0.05)) for _ in range(count)]
    if draw(st.booleans()):
        return constant(values.astype(np.int8), scales, axis)
    codes = values.astype(np.int8) >> 4
    wide = constant(codes, scales, axis)
    return replace(wide, dtype="INT4", data=pack_int4(codes))


def draw_bias(draw: st.DrawFn, channels: int) -> BuiltTensor:
    generator = np.random.default_rng(draw(SEEDS))
    return constant(generator.integers(-30000, 30000, channels).astype(np.int32), [0.01])


def window_model(
    draw: st.DrawFn, name: str, x: tuple[int, int, int], weights: BuiltTensor, channels: int
) -> bytes:
    """A convolution with any stride, dilation, padding and activation."""
    stride = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2)]))
    same = draw(st.booleans())
    y = [
        -(-size // s) if same else (size - (k - 1) * d - 1) // s + 1
        for size, k, s, d in zip(x[:2], weights.shape[1:3], stride, dilation, strict=True)
    ]
    values: dict[str, Any] = {
        "Padding": 0 if same else 1,
        "StrideH": stride[0],
        "StrideW": stride[1],
        "DilationHFactor": dilation[0],
        "DilationWFactor": dilation[1],
        "FusedActivationFunction": draw(CLAMPS),
    }
    if name == "DEPTHWISE_CONV_2D":
        values["DepthMultiplier"] = 1
    tensors = [
        activation((1, *x), draw(SCALES), draw(ZERO_POINTS)),
        weights,
        activation((1, *y, channels), draw(SCALES), draw(ZERO_POINTS)),
        draw_bias(draw, channels),
    ]
    options = "Conv2DOptions" if name == "CONV_2D" else "DepthwiseConv2DOptions"
    return build_model(tensors, [BuiltOp(name, [0, 1, 3], [2], options, values)], [0], [2])


@st.composite
def convolutions(draw: st.DrawFn) -> bytes:
    x = draw(st.integers(7, 9)), draw(st.integers(7, 9)), draw(st.integers(1, 20))
    channels = draw(st.one_of(st.integers(1, 9), st.integers(10, 40)))
    shape = (channels, draw(st.integers(1, 3)), draw(st.integers(1, 4)), x[2])
    return window_model(draw, "CONV_2D", x, draw_weights(draw, shape, 0), channels)


@st.composite
def depthwise_convolutions(draw: st.DrawFn) -> bytes:
    channels = draw(st.one_of(st.integers(3, 41), st.sampled_from([8, 16, 24, 32])))
    x = draw(st.integers(7, 9)), draw(st.integers(7, 9)), channels
    size = draw(st.sampled_from([(3, 3), (1, 1), (2, 4), (3, 1), (1, 3), (3, 2)]))
    weights = draw_weights(draw, (1, *size, channels), 3)
    return window_model(draw, "DEPTHWISE_CONV_2D", x, weights, channels)


@st.composite
def products(draw: st.DrawFn) -> bytes:
    """FULLY_CONNECTED of one row or several, and 1x1 convolutions."""
    depth, channels = draw(st.integers(1, 80)), draw(st.integers(1, 40))
    rows = draw(st.sampled_from([1, 1, 3, 4, 9]))
    pointwise = draw(st.booleans())
    shapes = [(rows, depth), (channels, depth), (rows, channels)]
    options, values = "FullyConnectedOptions", {"FusedActivationFunction": draw(CLAMPS)}
    if pointwise:
        shapes = [(1, rows, 1, depth), (channels, 1, 1, depth), (1, rows, 1, channels)]
        options, values = "Conv2DOptions", {"Padding": 1, "StrideH": 1, "StrideW": 1, **values}
    tensors = [
        activation(shapes[0], draw(SCALES), draw(ZERO_POINTS)),
        draw_weights(draw, shapes[1], 0),
        activation(shapes[2], draw(SCALES), draw(ZERO_POINTS)),
        draw_bias(draw, channels),
    ]
    name = "CONV_2D" if pointwise else "FULLY_CONNECTED"
    return build_model(tensors, [BuiltOp(name, [0, 1, 3], [2], options, values)], [0], [2])


@st.composite
def pools(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
    batches, channels = draw(st.integers(1, 2)), draw(st.integers(1, 41))
    size = draw(st.integers(3, 17)), draw(st.integers(3, 17))
    window = [draw(st.one_of(st.integers(1, 3), st.just(min(n, 16)))) for n in size]
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    same = draw(st.booleans())
    y = [
        -(-n // s) if same else (n - k) // s + 1
        for n, k, s in zip(size, window, stride, strict=True)
    ]
    scale, zero_point = draw(SCALES), draw(ZERO_POINTS)
    tensors = [
        activation((batches, *size, channels), scale, zero_point),
        activation((batches, *y, channels), scale, zero_point),
    ]
    values = {
        "Padding": 0 if same else 1,
        "StrideH": stride[0],
        "StrideW": stride[1],
        "FilterHeight": window[0],
        "FilterWidth": window[1],
        "FusedActivationFunction": draw(CLAMPS),
    }
    op = BuiltOp(name, [0], [1], "Pool2DOptions", values)
    return build_model(tensors, [op], [0], [1])


@st.composite
def sums(draw: st.DrawFn) -> bytes:
    shape = (*(draw(st.integers(2, 6)) for _ in range(3)), draw(st.integers(8, 41)))
    axes = draw(st.sampled_from([[1, 2], [1], [2], [0, 2]]))
    y = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
    tensors = [
        activation(shape, draw(SCALES), draw(ZERO_POINTS)),
        constant(np.array(axes, np.int32)),
        activation(y, draw(SCALES), draw(ZERO_POINTS)),
    ]
    name = draw(st.sampled_from(["MEAN", "SUM"]))
    op = BuiltOp(name, [0, 1], [2], "ReducerOptions", {"KeepDims": True})
    return build_model(tensors, [op], [0], [2])


@st.composite
def additions(draw: st.DrawFn) -> bytes:
    """A tensor plus what a RELU makes of it, as the emulated program takes one input."""
    shape = (1, draw(st.one_of(st.integers(1, 40), st.just(300))))
    scales = draw(st.one_of(st.tuples(SCALES, SCALES, SCALES), st.just((0.05, 0.05, 0.06))))
    tensors = [activation(shape, scale, draw(ZERO_POINTS)) for scale in scales]
    ops = [BuiltOp("RELU", [0], [1]), BuiltOp("ADD", [0, 1], [2], "AddOptions")]
    return build_model(tensors, ops, [0], [2])


@EXAMPLES
@given(model=convolutions(), seed=SEEDS)
def test_conv_2d(model: bytes, seed: int, place: Place) -> None:
    check(model, seed, place)


@EXAMPLES
@given(model=depthwise_convolutions(), seed=SEEDS)
def test_depthwise_conv_2d(model: bytes, seed: int, place: Place) -> None:
    check(model, seed, place)


@EXAMPLES
@given(model=products(), seed=SEEDS)
def test_fully_connected_and_1x1(model: bytes, seed: int, place: Place) -> None:
    check(model, seed, place)


@EXAMPLES
@given(model=pools(), seed=SEEDS)
def test_pools(model: bytes, seed: int, place: Place) -> None:
    check(model, seed, place)


@EXAMPLES
@given(model=sums(), seed=SEEDS)
def test_sums(model: bytes, seed: int, place: Place) -> None:
    check(model, seed, place)


@EXAMPLES
@given(model=additions(), seed=SEEDS)
def test_add(model: bytes, seed: int, place: Place) -> None:
    check(model, seed, place)


AVERAGES = """
#include <stdio.h>

#include "ek_pool_2d_neon_s8.h"

/* Every sum of every number of taps. */
int main(void)
{
    long wrong = 0;
    for (int32_t count = 1; count <= 256; ++count) {
        const uint32_t reciprocal = ((1u << 24) + (uint32_t)count - 1u) / (uint32_t)count;
        for (int32_t sum = -128 * count; sum <= 127 * count; ++sum) {
            for (int32_t shift = 0; shift <= 128; shift += 128) {
                const int32_t all = sum + shift * count;
                const int32_t half = all > 0 ? count / 2 : -(count / 2);
                const int8x8_t got = ek_average_8_neon(vdupq_n_s16((int16_t)sum), count,
                                                       reciprocal, shift);
                int8_t codes[8];
                vst1_s8(codes, got);
                wrong += codes[0] != (all + half) / count - shift || codes[7] != codes[0];
            }
        }
    }
    printf("%ld", wrong);
    return 0;
}
"""


SCALING = """
#include <stdio.h>

#include "ek_neon.h"

static uint32_t state = 1;

static int32_t next(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return (int32_t)state;
}

/* Of all magnitudes, the ties of a division by 2^bits among them. */
static int32_t accumulator(int32_t bits)
{
    const int32_t x = next() >> (next() & 31);
    const int32_t tie = (int32_t)(((uint32_t)x << bits) | ((uint32_t)1 << bits >> 1));
    return next() & 1 ? (tie == INT32_MIN ? 0 : tie) : (x == INT32_MIN ? 0 : x);
}

int main(void)
{
    long wrong = 0;
    for (int32_t shift = -31; shift <= 30; ++shift) {
        for (int i = 0; i < 4000; ++i) {
            const int32_t m = i % 4 ? (1 << 30) | (next() & 0x3FFFFFFF) : i % 8 ? 1 << 30 : 0;
            const int32_t x = accumulator(shift < 0 ? -shift : 0);
            const int32x4_t scaled = ek_scale_neon(vdupq_n_s32(x), vdupq_n_s32(m),
                                                   vdupq_n_s32(shift), shift > 0, shift < 0);
            wrong += vgetq_lane_s32(scaled, 2) != ek_scale(x, m, shift);
            /* A node with left shifts has channels without one. */
            wrong += vgetq_lane_s32(ek_scale_neon(vdupq_n_s32(x), vdupq_n_s32(m),
                                                  vdupq_n_s32(shift), 1, 0), 1)
                     != ek_scale(x, m, shift);
        }
    }
    printf("%ld", wrong);
    return 0;
}
"""


def run_with_kernels(header: str, program: str, machine: Machine, directory: Path) -> bytes:
    """Runs a program that includes a kernel's header."""
    for name, text in read_kernels({header}).items():
        (directory / name).write_text(text)
    (directory / "program.c").write_text(program)
    flags = ("-fwrapv", f"-I{directory}")
    compile_for(machine, [directory / "program.c"], directory / "program", *flags)
    return emulate(machine, directory / "program")


def test_scaling_rounds_as_the_reference_does(place: Place, tmp_path: Path) -> None:
    assert run_with_kernels("ek_neon.h", SCALING, place[1], tmp_path) == b"0"


def test_averages_are_exact(tmp_path: Path) -> None:
    machine = Machine(("gcc",), ("-O2", "-isystem", str(PLAIN_NEON)))
    machine.require()
    assert run_with_kernels("ek_pool_2d_neon_s8.h", AVERAGES, machine, tmp_path) == b"0"


def hosts_nodes(data: bytes, samples: NDArray[Any], directory: Path) -> list[bytes]:
    """Returns what the nodes of a model leave on the host, for each input."""
    write_bundle(compile_model(data, name="m", target="host"), directory)
    host = CompiledRunner(directory, record_nodes=True)
    return [b"".join(y for _, y in host.node_outputs((sample[None],))) for sample in samples]


@pytest.mark.parametrize("name", MODELS)
def test_every_node_equals_the_hosts(name: str, place: Place, shared: Path, tmp_path: Path) -> None:
    target, machine = place
    data = (shared / "models" / "mlperf_tiny" / f"{name}.tflite").read_bytes()
    (inputs,) = random_inputs(data, 3 if machine.emulator else 1, seed=4)
    compiled = compile_model(data, name="m", target=target)
    found = node_outputs(compiled, inputs, tmp_path, machine)
    assert found == hosts_nodes(data, inputs, tmp_path / "host")


@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.parametrize("target", ["aarch64", "aarch64-dotprod"])
@pytest.mark.parametrize("name", MODELS)
def test_clang_agrees(name: str, target: str, shared: Path, tmp_path: Path) -> None:
    machine = replace(MACHINES[target], compiler=CLANG)
    machine.require()
    data = (shared / "models" / "mlperf_tiny" / f"{name}.tflite").read_bytes()
    (inputs,) = random_inputs(data, 3, seed=4)
    compiled = compile_model(data, name="m", target=target)
    found = node_outputs(compiled, inputs, tmp_path, machine)
    assert found == hosts_nodes(data, inputs, tmp_path / "host")


@pytest.mark.parametrize("channels", [4, 12, 13, 15, 16, 29, 31, 32])
def test_blocks_of_channels(channels: int, tmp_path: Path) -> None:
    """The weights of an incomplete block are where the kernel looks for them."""
    machine = SANITIZED["aarch64-dotprod"]
    machine.require()
    generator = np.random.default_rng(channels)
    weights = generator.integers(-128, 128, (1, 3, 3, channels)).astype(np.int8)
    tensors = [
        activation((1, 3, 3, channels), 0.05, -3),
        constant(weights, [0.01] * channels, 3),
        activation((1, 1, 1, channels), 0.1, 4),
        constant(generator.integers(-128, 128, (channels, 1, 1, channels)).astype(np.int8), [0.01]),
        activation((1, 1, 1, channels), 0.1, 4),
    ]
    strides = {"Padding": 1, "StrideH": 1, "StrideW": 1}
    dilation = {"DilationHFactor": 1, "DilationWFactor": 1}
    depthwise = {**strides, **dilation, "DepthMultiplier": 1}
    ops = [
        BuiltOp("DEPTHWISE_CONV_2D", [0, 1], [2], "DepthwiseConv2DOptions", depthwise),
        BuiltOp("CONV_2D", [2, 3], [4], "Conv2DOptions", {**strides, **dilation}),
    ]
    compiled = compile_model(
        build_model(tensors, ops, [0], [4]), name="m", target="aarch64-dotprod"
    )
    inputs = generator.integers(-128, 128, (4, 1, 3, 3, channels)).astype(np.int8)
    found = node_outputs(compiled, inputs, tmp_path, machine)
    for x, got in zip(inputs, found, strict=True):
        (want,) = run_graph(compiled.graph, [x])
        assert got[-channels:] == want.tobytes()


@pytest.mark.emulator
def test_sdot_kernels_run_without_the_instruction(tmp_path: Path) -> None:
    """A bundle for aarch64-dotprod that is compiled for an older core is slow, not wrong."""
    machine = MACHINES["aarch64"]
    machine.require()
    generator = np.random.default_rng(6)
    tensors = [
        activation((5, 50), 0.05, -3),
        constant(generator.integers(-128, 128, (23, 50)).astype(np.int8), [0.01]),
        activation((5, 23), 0.1, 4),
    ]
    op = BuiltOp("FULLY_CONNECTED", [0, 1], [2], "FullyConnectedOptions")
    model = build_model(tensors, [op], [0], [2])
    compiled = compile_model(model, name="m", target="aarch64-dotprod")
    inputs = generator.integers(-128, 128, (2, 5, 50)).astype(np.int8)
    found = node_outputs(compiled, inputs, tmp_path, machine)
    for x, got in zip(inputs, found, strict=True):
        (want,) = run_graph(compiled.graph, [x])
        assert got == want.tobytes()


def place_of_weight(channels: int, depth: int, c: int, i: int, dot: bool) -> int:
    """Returns where the kernels read the weight of channel c and input i."""
    in_sixteen = c < channels // 16 * 16
    block = (16 if in_sixteen else 4) if dot else 8
    start = c // block * block
    within = c - start
    if i >= depth // 16 * 16:  # the inputs that are left
        rest = start * depth + depth // 16 * 16 * block
        if dot:
            return rest + i % 16 // 4 * 4 * block + within * 4 + i % 4
        return rest + within * 8 + i % 16
    group = start * depth + i // 16 * 16 * block
    if dot:
        return group + within // 4 * 64 + i % 16 // 4 * 16 + within % 4 * 4 + i % 4
    return group + within * 16 + i % 16


@pytest.mark.parametrize(
    ("channels", "inputs"), [(1, 1), (5, 17), (16, 32), (37, 40), (20, 27), (9, 24), (31, 46)]
)
def test_packed_weights_hold_each_weight_once(channels: int, inputs: int) -> None:
    matrix = np.random.default_rng(2).integers(1, 128, (channels, inputs))
    for dot, pack in ((False, neon.pack_rows_of_16), (True, neon.pack_quads)):
        packed = pack(matrix)
        multiple = 4 if dot else 8
        depth = -(-inputs // multiple) * multiple
        assert packed.size == -(-channels // multiple) * multiple * depth
        assert np.count_nonzero(packed) == matrix.size
        for c in range(channels):
            for i in range(inputs):
                place = place_of_weight(channels, depth, c, i, dot)
                assert packed[place] == matrix[c, i]


def test_pairs_that_leave_16_bits_are_found() -> None:
    matrix = np.zeros((3, 20), np.int64)
    matrix[1, [3, 4, 13, 17]] = -128
    assert neon.plain_pairs_fit(matrix)
    matrix[1, 11] = -128
    assert not neon.plain_pairs_fit(matrix)
    assert neon.depthwise_pairs_fit(np.array([[-128, 0], [127, -128]]))
    assert not neon.depthwise_pairs_fit(np.array([[-128, 0], [-128, -128]]))
