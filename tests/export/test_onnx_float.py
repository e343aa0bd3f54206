"""ONNX files from Keras models, and the comparison they must pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.export import onnx as export_onnx
from edgekiln.export import onnx_worker
from edgekiln.export.onnx import export_onnx_float
from edgekiln.files import sha256_file
from edgekiln.train.model_file import read_model, write_model
from edgekiln.train.quiet_keras import keras
from edgekiln.train.registry import load_recipe

pytestmark = KERAS

INPUTS = np.random.default_rng(4).uniform(0, 1, (30, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keras.utils.set_random_seed(1)
    path = tmp_path_factory.mktemp("model") / "model.keras"
    write_model(load_recipe("digits_cnn").build_model(), path)
    return path


def test_float(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    check = export_onnx_float(model, INPUTS, path)
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "Exporting float ONNX" in err
    assert (check.samples, check.values, check.different_values) == (30, 300, 0)
    assert (check.opset, check.reference) == (18, f"keras {keras.__version__}")
    assert check.max_abs_diff < 1e-5 and check.changed_decisions == 0
    assert check.bound == "every value within 1e-05 + 0.0001 * |reference|"
    assert check.sha256 == sha256_file(path) and check.size_bytes == path.stat().st_size

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.type, taken.shape) == ("tensor(float)", [1, 8, 8, 1])
    assert (given.type, given.shape) == ("tensor(float)", [1, 10])
    outputs = [session.run(None, {taken.name: sample[np.newaxis]})[0][0] for sample in INPUTS]
    expected = read_model(model).predict(INPUTS, verbose=0)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert onnx.load(path).opset_import[0].version == 18


def test_outside_of_the_tolerance_is_not_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order differ in the last bit, which a tolerance of nothing refuses."""
    monkeypatch.setattr(export_onnx, "FLOAT_ABSOLUTE", 0.0)
    monkeypatch.setattr(export_onnx, "FLOAT_RELATIVE", 0.0)
    with pytest.raises(CheckFailedError, match=r"of 300 values different"):
        export_onnx_float(model, INPUTS, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_cannot_be_used(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"got int8 .* allowed: float32"):
        export_onnx_float(model, INPUTS.astype(np.int8), tmp_path / "m.onnx")
    with pytest.raises(
        BadInputError, match=r"samples of shape \(8, 8\); allowed: shape \(8, 8, 1\)"
    ):
        onnx_worker._check_model(read_model(model), INPUTS[..., 0], "m")


def test_a_model_with_two_outputs_is_refused() -> None:
    taken = keras.layers.Input((8, 8, 1))
    model = keras.Model(taken, [keras.layers.ReLU()(taken), keras.layers.Flatten()(taken)])
    with pytest.raises(BadInputError, match="got 1 inputs, 2 outputs; allowed: one of each"):
        onnx_worker._check_model(model, INPUTS, "m")
