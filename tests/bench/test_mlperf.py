"""MLPerf Tiny's runner drives the application, in performance and in accuracy mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlperf_runner import Runner
from numpy.typing import NDArray
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench.protocol import Device
from edgekiln.bench.runners import NumpyRunner
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.export.tflite_reader import read_tflite
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image

# By the name that the runner knows: the file, and how often its test scripts run it (n, warm-ups).
MODELS = {
    "ic01": ("image_classification/pretrainedResnet_quant.tflite", 20, 5),
    "kws01": ("keyword_spotting/kws_ref_model.tflite", 70, 10),
    "vww01": ("visual_wake_words/vww_96_int8.tflite", 20, 5),
    "ad01": ("anomaly_detection/ad01_int8.tflite", 1500, 10),
}

SANITIZERS = ["-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

Floats = NDArray[np.float64]


def samples_of(name: str, data: bytes, shared: Path, count: int) -> list[bytes]:
    """What the benchmark's files hold: codes, pixels, or features as float32."""
    generator = np.random.default_rng(1)
    graph = read_tflite(data, name)
    size = graph.tensor(graph.inputs[0]).elements
    if name == "kws01":
        codes = np.load(shared / "data" / "kws01" / "kws01.npz")["x"]
        return [codes[i].tobytes() for i in range(count)]
    if name == "ad01":
        features = generator.normal(-25, 12, (count, size)).astype("<f4")
        return [row.tobytes() for row in features]
    return [generator.integers(0, 256, size, np.uint8).tobytes() for _ in range(count)]


def wanted(name: str, data: bytes, sample: bytes) -> Floats:
    """The results by numpy, with the input made as the reference firmware makes it."""
    graph = read_tflite(data, name)
    x, y = graph.tensor(graph.inputs[0]), graph.tensor(graph.outputs[0])
    real = np.zeros(0)
    if name == "ad01":
        real = np.frombuffer(sample, "<f4").astype(np.float64)
        scaled = real / x.q.scale
        rounded = np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)
        codes = np.clip(rounded + x.q.zero_point, -128, 127).astype(np.int8)
    elif name in ("ic01", "vww01"):
        codes = (np.frombuffer(sample, np.uint8).astype(np.int16) - 128).astype(np.int8)
    else:
        codes = np.frombuffer(sample, np.int8)
    (output,) = NumpyRunner(data).run((codes.reshape(1, *x.shape[1:]),))
    values = (output.reshape(-1).astype(np.float64) - y.q.zero_point) * y.q.scale
    return np.array([np.mean((values - real) ** 2)]) if name == "ad01" else values


def build(name: str, data: bytes, slug: str, directory: Path, flags: list[str]) -> Image:
    board = load_board(slug)
    write_bundle(compile_model(data, name=name, target=board.target), directory / "c")
    return build_image(directory / "c", board, directory, extra_flags=flags)


