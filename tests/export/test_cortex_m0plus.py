"""The kernels for Armv6-M as Armv6-M code: the bytes of the numpy definition, few instructions.

The code runs on an emulated Cortex-M3, which has all instructions of Armv6-M, and more memory
than any board with a Cortex-M0. That it also runs in an RP2040 is tests/firmware/test_pico.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model, constant

from edgekiln.bench.device import DeviceRun, run_on_board
from edgekiln.bench.runners import CompiledRunner
from edgekiln.bench.verify import random_inputs
from edgekiln.export.compiler import CompiledModel, compile_model, write_bundle
from edgekiln.export.interpret import run_graph
from edgekiln.export.ops.cortex_m0plus import pack_channel_blocks
from edgekiln.firmware.boards import Board, load_board
from edgekiln.firmware.image import build_image

Run = Callable[[CompiledModel, NDArray[Any]], DeviceRun]

#: What TensorFlow Lite Micro with CMSIS-NN takes, as Armv6-M code of -O3 counted the same way.
TFLM_INSTRUCTIONS = {
    "image_classification/pretrainedResnet_quant": 97_568_920,
    "keyword_spotting/kws_ref_model": 29_002_924,
    "visual_wake_words/vww_96_int8": 86_876_456,
    "anomaly_detection/ad01_int8": 1_762_868,
    "streaming_wakeword/str_ww_ref_model": 9_321_096,
}


@pytest.fixture(scope="module")
def board() -> Board:
    """A board with plenty of memory whose compiler is told that it has a Cortex-M0+."""
    large = load_board("mps2-an385")
    flags = load_board("pico").cpu_flags
    return replace(
        large, target="cortex-m0plus", toolchain=replace(large.toolchain, cpu_flags=flags)
    )


@pytest.fixture
def run(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path.parent / "cache"))

    def run_compiled(compiled: CompiledModel, inputs: NDArray[Any]) -> DeviceRun:
        write_bundle(compiled, tmp_path / "c")
        image = build_image(tmp_path / "c", board, tmp_path / "out", extra_flags=["-Werror"])
        return run_on_board(image, board, inputs, progress=False)

    return run_compiled


def weights(shape: tuple[int, ...], axis: int, seed: int) -> BuiltTensor:
    """Random codes, the extreme ones often; one scale per channel."""
    generator = np.random.default_rng(seed)
    values = generator.integers(-128, 128, shape)
    values = np.where(generator.random(shape) < 0.2, -128, values).astype(np.int8)
    return constant(values, [0.002 + 0.0003 * i for i in range(shape[axis])], axis)


def window(
    name: str,
    x: tuple[int, int, int],
    channels: int,
    size: tuple[int, int],
    stride: int = 1,
    same: bool = True,
    dilation: tuple[int, int] = (1, 1),
) -> bytes:
    """A convolution, or a depthwise one, over [1, H, W, C]."""
    extent = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    out = [
        -(-n // stride) if same else (n - k) // stride + 1
        for n, k in zip(x[:2], extent, strict=True)
    ]
    values: dict[str, Any] = {"Padding": int(not same), "StrideH": stride, "StrideW": stride}
    values |= {"DilationHFactor": dilation[0], "DilationWFactor": dilation[1]}
    depthwise = name == "DEPTHWISE_CONV_2D"
    shape = (1, *size, channels) if depthwise else (channels, *size, x[2])
    tensors = [
        activation((1, *x), 0.05, -3),
        activation((1, *out, channels), 0.08, 7),
        weights(shape, 3 if depthwise else 0, channels),
    ]
    options = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    if depthwise:
        values["DepthMultiplier"] = 1
    return build_model(tensors, [BuiltOp(name, [0, 2], [1], options, values)], [0], [1])


def dense(rows: int, depth: int, channels: int) -> bytes:
    tensors = [
        activation((rows, depth), 0.05, -128),
        weights((channels, depth), 0, depth),
        activation((rows, channels), 0.2, 4),
    ]
    op = BuiltOp("FULLY_CONNECTED", [0, 1], [2], "FullyConnectedOptions")
    return build_model(tensors, [op], [0], [2])


CASES = {
    "dense, one input": dense(1, 1, 9),
    "dense, a tail of three": dense(1, 67, 4),
    "dense, five channels": dense(3, 8, 5),
    "dense, two blocks and a half": dense(2, 30, 20),
    "conv 1x1": window("CONV_2D", (5, 4, 13), 11, (1, 1)),
    "conv 3x3": window("CONV_2D", (6, 5, 3), 10, (3, 3)),
    "conv 2x4, stride 2": window("CONV_2D", (9, 8, 5), 8, (2, 4), stride=2),
    "conv larger than its input": window("CONV_2D", (2, 2, 4), 8, (5, 5)),
    "conv, rows apart": window("CONV_2D", (9, 6, 4), 6, (3, 2), dilation=(2, 1)),
    "depthwise 3x3": window("DEPTHWISE_CONV_2D", (6, 5, 12), 12, (3, 3)),
    "depthwise valid": window("DEPTHWISE_CONV_2D", (6, 5, 4), 4, (3, 2), same=False),
    "depthwise, stride 2": window("DEPTHWISE_CONV_2D", (7, 8, 8), 8, (5, 3), stride=2),
    "depthwise, taps apart": window("DEPTHWISE_CONV_2D", (8, 8, 4), 4, (3, 3), dilation=(2, 3)),
    "depthwise larger than its input": window("DEPTHWISE_CONV_2D", (2, 3, 4), 4, (7, 5)),
    "depthwise 1x1": window("DEPTHWISE_CONV_2D", (3, 3, 8), 8, (1, 1)),
}


@pytest.mark.emulator
@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_the_definition(run: Run, case: str) -> None:
    compiled = compile_model(CASES[case], name="m", target="cortex-m0plus", optimize="time")
    assert all("_m0_" in node["kernel"] for node in compiled.report["nodes"])
    shape = compiled.graph.tensor(compiled.graph.inputs[0]).shape
    random = np.random.default_rng(1).integers(-128, 128, (4, *shape))
    inputs = np.concatenate([random, np.full((1, *shape), -128), np.full((1, *shape), 127)])
    inputs = inputs.astype(np.int8)
    found = run(compiled, inputs.reshape(len(inputs), *shape)).outputs[0]
    for x, got in zip(inputs, found, strict=True):
        (want,) = run_graph(compiled.graph, [x])
        np.testing.assert_array_equal(got.reshape(-1), want.reshape(-1))


@pytest.mark.emulator
@pytest.mark.slow
@pytest.mark.parametrize("name", TFLM_INSTRUCTIONS)
def test_the_mlperf_tiny_models_take_less_than_two_thirds_of_tflms_instructions(
    run: Run, shared: Path, tmp_path: Path, name: str
) -> None:
    data = (shared / "models/mlperf_tiny" / f"{name}.tflite").read_bytes()
    inputs = random_inputs(data, 2, 3)
    write_bundle(compile_model(data, name="m", target="host"), tmp_path / "host")
    wanted = CompiledRunner(tmp_path / "host").run(inputs)
    found = run(compile_model(data, name="m", target="cortex-m0plus"), inputs[0])
    np.testing.assert_array_equal(found.outputs[0], wanted[0])
    assert found.instructions is not None
    assert 1.5 * found.instructions < TFLM_INSTRUCTIONS[name]


def test_weights_of_a_block_follow_each_other_for_each_input() -> None:
    matrix = np.arange(-10, 16).reshape(13, 2)
    packed = pack_channel_blocks(matrix)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(packed[:16].reshape(2, 8).T, matrix[:8] + 128)
    np.testing.assert_array_equal(packed[16:].reshape(2, 8).T[:5], matrix[8:] + 128)
    assert (packed[16:].reshape(2, 8)[:, 5:] == 128).all()
    assert len(pack_channel_blocks(matrix[:12])) == 2 * (8 + 4)
