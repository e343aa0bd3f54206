"""Keras models from outside, as a user brings them: what is made, skipped and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln import cli, pipeline
from edgekiln.bench.results import read_results
from edgekiln.bench.runners import tflm_available
from edgekiln.errors import BadInputError
from edgekiln.pipeline import Given
from edgekiln.quantize import QuantizeOptions
from edgekiln.quantize.own_sensitivity import read_report
from edgekiln.train.model_file import write_model
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def edgekiln(capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in this process: ``edgekiln(*arguments) -> (exit code, stdout, stderr)``."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds net.keras and data.npz, 40 samples of 3 classes with labels."""
    directory = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((4, 4, 1)),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", name="scores"),
        ]
    )
    write_model(model, directory / "net.keras")
    x = np.random.default_rng(0).random((40, 4, 4, 1), np.float32)
    y = model.predict(x, verbose=0).argmax(axis=1)
    np.savez(directory / "data.npz", x=x, y=y)
    np.savez(directory / "unlabelled.npz", x=x)
    return directory


def one_line(err: str) -> str:
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("edgekiln: error: ")
    return lines[0]


@pytest.mark.slow
@pytest.mark.skipif(not tflm_available(), reason="no tflite-micro wheel for this Python")
def test_deploy(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, build = str(files / "net.keras"), tmp_path / "build"
    path = pipeline.deploy(model, "host", build, given=Given(files / "data.npz"))
    assert path == build / "net" / "host" / "results.json"
    summary = json.loads((build / "net" / "quantize" / "quantize.json").read_text())
    results = read_results(path)
    accuracy = results.accuracy
    assert results.all_equal and accuracy.device_equals_host_bytes
    assert accuracy.samples == 8 == summary["split"]["test_samples"]
    assert accuracy.float_model == summary["accuracy"]["float"] == 1.0
    assert accuracy.int8_device == summary["accuracy"]["int8_host"] is not None
    assert results.confusion is not None and results.confusion.class_names == ("0", "1", "2")
    assert results.inputs == "a fifth held out at random of data.npz, 8 samples"
    names = {artifact.name for artifact in results.artifacts}
    assert {"quantize/int8.tflite", "export/net_float.onnx", "export/net_int8.onnx"} <= names
    assert "data.npz" in path.with_name("report.html").read_text(encoding="utf-8")

    capsys.readouterr()
    assert pipeline.deploy(model, "host", build, given=Given(files / "data.npz")) == path
    assert ": done in" not in capsys.readouterr().err
    pipeline.write_last_report(model, "host", build)

    unlabelled = Given(files / "unlabelled.npz")
    assert pipeline.bench_model(model, "host", build, given=unlabelled).macs == 48
    assert ": done in" in capsys.readouterr().err
    assert read_results(pipeline.deploy(model, "host", build, given=unlabelled)).confusion is None


def test_quantize_with_sensitivity(edgekiln: Call, files: Path, tmp_path: Path) -> None:
    arguments = ("--data", files / "data.npz", "--build-dir", tmp_path)
    code, out, err = edgekiln("quantize", files / "net.keras", *arguments, "--sensitivity")
    assert code == 0, err
    assert out == f"{tmp_path / 'net' / 'quantize'}\n"
    assert "Sensitivity: accuracy on 8 samples" in err and "scores" in err
    report = read_report(tmp_path / "net" / "sensitivity" / "sensitivity.json")
    assert json.loads(json.dumps(report.to_json())) == json.loads(
        (tmp_path / "net" / "sensitivity" / "sensitivity.json").read_text()
    )
    assert {"scores"} <= {each.layer for each in report.layers} and report.trained is None
    code, out, err = edgekiln("quantize", files / "net.keras", *arguments, "--sensitivity")
    assert ": done in" not in err and "Sensitivity: accuracy on 8 samples" in err


class TestRefusals:
    """One line each, and nothing is made."""

    @pytest.mark.parametrize("command", ["quantize", "export", "deploy", "bench", "flash"])
    def test_a_model_without_data(
        self, edgekiln: Call, files: Path, tmp_path: Path, command: str
    ) -> None:
        board = () if command in ("quantize", "export") else ("--board", "host")
        code, out, err = edgekiln(
            command, files / "net.keras", *board, "--build-dir", tmp_path / "b"
        )
        assert (code, out) == (2, "")
        assert "net.keras: a Keras model needs data to be quantized with; give --data" in (
            one_line(err)
        )
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("model", "arguments", "message"),
        [
            ("none.keras", ["--data", "data.npz"], "none.keras: no such file"),
            ("net.keras", ["--data", "none.npz"], "none.npz: no such file"),
            ("net.keras", ["--data", "net.keras"], "net.keras: is not an .npz file"),
            ("digits_mlp", ["--data", "data.npz"], "a recipe brings its own data and its own p"),
            ("digits_mlp", ["--scheme", "int16x8"], "a recipe brings its own data and its own p"),
            ("digits_mlp", ["--sensitivity"], "--sensitivity is for Keras models from outside"),
            ("net.keras", ["--data", "data.npz", "--epochs", "3"], "--epochs is for trainings, an"),
            ("net.keras", ["--sparsity", "2"], "--sparsity is not possible; got 2.0"),
            (
                "net.keras",
                ["--data", "data.npz", "--method", "qat", "--calibration", "mse"],
                "--calibration mse does not go with --method qat",
            ),
            (
                "net.keras",
                ["--data", "data.npz", "--scheme", "float16", "--sensitivity"],
                "--sensitivity does not go with --scheme float16",
            ),
            ("net.keras", ["--method", "magic"], "'magic' is not one of 'ptq', 'qat'"),
        ],
    )
    def test_what_does_not_fit(
        self,
        edgekiln: Call,
        files: Path,
        tmp_path: Path,
        model: str,
        arguments: list[str],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(files)
        code, out, err = edgekiln("quantize", model, *arguments, "--build-dir", tmp_path / "b")
        assert (code, out) == (2, "")
        assert message in one_line(err)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    @pytest.mark.parametrize("command", ["deploy", "bench", "flash"])
    @pytest.mark.parametrize("scheme", ["float16", "dynamic"])
    def test_types_that_boards_have_no_kernels_for(
        self, edgekiln: Call, files: Path, tmp_path: Path, command: str, scheme: str
    ) -> None:
        arguments = ("--data", files / "data.npz", "--build-dir", tmp_path, "--board", "host")
        code, out, err = edgekiln(command, files / "net.keras", *arguments, "--scheme", scheme)
        assert (code, out) == (2, "")
        assert f"--scheme {scheme} is for PCs" in one_line(err)
        assert list(tmp_path.iterdir()) == []

    def test_a_tflite_file_with_data(self, root: Path, tmp_path: Path) -> None:
        model = root / "tests" / "golden" / "digits_mlp_int8.tflite"
        with pytest.raises(BadInputError, match=r"a \.tflite file is quantized already: --data"):
            pipeline.find_model(str(model), tmp_path, given=Given(model))
        options = Given(options=QuantizeOptions(sparsity=0.5))
        with pytest.raises(BadInputError, match=r"a \.tflite file is quantized already"):
            pipeline.find_model(str(model), tmp_path, given=options)

    def test_a_model_from_outside_is_not_trained(self, files: Path, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="a model from outside is not trained here"):
            pipeline.train(str(files / "net.keras"), tmp_path)


def test_a_saved_model_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"one")
    work = pipeline.find_model(str(tmp_path / "m"), tmp_path / "build")
    assert work.name == "m" and work.is_quantized_here and work.recipe is None
    before = pipeline._sha256_below(tmp_path / "m")
    shutil.copytree(tmp_path / "m", tmp_path / "other")
    assert pipeline._sha256_below(tmp_path / "other") == before
    (tmp_path / "other" / "variables").mkdir()
    (tmp_path / "other" / "variables" / "v").write_bytes(b"two")
    assert pipeline._sha256_below(tmp_path / "other") != before


