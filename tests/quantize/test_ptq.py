"""Conversion to float and int8 ``.tflite``, in its worker process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras_marks import KERAS

from edgekiln.errors import BadInputError, BadModelError
from edgekiln.quantize import litert, worker
from edgekiln.quantize.affine import dequantize_array, quantize_array
from edgekiln.quantize.audit import audit_int8
from edgekiln.quantize.ptq import check_representative, convert_float, convert_int8
from edgekiln.train.model_file import write_model
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
INPUTS = np.random.default_rng(3).uniform(-1, 1, (40, 6, 6, 2)).astype(np.float32)


def make(path: Path, hidden: Sequence[Any]) -> Any:
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [layers.Input((6, 6, 2), name="image"), *hidden, layers.Dense(4, activation="softmax")]
    )
    write_model(model, path)
    return model


def make_cnn(path: Path) -> Any:
    return make(path, [layers.Conv2D(4, 3, activation="relu"), layers.Flatten()])


def run_float(tflite: bytes, inputs: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(
        model_content=tflite, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in inputs:
        interpreter.set_tensor(taken["index"], sample[np.newaxis])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(given["index"])[0])
    return np.stack(outputs)


def test_float_equals_keras(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_cnn(tmp_path / "m.keras")
    convert_float(tmp_path / "m.keras", tmp_path / "out" / "m.tflite")
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "Converting to float TFLite" in err
    outputs = run_float((tmp_path / "out" / "m.tflite").read_bytes(), INPUTS)
    np.testing.assert_allclose(outputs, model.predict(INPUTS, verbose=0), atol=1e-6)


def test_int8_is_near_keras_and_repeats(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_cnn(tmp_path / "m.keras")
    convert_int8(tmp_path / "m.keras", INPUTS, tmp_path / "m.tflite")
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "Quantizing to int8" in err
    tflite = (tmp_path / "m.tflite").read_bytes()
    audit_int8(tflite, "m")
    spec = litert.read_input_spec(tflite, "m")
    assert spec.shape == (6, 6, 2)
    codes = litert.run_int8(
        tflite, quantize_array(INPUTS, spec.scale, spec.zero_point, np.int8), "m"
    )
    outputs = dequantize_array(codes, 1 / 256, -128)
    assert np.abs(outputs - model.predict(INPUTS, verbose=0)).max() < 0.03

    convert_int8(tmp_path / "m.keras", INPUTS, tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == tflite


def test_the_input_range_comes_from_the_representative_data(tmp_path: Path) -> None:
    make_cnn(tmp_path / "m.keras")
    convert_int8(tmp_path / "m.keras", INPUTS * 3 + 1, tmp_path / "m.tflite")
    spec = litert.read_input_spec((tmp_path / "m.tflite").read_bytes(), "m")
    low, high = dequantize_array(np.array([-128, 127], np.int8), spec.scale, spec.zero_point)
    assert low == pytest.approx(-2, abs=0.05) and high == pytest.approx(4, abs=0.05)


def test_a_layer_without_an_int8_form_is_named(tmp_path: Path) -> None:
    make(tmp_path / "m.keras", [layers.Flatten(), layers.Dense(5), layers.ELU()])
    with pytest.raises(BadModelError) as caught:
        convert_int8(tmp_path / "m.keras", INPUTS, tmp_path / "m.tflite")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'm.tflite'}: is not int8 with fixed shapes throughout")
    assert "got FLOAT32 '" in message and "(ELU, node" in message
    assert not (tmp_path / "m.tflite").exists()


def convert_here(model: Path, samples: np.ndarray) -> None:
    """What the worker does, without the seconds that a process costs."""
    np.save(model.with_suffix(".npy"), samples)
    names = {"model": model, "representative": model.with_suffix(".npy"), "output": model}
    worker.convert({name: str(path) for name, path in names.items()}, lambda _: None)


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    make_cnn(tmp_path / "m.keras")
    with pytest.raises(BadInputError) as caught:
        convert_here(tmp_path / "m.keras", INPUTS[..., 0])
    assert str(caught.value) == (
        f"{tmp_path / 'm.keras'}: the representative data do not fit the model's input; "
        "got samples of shape (6, 6); allowed: shape (6, 6, 2)"
    )


def test_a_model_with_two_inputs_is_refused(tmp_path: Path) -> None:
    one, two = layers.Input((3,)), layers.Input((3,))
    write_model(keras.Model([one, two], layers.Add()([one, two])), tmp_path / "m.keras")
    with pytest.raises(BadInputError, match="has several inputs; got 2; allowed: one"):
        convert_here(tmp_path / "m.keras", np.zeros((4, 3), np.float32))


def test_a_damaged_model_is_refused_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "m.keras").write_bytes(b"PK no model")
    with pytest.raises(BadModelError, match=r"m\.keras: is not a Keras 3 model"):
        convert_float(tmp_path / "m.keras", tmp_path / "m.tflite")
    assert [path.name for path in tmp_path.iterdir()] == ["m.keras"]


def test_a_missing_model_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none\.keras: no such file"):
        convert_float(tmp_path / "none.keras", tmp_path / "m.tflite")
    with pytest.raises(BadInputError, match=r"none\.keras: no such file"):
        convert_int8(tmp_path / "none.keras", INPUTS, tmp_path / "m.tflite")


def spoiled(value: float) -> np.ndarray:
    samples = INPUTS.copy()
    samples[[7, 9], 1, 2, 0] = value
    return samples


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (INPUTS.astype(np.float64), "have the wrong type; got float64; allowed: float32"),
        (np.zeros((4, 3), np.int8), "have the wrong type; got int8; allowed: float32"),
        (INPUTS[:0], r"are empty or lack the axis of samples; got shape \(0, 6, 6, 2\)"),
        (np.zeros(3, np.float32), r"are empty or lack the axis of samples; got shape \(3,\)"),
        (spoiled(np.nan), "hold NaN or infinity; got 2 such samples, the first is number 7"),
        (spoiled(-np.inf), "hold NaN or infinity; got 2 such samples, the first is number 7"),
    ],
)
def test_representative_data_that_cannot_be_used(samples: np.ndarray, message: str) -> None:
    check_representative(INPUTS, "m")
    with pytest.raises(BadInputError, match=f"^m: the representative data {message}"):
        check_representative(samples, "m")
