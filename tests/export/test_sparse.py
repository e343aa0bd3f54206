"""Kernels for pruned weights: the dense kernels' bytes from fewer instructions and less flash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everywhere import check_everywhere, oracle_is_missing
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tflite_builder import BuiltOp, activation, build_model, constant

from edgekiln.bench.device import DeviceRun, run_on_board
from edgekiln.export.compiler import OPTIMIZE, compile_model, write_bundle
from edgekiln.export.interpret import run_graph
from edgekiln.export.ops.sparse import pack_groups
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.image import build_image

Array = NDArray[Any]


def pruned(shape: tuple[int, ...], density: float, block: int = 1, seed: int = 0) -> Array:
    """Random int8 weights of which about that share of blocks is left, along the inputs."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(-127, 128, (shape[0], int(np.prod(shape[1:]))))
    kept = generator.random((codes.shape[0], codes.shape[1] // block)) < density
    return (codes * np.repeat(kept, block, axis=1)).reshape(shape).astype(np.int8)


def scales(channels: int) -> list[float]:
    return [0.002 + 0.0003 * (i % 40) for i in range(channels)]


def dense(weights: Array, rows: int = 1, zero_point: int = -3) -> bytes:
    channels, depth = weights.shape
    tensors = [
        activation((rows, depth), 0.05, zero_point),
        constant(weights, scales(channels), 0),
        activation((rows, channels), 0.3, 4),
    ]
    op = BuiltOp("FULLY_CONNECTED", [0, 1], [2], "FullyConnectedOptions")
    return build_model(tensors, [op], [0], [2])


def conv(
    weights: Array,
    size: tuple[int, int],
    stride: int = 1,
    same: bool = True,
    dilation: tuple[int, int] = (1, 1),
) -> bytes:
    channels, *taps, inputs = weights.shape
    extent = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    out = [
        -(-n // stride) if same else (n - k) // stride + 1
        for n, k in zip(size, extent, strict=True)
    ]
    tensors = [
        activation((1, *size, inputs), 0.05, -3),
        activation((1, *out, channels), 0.3, 7),
        constant(weights, scales(channels), 0),
    ]
    values = {"Padding": int(not same), "StrideH": stride, "StrideW": stride}
    values |= {"DilationHFactor": dilation[0], "DilationWFactor": dilation[1]}
    return build_model(
        tensors, [BuiltOp("CONV_2D", [0, 2], [1], "Conv2DOptions", values)], [0], [1]
    )


# ---- the layout ----


def unpack_groups(entries: Array, counts: Array, inputs: int, block: int) -> NDArray[np.int64]:
    """Reads the layout as the C kernel does."""
    matrix = np.zeros((len(counts), inputs), np.int64)
    left = entries.reshape(-1)
    for channel, count in enumerate(counts):
        place = 0
        for _ in range(count):
            place += block * int(left[:1].view(np.uint8)[0])
            matrix[channel, place : place + block] += left[1 : 1 + block]
            left = left[1 + block :]
    assert len(left) == 0 or not counts.any()
    return matrix


@given(
    channels=st.integers(1, 4),
    blocks=st.integers(1, 1200),
    block=st.sampled_from([1, 4]),
    density=st.sampled_from([0.0, 0.001, 0.01, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_weights_come_back_from_their_groups(
    channels: int, blocks: int, block: int, density: float, seed: int
) -> None:
    matrix = pruned((channels, blocks * block), density, block, seed).astype(np.int64)
    entries, counts = pack_groups(matrix, block)
    assert entries.dtype == np.int8 and counts.dtype == np.uint16
    np.testing.assert_array_equal(unpack_groups(entries, counts, blocks * block, block), matrix)
    if block == 1:
        assert not (counts % 2).any()


@pytest.mark.parametrize("gap", [254, 255, 256, 510, 511, 1024])
@pytest.mark.parametrize("block", [1, 4])
def test_long_gaps(gap: int, block: int) -> None:
    matrix = np.zeros((2, block * 2200), np.int64)
    matrix[0, block * gap] = 5
    matrix[1, [0, block * gap]] = (-7, 9)
    np.testing.assert_array_equal(
        unpack_groups(*pack_groups(matrix, block), matrix.shape[1], block), matrix
    )


# ---- bytes ----

CASES = {
    "dense": dense(pruned((9, 67), 0.2)),
    "dense, rows": dense(pruned((6, 80), 0.15), rows=5),
    "dense, long gaps": dense(pruned((8, 1800), 0.002)),
    "dense, blocks": dense(pruned((10, 120), 0.2, 4), zero_point=-128),
    "dense, blocks, long gaps": dense(pruned((5, 4800), 0.002, 4)),
    "dense, no weight left": dense(np.zeros((4, 64), np.int8)),
    "conv 3x3": conv(pruned((16, 3, 3, 5), 0.06), (6, 5)),
    "conv 5x5, valid": conv(pruned((8, 5, 5, 6), 0.1), (9, 8), same=False),
    "conv 3x3, blocks, stride 2": conv(pruned((16, 3, 3, 8), 0.15, 4), (7, 6), stride=2),
    "conv, blocks, rows apart": conv(pruned((24, 3, 2, 8), 0.1, 4), (9, 6), dilation=(2, 1)),
    "conv larger than its input": conv(pruned((8, 5, 5, 4), 0.1), (2, 2)),
    "conv 1x1": conv(pruned((24, 1, 1, 96), 0.05), (4, 3)),
}


@oracle_is_missing
@pytest.mark.parametrize("case", CASES)
def test_bytes_are_the_oracles(case: str) -> None:
    also = ("cortex-m4", "cortex-m0plus", "avr")
    compiled = check_everywhere(CASES[case], also=also)
    (node,) = compiled.report["nodes"]
    assert "_sparse_" in node["kernel"] and ("blocks" in node["kernel"]) == ("blocks" in case)


@pytest.mark.emulator
@pytest.mark.parametrize("slug", ["mps2-an386", "mps2-an385", "qemu-riscv32"])
def test_bytes_on_boards_are_those_of_the_definition(slug: str, tmp_path: Path) -> None:
    for case, model in CASES.items():
        compiled, found, inputs = run_there(model, slug, tmp_path / case.replace(" ", "_"))
        dsp = "_dsp" if slug == "mps2-an386" else ""
        (node,) = compiled.report["nodes"]
        assert "_sparse_" in node["kernel"] and node["kernel"].endswith(f"{dsp}_s8"), case
        for x, got in zip(inputs, found.outputs[0], strict=True):
            (want,) = run_graph(compiled.graph, [x])
            np.testing.assert_array_equal(got.reshape(-1), want.reshape(-1), err_msg=case)


def run_there(model: bytes, slug: str, place: Path) -> tuple[Any, DeviceRun, Array]:
    board = load_board(slug)
    compiled = compile_model(model, name="m", target=board.target, optimize="time")
    write_bundle(compiled, place / "c")
    image = build_image(place / "c", board, place / "image", extra_flags=["-Werror"])
    shape = compiled.graph.tensor(compiled.graph.inputs[0]).shape
    inputs = np.random.default_rng(1).integers(-128, 128, (3, *shape)).astype(np.int8)
    inputs[0] = -128
    return compiled, run_on_board(image, board, inputs, progress=False), inputs


# ---- what it buys ----


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("slug", "block", "instructions", "constants"),
    [
        ("mps2-an386", 1, 0.88, 0.45),
        ("mps2-an386", 4, 0.56, 0.30),
        ("mps2-an385", 1, 0.36, 0.45),
        ("mps2-an385", 4, 0.21, 0.30),
    ],
)
def test_a_layer_with_four_fifths_of_zeros_takes_less(
    slug: str, block: int, instructions: float, constants: float, tmp_path: Path
) -> None:
    runs = [
        run_there(dense(weights), slug, tmp_path / name)
        for name, weights in (
            ("dense", pruned((64, 784), 0.95)),
            ("pruned", pruned((64, 784), 0.2, block)),
        )
    ]
    counts = [run.instructions for _, run, _ in runs]
    sizes = [compiled.report["constants_bytes"] for compiled, _, _ in runs]
    assert counts[0] is not None and counts[1] is not None
    assert counts[1] < instructions * counts[0]
    assert sizes[1] < constants * sizes[0]


def kernel_of(model: bytes, target: str, optimize: str) -> str:
    compiled = compile_model(model, name="m", target=target, optimize=optimize)
    return str(compiled.report["nodes"][0]["kernel"])


@pytest.mark.parametrize("optimize", OPTIMIZE)
def test_few_zeros_change_nothing(optimize: str) -> None:
    for target in ("generic", "cortex-m4", "cortex-m0plus", "avr"):
        chosen = kernel_of(dense(pruned((64, 256), 0.75)), target, optimize)
        assert "sparse" not in chosen


def test_the_goal_weighs_instructions_against_constants() -> None:
    """Half of zeros: more instructions with two products at a time, a little less flash."""
    model = dense(pruned((64, 512), 0.44))
    chosen = {goal: "sparse" in kernel_of(model, "cortex-m4", goal) for goal in OPTIMIZE}
    assert chosen == {"balanced": False, "time": False, "ram": False, "flash": True}
    assert "sparse" in kernel_of(model, "generic", "time")


def test_a_table_that_is_small_enough_counts_not_the_models_weights() -> None:
    """AVR's compiler takes no array of 40,000 bytes, but what is left of it."""
    assert "sparse" in kernel_of(dense(pruned((50, 800), 0.1)), "avr", "balanced")