def test_help_describes_the_data(edgekiln: Call) -> None:
    code, out, _ = edgekiln("quantize", "--help")
    assert code == 0
    for word in ("x_test", "float32 [N, ...]", "--scheme", "int4-weights", "--sensitivity"):
        assert word in out
    # Each array on a line of its own.
    assert "\n    x_test  float32 [M, ...], samples to measure on; without them a fifth\n" in out
    assert "\\b" not in out


def test_all_options_reach_the_stage(monkeypatch: pytest.MonkeyPatch, edgekiln: Call) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "quantize", lambda *a, **k: seen.append((a, k)) or "done")
    arguments = (
        *("--data", "d.npz", "--scheme", "int4-weights", "--calibration", "entropy"),
        *("--equalize", "--bias-correction", "--sparsity", "0.5", "--channels", "0.75"),
        *("--epochs", "7", "--learning-rate", "0.01", "--sensitivity"),
    )
    assert edgekiln("quantize", "m.keras", *arguments)[:2] == (0, "done\n")
    ((positional, named),) = seen
    options = positional[2].options.to_json()
    assert positional[2].data == Path("d.npz") and named == {"sensitivity": True}
    assert options == {
        **{"method": "ptq", "scheme": "int4-weights", "calibration": "entropy"},
        **{"equalize": True, "bias_correction": True, "sparsity": 0.5, "channels": 0.75},
        **{"pattern": "unstructured"},
        **{"epochs": 7, "learning_rate": 0.01, "seed": 0},
    }
