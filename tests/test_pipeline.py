"""The stages chained: what runs, what is skipped, what fails and what it leaves behind."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekiln import pipeline
from edgekiln.bench import measure
from edgekiln.bench.device import DeviceRun
from edgekiln.bench.protocol import Device
from edgekiln.bench.results import read_results, to_json
from edgekiln.bench.runners import TflmRunner, tflm_available
from edgekiln.errors import (
    BadInputError,
    BadModelError,
    BoardError,
    CheckFailedError,
    ToolMissingError,
)
from edgekiln.files import sha256_file

needs_oracle = pytest.mark.skipif(
    not tflm_available(), reason="no tflite-micro wheel for this Python and machine"
)


@pytest.fixture
def model(root: Path, tmp_path: Path) -> str:
    """A small int8 model as a user has it: a file somewhere."""
    path = tmp_path / "my model.tflite"
    shutil.copy(root / "tests/golden/digits_mlp_int8.tflite", path)
    return str(path)


def stages_run(text: str) -> set[str]:
    """Returns the stages that ran, from what was printed."""
    return {line.partition(":")[0] for line in text.splitlines() if ": done in" in line}


def falsify(run: DeviceRun, sample: int, byte: int) -> DeviceRun:
    outputs = run.outputs[0].copy()
    outputs[sample, byte] ^= 1
    return dataclasses.replace(run, outputs=(outputs, *run.outputs[1:]))


@needs_oracle
def test_deploy_of_a_file_proves_equality(model: str, tmp_path: Path) -> None:
    path = pipeline.deploy(model, "host", tmp_path / "build")
    assert path == tmp_path / "build/my_model/host/results.json"
    results = read_results(path)
    assert results.oracle == "tflm" and results.all_equal
    assert results.accuracy.samples == pipeline.RANDOM_SAMPLES
    assert results.accuracy.device_equals_host_bytes
    assert results.nodes_compared == len(results.per_node) > 1
    assert results.accuracy.int8_device is None and results.confusion is None
    assert {(c.left, c.right) for c in results.comparisons} == {
        ("board", "generated C on host"),
        ("board", "TensorFlow Lite Micro"),
        ("generated C on host", "TensorFlow Lite Micro"),
    }
    assert {c.bytes for c in results.comparisons} == {10 * pipeline.RANDOM_SAMPLES}
    report = path.with_name("report.html").read_text(encoding="utf-8")
    assert "give the same bytes everywhere" in report


def test_artifacts_have_their_own_hashes(model: str, tmp_path: Path) -> None:
    results = read_results(pipeline.deploy(model, "host", tmp_path / "build"))
    directory = tmp_path / "build" / results.model
    names = {artifact.name for artifact in results.artifacts}
    assert {f"export/{results.model}.tflite", "host/image/image.elf"} <= names
    for artifact in results.artifacts:
        assert artifact.sha256 == sha256_file(directory / artifact.name)
        assert artifact.bytes == (directory / artifact.name).stat().st_size
    assert results.model_sha256 == sha256_file(Path(model))


def test_a_second_deploy_does_nothing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pipeline.deploy(model, "host", tmp_path / "build")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert "run on host" in stages_run(capsys.readouterr().err)

    def fail(*arguments: object, **named: object) -> DeviceRun:
        raise AssertionError("the board was run again")

    monkeypatch.setattr(measure, "run_on_board", fail)
    assert pipeline.deploy(model, "host", tmp_path / "build") == path
    said = capsys.readouterr().err
    assert stages_run(said) == set() and "run on host: unchanged" in said
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_only_what_depends_on_a_change_runs_again(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = tmp_path / "build"
    pipeline.deploy(model, "host", build)
    capsys.readouterr()
    pipeline.deploy(model, "host", build, "flash")
    ran = stages_run(capsys.readouterr().err)
    assert "compile for host" in ran and not ran & {"export", "inputs"}
    (build / "my_model" / "export" / "my_model_tflite.h").write_text("damaged", encoding="utf-8")
    pipeline.deploy(model, "host", build, "flash")
    assert stages_run(capsys.readouterr().err) == {"export"}


def test_another_model_under_the_same_name_is_made_anew(
    root: Path, model: str, tmp_path: Path
) -> None:
    first = read_results(pipeline.deploy(model, "host", tmp_path / "build"))
    shutil.copy(root / "tests/golden/digits_cnn_int8.tflite", model)
    second = read_results(pipeline.deploy(model, "host", tmp_path / "build"))
    assert first.model == second.model
    assert second.macs > first.macs and second.model_sha256 != first.model_sha256


def test_one_wrong_byte_fails_the_deploy(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tmp_path / "build"
    path = pipeline.deploy(model, "host", build)
    run_on_board = measure.run_on_board

    def lie(*arguments: Any, **named: Any) -> DeviceRun:
        return falsify(run_on_board(*arguments, **named), sample=7, byte=3)

    monkeypatch.setattr(measure, "run_on_board", lie)
    with pytest.raises(CheckFailedError, match=r"differ in 1 of 200 .* sample 7, output 0, byte 3"):
        pipeline.deploy(model, "host", build, "flash")
    assert not path.exists() and not path.with_name("report.html").exists()
    with pytest.raises(BadInputError, match="no result yet"):
        pipeline.write_last_report(model, "host", build)
    monkeypatch.undo()
    assert read_results(pipeline.deploy(model, "host", build, "flash")).all_equal


@needs_oracle
def test_one_wrong_node_fails_the_deploy(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TflmRunner.node_tensors

    def lie(self: TflmRunner, *arguments: Any) -> Any:
        tensors = real(self, *arguments)
        first = min(index for index, value in tensors.items() if value.size == 128)
        tensors[first] = tensors[first] ^ np.int8(1)
        return tensors

    monkeypatch.setattr(TflmRunner, "node_tensors", lie)
    with pytest.raises(CheckFailedError, match=r"node 1 \(FULLY_CONNECTED\), by numpy, differs"):
        pipeline.deploy(model, "host", tmp_path / "build")
    assert not list((tmp_path / "build").rglob("results.json"))


def test_a_deploy_that_is_broken_off_goes_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_timed = Device.run_timed
    left = [5]

    def give_out(device: Device, data: bytes) -> tuple[bytes, int]:
        left[0] -= 1
        if left[0] < 0:
            raise BoardError("the port failed: No such device")
        return run_timed(device, data)

    monkeypatch.setattr(Device, "run_timed", give_out)
    with pytest.raises(BoardError):
        pipeline.deploy(model, "host", tmp_path / "build")
    left[0] = pipeline.RANDOM_SAMPLES - 5 + 1  # the last is run once more
    path = pipeline.deploy(model, "host", tmp_path / "build")
    assert left[0] == 0
    said = capsys.readouterr().err
    assert f"5 of {pipeline.RANDOM_SAMPLES} inferences were done before" in said
    assert not path.with_name("run.journal").exists()


def test_bench_refuses_numbers_of_a_wrong_program(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on_board = measure.run_on_board

    def lie(*arguments: Any, **named: Any) -> DeviceRun:
        return falsify(run_on_board(*arguments, **named), sample=0, byte=0)

    monkeypatch.setattr(measure, "run_on_board", lie)
    with pytest.raises(CheckFailedError, match="board and generated C on host differ"):
        pipeline.bench_model(model, "host", tmp_path / "build")


def test_without_the_oracle_numpy_stands_in(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro.runtime", None)
    path = pipeline.deploy(model, "host", tmp_path / "build")
    assert "The oracle is absent" in capsys.readouterr().err
    assert json.loads(path.read_text(encoding="utf-8"))["oracle"] is None
    results = read_results(path)
    assert results.all_equal and results.accuracy.int8_host_runtime == "numpy definition"
    assert results.nodes_compared == 0
    assert ("board", "numpy definition") in {(c.left, c.right) for c in results.comparisons}
    assert "stands in for it" in path.with_name("report.html").read_text(encoding="utf-8")


def test_bench_of_a_file(model: str, tmp_path: Path) -> None:
    value = to_json(pipeline.bench_model(model, "host", tmp_path / "build"))
    assert value["board"] == "host" and value["emulated"] is False
    assert value["instructions"] is None and value["latency_us"] > 0
    assert value["arena_bytes"] <= value["ram_bytes"]
    assert value["flash_constants_bytes"] + value["flash_code_bytes"] == value["flash_bytes"]
    assert sum(node["macs"] for node in value["per_node"]) == value["macs"]


def test_flash_boots_the_image(model: str, tmp_path: Path) -> None:
    image = pipeline.flash(model, "host", tmp_path / "build")
    assert image.elf.is_file()


def test_the_report_can_be_made_anew(model: str, tmp_path: Path) -> None:
    report = pipeline.deploy(model, "host", tmp_path / "build").with_name("report.html")
    before = report.read_bytes()
    report.unlink()
    assert pipeline.write_last_report(model, "host", tmp_path / "build") == report
    assert report.read_bytes() == before


class TestWhatModelMeans:
    def test_a_recipe(self, tmp_path: Path) -> None:
        work = pipeline.find_model("digits_cnn", tmp_path)
        assert work.recipe is not None and work.recipe.name == "digits_cnn"
        assert work.directory == tmp_path / "digits_cnn"

    def test_a_recipe_goes_before_a_file_of_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("digits_cnn").write_text("", encoding="utf-8")
        assert pipeline.find_model("digits_cnn", tmp_path).recipe is not None

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("digits_cn", "did you mean digits_cnn"),
            ("", "no such recipe"),
            ("missing.tflite", "missing.tflite: no such file"),
            ("model.keras", "model.keras: no such file"),
            ("model.h5", "model.h5: no such file"),
            ("model.onnx", "model.onnx: not a model .*; allowed: a recipe, a .keras or .h5"),
            (".", "allowed: a recipe, a .keras or .h5 file, a SavedModel directory"),
        ],
    )
    def test_neither(self, tmp_path: Path, name: str, message: str) -> None:
        with pytest.raises(BadInputError, match=message):
            pipeline.find_model(name, tmp_path)

    def test_a_directory_called_tflite(self, tmp_path: Path) -> None:
        (tmp_path / "m.tflite").mkdir()
        with pytest.raises(BadInputError, match="is a directory"):
            pipeline.find_model(str(tmp_path / "m.tflite"), tmp_path)

    def test_a_file_is_not_trained(self, model: str, tmp_path: Path) -> None:
        for stage in (pipeline.train, pipeline.quantize):
            with pytest.raises(BadInputError, match="nothing to train or quantize"):
                stage(model, tmp_path / "build")
        assert not (tmp_path / "build").exists()


def test_an_unknown_board_is_refused_first(model: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="did you mean mps2-an386"):
        pipeline.deploy(model, "mps2-an38", tmp_path / "build")
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    "data", [b"", b"not a model at all", bytes(64), b"\0\0\0\0TFL3" + bytes(9)]
)
def test_a_file_that_is_no_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "noise.tflite"
    path.write_bytes(data)
    with pytest.raises(BadModelError) as caught:
        pipeline.deploy(str(path), "host", tmp_path / "build")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "build").rglob("image.elf"))


def test_missing_tools_are_found_before_the_work(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match=r"gcc is not installed; .*apt-get install"):
        pipeline.deploy(model, "mps2-an386", tmp_path / "build")
    (tmp_path / "arm-none-eabi-gcc").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "arm-none-eabi-gcc").chmod(0o755)
    with pytest.raises(ToolMissingError, match="cc, a C compiler for this machine"):
        pipeline.deploy(model, "mps2-an386", tmp_path / "build")
    monkeypatch.setenv("CC", "arm-none-eabi-gcc -g")
    with pytest.raises(ToolMissingError, match="qemu-system-arm is not installed"):
        pipeline.deploy(model, "mps2-an386", tmp_path / "build")
    assert not (tmp_path / "build").exists()


def test_missing_packages_are_found_before_the_work(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    hidden = {"serial", "jinja2", "tensorflow", "onnx"}
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n in hidden else real(n))
    for name, extras in ((model, "board,report"), ("digits_mlp", "board,report,train,onnx")):
        with pytest.raises(ToolMissingError, match=rf"pip install 'edgekiln\[{extras}\]'"):
            pipeline.deploy(name, "host", tmp_path / "build")
    with pytest.raises(ToolMissingError, match="not installed: tensorflow"):
        pipeline.train("digits_mlp", tmp_path / "build")
    assert pipeline.export(model, tmp_path / "build").is_dir()


@needs_oracle
@pytest.mark.emulator
def test_deploy_of_a_file_to_an_emulated_board(model: str, tmp_path: Path) -> None:
    results = read_results(pipeline.deploy(model, "mps2-an386", tmp_path / "build"))
    assert results.emulated and results.latency_us is None and results.cycles is None
    assert results.all_equal and results.oracle == "tflm"
    assert results.instructions is not None and results.instructions > results.macs
    counted = [node.instructions or 0 for node in results.per_node]
    assert 0 < sum(counted) <= results.instructions
    assert results.stack_bytes is not None and results.stack_bytes > 0
    assert (results.board_facts.emulator or "").startswith("QEMU ")


def run_deploy(model: str, build: Path) -> str:
    """Runs the command as a user does; returns what it says."""
    command = [sys.executable, "-m", "edgekiln", "deploy", "--board", "mps2-an386", "--json"]
    done = subprocess.run(
        [*command, "--build-dir", str(build), model], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = build / model / "mps2-an386" / "results.json"
    assert json.loads(done.stdout) == json.loads(results.read_text(encoding="utf-8"))
    return done.stderr


@needs_oracle
@pytest.mark.slow
@pytest.mark.emulator
@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="training needs TensorFlow"
)
def test_a_recipe_goes_all_the_way(tmp_path: Path) -> None:
    assert "train" in stages_run(run_deploy("digits_mlp", tmp_path))
    results = read_results(tmp_path / "digits_mlp/mps2-an386/results.json")
    accuracy = results.accuracy
    assert accuracy.samples == 360 and accuracy.device_equals_host_bytes
    assert {c.bytes for c in results.comparisons} == {3600} and results.all_equal
    assert accuracy.float_model is not None and accuracy.float_model >= 0.97
    assert accuracy.int8_device == accuracy.int8_host
    assert results.confusion is not None
    counts = np.array(results.confusion.counts)
    assert counts.sum() == 360 and counts.trace() == round((accuracy.int8_device or 0) * 360)
    assert len(results.training["val_accuracy"]) > 1
    names = {artifact.name for artifact in results.artifacts}
    assert {"train/model.keras", "export/digits_mlp_int8.onnx"} <= names
    assert stages_run(run_deploy("digits_mlp", tmp_path)) == set()