@pytest.mark.emulator
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_four_benchmarks(shared: Path, tmp_path: Path, name: str) -> None:
    file, iterations, warmups = MODELS[name]
    data = (shared / "models" / "mlperf_tiny" / file).read_bytes()
    samples = samples_of(name, data, shared, 2)
    image = build(name, data, "mps2-an386", tmp_path, ["-Werror"])
    with start_emulator(load_board("mps2-an386"), image, count=False) as emulator:
        with Runner(emulator.port) as runner:
            assert runner.name == "mps2-an386"
            assert runner.model == name
            assert runner.profile == "ULPMark for tinyML Firmware V0.0.1"
            (earlier, _), (later, _) = (runner.send("timestamp") for _ in range(2))
            assert 0 < microseconds(earlier) < microseconds(later)
            found = runner.accuracy(samples)
            # A tenth of the runner's own numbers: an emulator's speed is nobody's result.
            assert runner.performance(samples, iterations // 10, warmups // 5) > 0
            (results, _) = runner.send("results")  # the last window's
        for sample, values in zip(samples, found, strict=True):
            np.testing.assert_allclose(values, wanted(name, data, sample), atol=0.00051, rtol=2e-5)
        assert results.startswith("m-results-[")
        # The same image answers this project's own commands, on the codes themselves.
        with Device(emulator.port) as device:
            device.hello()
            assert device.about().model == name


def microseconds(line: str) -> int:
    return int(line.removeprefix("m-lap-us-"))


def mirror(size: int = 8) -> bytes:
    """A small model that reconstructs its input: a dense layer with the identity as weights."""
    weights = (np.eye(size) * 127).astype(np.int8)
    tensors = [
        BuiltTensor((1, size), "INT8", (0.4,), (40,)),
        BuiltTensor((size, size), "INT8", (1 / 127,), (0,), 0, weights),
        BuiltTensor((size,), "INT32", (0.4 / 127,), (0,), 0, np.zeros(size, np.int32)),
        BuiltTensor((1, size), "INT8", (0.5,), (-7,)),
    ]
    op = BuiltOp("FULLY_CONNECTED", [0, 1, 2], [3], "FullyConnectedOptions")
    return build_model(tensors, [op], [0], [3])


@pytest.fixture(scope="module")
def build_mirror(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Image]:
    """Returns the small model's image for this machine, under a name that the runner knows."""

    @functools.cache
    def make(name: str) -> Image:
        return build(name, mirror(), "host", tmp_path_factory.mktemp(name), SANITIZERS)

    return make


@pytest.mark.parametrize(
    "features",
    [
        [0, 0.21, -0.21, 0.19999, 12.34, -56.78, 100.01, -100.01],
        [1e-30, -1e-30, 1e-7, -0.0, 4.75e-7, 0.5, 63.999, -68.0],
        [1023.9, -1023.9, 300, -300, 34.8, 34.9, 35.1, -67.3],
    ],
)
def test_real_numbers_are_reconstructed(
    build_mirror: Callable[[str], Image], features: list[float]
) -> None:
    sample = np.array(features, "<f4").tobytes()
    with (
        start_emulator(load_board("host"), build_mirror("ad01")) as emulator,
        Runner(emulator.port) as runner,
    ):
        (found,) = runner.accuracy([sample])
        np.testing.assert_allclose(found, wanted("ad01", mirror(), sample), atol=0.00051, rtol=1e-6)


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x44800000])
def test_numbers_that_no_feature_is_are_cut_off(
    build_mirror: Callable[[str], Image], bits: int
) -> None:
    sample = np.full(8, bits, "<u4").tobytes()
    largest = np.full(8, -1024 if bits >> 31 else 1024, "<f4").tobytes()
    with (
        start_emulator(load_board("host"), build_mirror("ad01")) as emulator,
        Runner(emulator.port) as runner,
    ):
        (found,) = runner.accuracy([sample])
        np.testing.assert_allclose(found, wanted("ad01", mirror(), largest), rtol=1e-5)


def test_codes_go_into_the_same_image(build_mirror: Callable[[str], Image]) -> None:
    """Its inputs as int8 are for this project's own runs, whose outputs are bytes."""
    codes = np.array([-128, -40, 0, 1, 39, 40, 41, 127], np.int8)
    (output,) = NumpyRunner(mirror()).run((codes.reshape(1, 8),))
    for name in ("ad01", "ic01"):
        with (
            start_emulator(load_board("host"), build_mirror(name)) as emulator,
            Device(emulator.port) as device,
        ):
            device.hello()
            assert device.run(codes.tobytes()) == output.tobytes()


def test_pixels_become_codes(build_mirror: Callable[[str], Image]) -> None:
    pixels = bytes([0, 1, 127, 128, 129, 200, 254, 255])
    with (
        start_emulator(load_board("host"), build_mirror("vww01")) as emulator,
        Runner(emulator.port) as runner,
    ):
        runner.load(pixels)
        assert runner.send("db print")[0] == "m-buffer-00-01-7f-80-81-c8-fe-ff"
        found = runner.infer(1, 0).results
    np.testing.assert_allclose(found, wanted("vww01", mirror(), pixels), atol=0.00051)


def test_results_are_those_of_the_first_inference(build_mirror: Callable[[str], Image]) -> None:
    """Warm-ups and repetitions overwrite the input; what is answered belongs to the sample."""
    sample = np.array([1, 2, 3, 4, 5, 6, 7, 8], np.int8).tobytes()
    with (
        start_emulator(load_board("host"), build_mirror("kws01")) as emulator,
        Runner(emulator.port) as runner,
    ):
        (once,) = runner.accuracy([sample])
        runner.load(sample)
        assert runner.infer(70, 10).results == once
        assert runner.performance([sample], 70, 10) > 0
