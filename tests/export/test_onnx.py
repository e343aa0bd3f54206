"""ONNX files from int8 models, and the comparison they must pass."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekiln.errors import BadInputError, BadModelError, CheckFailedError, ToolMissingError
from edgekiln.export import onnx as export_onnx
from edgekiln.export import onnx_worker
from edgekiln.export.onnx import OnnxCheck, export_onnx_int8
from edgekiln.files import sha256_file
from edgekiln.quantize import litert
from edgekiln.train.datasets import load_dataset

GOLDEN = Path(__file__).parent.parent / "golden"
FLOATS = np.random.default_rng(4).uniform(0, 1, (30, 8, 8, 1)).astype(np.float32)


def run(path: Path, inputs: np.ndarray) -> np.ndarray:
    """As a user runs it: with onnxruntime's own choice of optimizations."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (tensor.name for tensor in session.get_inputs())
    return np.concatenate([session.run(None, {name: x[np.newaxis]})[0] for x in inputs])


def ranks(path: Path) -> list[tuple[int, list[int]]]:
    """Element type and shape of the inputs and outputs."""
    graph = onnx.load(path).graph
    types = [tensor.type.tensor_type for tensor in (*graph.input, *graph.output)]
    return [(kind.elem_type, [size.dim_value for size in kind.shape.dim]) for kind in types]


@pytest.fixture(scope="module")
def int8_inputs() -> np.ndarray:
    """The held-out digits, as both kept models take them."""
    digits = load_dataset("digits")
    return litert.quantize_array(digits.x_test, 1 / 255, -128, np.int8)


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn"])
def test_int8(name: str, int8_inputs: np.ndarray, tmp_path: Path) -> None:
    tflite = GOLDEN / f"{name}_int8.tflite"
    check = export_onnx_int8(tflite, int8_inputs, tmp_path / "m.onnx")
    onnxruntime_version = importlib.metadata.version("onnxruntime")
    assert (check.file, check.opset, check.samples) == ("m.onnx", 18, 360)
    assert check.runtime == f"onnxruntime {onnxruntime_version}"
    assert check.reference == litert.runtime_name()
    assert check.sha256 == sha256_file(tmp_path / "m.onnx")
    assert check.size_bytes == (tmp_path / "m.onnx").stat().st_size
    assert check.values == 3600 and check.changed_decisions == 0
    assert check.different_values <= 18 and check.max_abs_diff <= 16
    assert check.bound == "at most 10% of the bytes different, each by at most 32 codes"
    int8 = onnx.TensorProto.INT8
    assert ranks(tmp_path / "m.onnx") == [(int8, [1, 8, 8, 1]), (int8, [1, 10])]
    outputs = run(tmp_path / "m.onnx", int8_inputs)
    expected = litert.run_int8(tflite.read_bytes(), int8_inputs, name)
    np.testing.assert_array_equal(outputs.argmax(axis=1), expected.argmax(axis=1))


def test_int8_files_depend_on_the_model_alone(int8_inputs: np.ndarray, tmp_path: Path) -> None:
    sums = set()
    for directory in ("one", "two"):
        copy = tmp_path / directory / "some model.tflite"
        copy.parent.mkdir()
        shutil.copy(GOLDEN / "digits_cnn_int8.tflite", copy)
        sums.add(export_onnx_int8(copy, int8_inputs[:2], copy.with_suffix(".onnx")).sha256)
    assert len(sums) == 1


def test_int8_that_differs_too_much_is_not_written(
    int8_inputs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept CNN differs in a few bytes, which a bound of none refuses."""
    monkeypatch.setattr(export_onnx, "INT8_MAX_DIFFERENT_SHARE", 0.0)
    with pytest.raises(CheckFailedError) as caught:
        export_onnx_int8(GOLDEN / "digits_cnn_int8.tflite", int8_inputs, tmp_path / "m.onnx")
    assert str(caught.value).startswith(f"{tmp_path / 'm.onnx'}: onnxruntime ")
    assert "of 3600 values different" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("different", "largest", "passes"),
    [(0, 0, True), (360, 32, True), (361, 1, False), (1, 33, False)],
)
def test_the_bound_of_int8(
    different: int, largest: int, passes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = OnnxCheck(
        *("m.onnx", "", 1, 18, "reference", "runtime", 360, 3600, different, float(largest), 0),
        bound="",
    )
    monkeypatch.setattr(export_onnx, "_export", lambda *_: (b"file", check))
    output = tmp_path / "m.onnx"
    arguments = (GOLDEN / "digits_cnn_int8.tflite", np.zeros((1, 8, 8, 1), np.int8), output)
    if passes:
        assert export_onnx_int8(*arguments) is check and output.read_bytes() == b"file"
    else:
        with pytest.raises(CheckFailedError):
            export_onnx_int8(*arguments)
        assert not output.exists()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (FLOATS, r"on these inputs; got float32 \[30, 8, 8, 1\]; allowed: int8 \[N, \.\.\.\]"),
        (np.zeros((0, 8, 8, 1), np.int8), r"on these inputs; got int8 \[0, 8, 8, 1\]"),
        (np.zeros((2, 8, 8), np.int8), r"do not fit the model; got samples of shape \(8, 8\)"),
    ],
)
def test_int8_inputs_that_cannot_be_used(inputs: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=message):
        export_onnx_int8(GOLDEN / "digits_mlp_int8.tflite", inputs, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_used(tmp_path: Path) -> None:
    inputs = np.zeros((1, 8, 8, 1), np.int8)
    with pytest.raises(BadInputError, match=r"none\.tflite: no such file"):
        export_onnx_int8(tmp_path / "none.tflite", inputs, tmp_path / "m.onnx")
    (tmp_path / "bad.tflite").write_bytes(b"not a model")
    with pytest.raises(BadModelError, match=r"bad\.tflite: LiteRT cannot run it"):
        export_onnx_int8(tmp_path / "bad.tflite", inputs, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tflite"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[str], str] = importlib.metadata.version

    def version(name: str) -> str:
        if name == "tf2onnx":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    onnx_worker._require_packages()
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ToolMissingError, match=r"^tf2onnx is needed .* 'edgekiln\[onnx\]'$"):
        onnx_worker._require_packages()


def test_what_a_comparison_counts() -> None:
    got = np.array([[1, 2, 3], [9, 5, 6], [7, 8, 9]], np.int8)
    want = np.array([[1, 2, 3], [4, 5, 6], [7, 9, 8]], np.int8)
    found = onnx_worker._compare(got, want, got != want, "reference")
    assert found["values"] == 9 and found["samples"] == 3
    assert found["different_values"] == 3 and found["max_abs_diff"] == 5.0
    assert found["changed_decisions"] == 2
    with pytest.raises(TypeError, match="float32"):
        onnx_worker._compare(got.astype(np.float32), want, got != want, "reference")
