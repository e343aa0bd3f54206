from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench.device import run_on_board
from edgekiln.bench.runners import CompiledRunner, TflmRunner, tflm_available
from edgekiln.errors import BadInputError, BoardError
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.export.interpret import run_graph
from edgekiln.export.tflite_reader import read_tflite
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image

Build = Callable[[str], Image]


@pytest.fixture(scope="module")
def model(root: Path) -> bytes:
    return (root / "tests/golden/digits_mlp_int8.tflite").read_bytes()


@pytest.fixture(scope="module")
def build(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Build:
    made: dict[str, Image] = {}

    def image_for(slug: str) -> Image:
        if slug not in made:
            board = load_board(slug)
            directory = tmp_path_factory.mktemp(slug)
            write_bundle(compile_model(model, name="digits", target=board.target), directory / "c")
            made[slug] = build_image(directory / "c", board, directory)
        return made[slug]

    return image_for


def noise(image: Image, samples: int) -> NDArray[np.int8]:
    shape = (samples, *image.inputs[0].shape[1:])
    return np.random.default_rng(samples).integers(-128, 128, shape).astype(np.int8)


@pytest.mark.emulator
def test_an_emulated_board(build: Build, model: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    image = build("mps2-an386")
    inputs = noise(image, 6)
    inputs[5] = inputs[2]
    run = run_on_board(image, load_board("mps2-an386"), inputs)
    graph = read_tflite(model, "digits")
    wanted = np.concatenate([run_graph(graph, [row[None]])[0] for row in inputs])
    (outputs,) = run.outputs
    assert outputs.dtype == np.int8
    assert outputs.shape == (6, 10)
    np.testing.assert_array_equal(outputs, wanted)

    assert run.counts is not None and len(run.counts) == 6
    assert run.counts[5] == run.counts[2]
    totals = [count.total for count in run.counts]
    assert run.instructions == totals[0]
    assert (run.instructions_min, run.instructions_max) == (min(totals), max(totals))
    assert run.per_node_instructions == run.counts[0].per_node
    assert len(run.counts[0].per_node) == len(image.nodes)

    assert (run.counted, run.cycles_model, run.emulated) == ("instructions", "", True)
    assert run.cycles is run.per_node_cycles is None
    as_cycles = dataclasses.replace(run, counted="cycles")
    assert (as_cycles.cycles, as_cycles.per_node_cycles) == (totals[0], run.counts[0].per_node)
    assert as_cycles.instructions is as_cycles.per_node_instructions is None
    assert as_cycles.instructions_min is as_cycles.instructions_max is None

    assert run.latency_us is None
    assert run.stack_bytes is not None
    assert 0 < run.stack_bytes < image.stack_reserve_bytes
    assert run.ram_bytes == image.arena_bytes + image.bss_bytes + run.stack_bytes
    assert run.retries == 0
    assert "inferences on mps2-an386" in capfd.readouterr().err


def test_the_host_as_a_board(build: Build, capfd: pytest.CaptureFixture[str]) -> None:
    image = build("host")
    run = run_on_board(image, load_board("host"), noise(image, 3), progress=False)
    assert run.outputs[0].shape == (3, 10)
    assert run.counts is run.instructions is run.per_node_instructions is None
    assert run.instructions_min is run.instructions_max is None
    assert run.stack_bytes is None
    assert run.latency_us is not None and run.latency_us >= 0
    assert run.ram_bytes == image.arena_bytes + image.data_bytes + image.bss_bytes
    assert capfd.readouterr().err == ""


def test_a_board_on_a_port(build: Build) -> None:
    image, board = build("host"), load_board("host")
    with start_emulator(board, image) as there:
        run = run_on_board(image, board, noise(image, 2), port=there.port, progress=False)
    again = run_on_board(image, board, noise(image, 2), progress=False)
    np.testing.assert_array_equal(run.outputs[0], again.outputs[0])


def test_a_board_that_holds_another_model(build: Build) -> None:
    image, board = build("host"), load_board("host")
    other = dataclasses.replace(image, model_sha256="cd" * 32)
    with (
        start_emulator(board, image) as there,
        pytest.raises(BoardError, match=r"holds another model; got digits .*flash it first"),
    ):
        run_on_board(other, board, noise(image, 1), port=there.port, progress=False)


@pytest.mark.emulator
def test_a_stack_that_overflowed_is_not_overlooked(build: Build) -> None:
    image = dataclasses.replace(build("mps2-an386"), stack_reserve_bytes=64)
    with pytest.raises(BoardError, match=r"the stack overflowed; got all of its 64 bytes in use"):
        run_on_board(image, load_board("mps2-an386"), noise(image, 1), progress=False)


def svdf() -> bytes:
    """A model that remembers its last four inputs."""
    generator = np.random.default_rng(4)
    filters, time = (generator.integers(-127, 128, (4, n)).astype(np.int8) for n in (3, 4))
    tensors = [
        BuiltTensor((1, 3), "INT8", (0.1,), (3,)),
        BuiltTensor((4, 3), "INT8", (0.02,), (0,), 0, filters),
        BuiltTensor((4, 4), "INT16", (0.01,), (0,), 0, time.astype(np.int16)),
        BuiltTensor((2,), "INT32", (0.00004,), (0,), 0, np.array([30, -70], np.int32)),
        BuiltTensor((1, 16), "INT16", (0.004,), (0,), is_variable=True),
        BuiltTensor((1, 2), "INT8", (0.05,), (-5,)),
    ]
    op = BuiltOp("SVDF", [0, 1, 2, 3, 4], [5], "SVDFOptions", {"Rank": 2})
    return build_model(tensors, [op], [0], [5])


@pytest.mark.emulator
@pytest.mark.skipif(not tflm_available(), reason="the oracle is not installed")
def test_a_stream_equals_the_oracles(tmp_path: Path) -> None:
    model, board = svdf(), load_board("mps2-an386")
    write_bundle(compile_model(model, name="svdf", target=board.target), tmp_path / "c")
    write_bundle(compile_model(model, name="svdf", target="host"), tmp_path / "host")
    image = build_image(tmp_path / "c", board, tmp_path)
    assert image.state_bytes == 32
    rows = np.tile(np.random.default_rng(5).integers(-128, 128, (1, 3)).astype(np.int8), (7, 1))
    found = {}
    for stream in (True, False):
        run = run_on_board(image, board, rows, progress=False, stream=stream)
        found[stream] = run.outputs[0]
        for engine in (TflmRunner(model, keep_state=stream), None):
            runner = engine or CompiledRunner(tmp_path / "host", keep_state=stream)
            np.testing.assert_array_equal(run.outputs[0], runner.run((rows,))[0])
        assert run.counts is not None and len(run.counts) == 7
        assert run.ram_bytes == image.ram_bytes(run.stack_bytes or 0)
    assert (found[False] == found[False][0]).all()
    assert (found[True] != found[False]).any()


def to_int16(source: str) -> tuple[bytes, NDArray[np.generic]]:
    """A model that adds an int16 to what it makes of its other input, and that input."""
    generator = np.random.default_rng(6)
    scaled = {"FLOAT32": (), "INT32": (0.001,), "UINT8": (0.1,)}[source]
    zero = {"FLOAT32": (), "INT32": (0,), "UINT8": (100,)}[source]
    between = ("INT8", (0.1,), (-28,)) if source == "UINT8" else ("INT16", (0.001,), (0,))
    tensors = [
        BuiltTensor((1, 6), source, scaled, zero),
        BuiltTensor((1, 6), *between),
        BuiltTensor((1, 5), "INT16", (0.002,), (0,)),
        BuiltTensor((1, 5), "FLOAT32"),
    ]
    ops = [
        BuiltOp("QUANTIZE", [0], [1], "QuantizeOptions", {}),
        BuiltOp("DEQUANTIZE", [2], [3], "DequantizeOptions", {}),
    ]
    values: NDArray[np.generic] = generator.normal(size=(3, 6)).astype(np.float32)
    if source != "FLOAT32":
        values = generator.integers(0, 256, (3, 6)).astype(source.lower())
    return build_model(tensors, ops, [0, 2], [1, 3]), values


@pytest.mark.parametrize("source", ["FLOAT32", "INT32", "UINT8"])
def test_inputs_and_outputs_of_all_types(source: str, tmp_path: Path) -> None:
    model, values = to_int16(source)
    codes = np.random.default_rng(7).integers(-32768, 32768, (3, 5)).astype(np.int16)
    write_bundle(compile_model(model, name="m", target="host"), tmp_path / "c")
    image = build_image(tmp_path / "c", load_board("host"), tmp_path)
    run = run_on_board(image, load_board("host"), (values, codes), progress=False)
    wanted = CompiledRunner(tmp_path / "c").run((values, codes))
    kinds = [np.int8 if source == "UINT8" else np.int16, np.float32]
    assert [output.dtype for output in run.outputs] == kinds
    for got, want in zip(run.outputs, wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(BadInputError, match="have to be int16; got int8"):
        run_on_board(image, load_board("host"), (values, codes.astype(np.int8)))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), "have to be int8; got float32"),
        (np.zeros((2, 63), np.int8), r"wrong shape; got \[2, 63\]; allowed: \[2, 8, 8, 1\]"),
        (np.zeros((0, 8, 8, 1), np.int8), "no inputs to run"),
        ([np.zeros((1, 64), np.int8)] * 2, "wrong number of inputs; got 2; allowed: 1"),
    ],
)
def test_inputs_that_are_not_the_models(
    build: Build, inputs: NDArray[np.int8] | list[NDArray[np.int8]], message: str
) -> None:
    image = build("host")
    with pytest.raises(BadInputError, match=message):
        run_on_board(image, load_board("host"), inputs)
