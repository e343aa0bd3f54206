"""SavedModel directories, on their way to ``.tflite``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras_marks import KERAS

from edgekiln.errors import BadInputError, BadModelError
from edgekiln.quantize import worker
from edgekiln.quantize.converter import convert_float
from edgekiln.quantize.saved_model import freeze_saved_model, is_saved_model
from edgekiln.train.quiet_keras import keras, tensorflow

pytestmark = KERAS

layers = keras.layers


def make(directory: Path) -> Any:
    """Writes a SavedModel with two inputs, a batch norm, and an optimizer's variables."""
    keras.utils.set_random_seed(0)
    one, two = layers.Input((3,), name="one"), layers.Input((4,), name="two")
    both = layers.Concatenate()([layers.Dense(2)(one), layers.Dense(3)(two)])
    model = keras.Model([one, two], layers.Dense(2)(layers.BatchNormalization()(both)))
    model.compile("adam", "mse")
    model.export(directory, format="tf_saved_model", verbose=False)
    return model


def run(tflite: bytes, inputs: dict[str, np.ndarray]) -> np.ndarray:
    interpreter = Interpreter(model_content=tflite)
    runner = interpreter.get_signature_runner()
    (output,) = runner(**inputs).values()
    return np.asarray(output)


def test_what_is_a_saved_model(tmp_path: Path) -> None:
    assert not is_saved_model(tmp_path) and not is_saved_model(tmp_path / "none")
    (tmp_path / "saved_model.pb").touch()
    assert is_saved_model(tmp_path)


def test_a_frozen_model_gives_the_same_with_a_batch_of_one(tmp_path: Path) -> None:
    model = make(tmp_path / "m")
    assert freeze_saved_model(tmp_path / "m", tmp_path / "f") == {"one": (3,), "two": (4,)}
    converter = tensorflow.lite.TFLiteConverter.from_saved_model(str(tmp_path / "f"))
    random = np.random.default_rng(0)
    for _ in range(3):
        inputs = {
            name: random.normal(size=(1, size)).astype(np.float32)
            for name, size in (("one", 3), ("two", 4))
        }
        want = model.predict(list(inputs.values()), verbose=0)
        np.testing.assert_allclose(run(converter.convert(), inputs), want, atol=1e-5)


def convert_here(source: Path, samples: dict[str, np.ndarray], output: Path) -> None:
    """What the worker does, without the seconds that a process costs."""
    np.savez(output.with_suffix(".npz"), *samples.values())
    job = {
        "model": str(source),
        "scheme": "int8",
        "representative": str(output.with_suffix(".npz")),
        "names": list(samples),
        "output": str(output),
    }
    worker.convert(job, lambda _: None)


@pytest.mark.filterwarnings(r"ignore:\s+Warning. tf.lite.Interpreter is deprecated:UserWarning")
def test_it_is_quantized_as_keras_models_are(tmp_path: Path) -> None:
    make(tmp_path / "m")
    samples = {"two": np.ones((4, 4), np.float32), "one": np.eye(4, 3, dtype=np.float32)}
    convert_here(tmp_path / "m", samples, tmp_path / "int8.tflite")
    interpreter = Interpreter(model_path=str(tmp_path / "int8.tflite"))
    assert {d["dtype"] for d in interpreter.get_input_details()} == {np.int8}
    with pytest.raises(BadInputError, match=r"do not fit the model's input 'two'; got .*\(3,\)"):
        convert_here(
            tmp_path / "m", {"one": samples["one"], "two": samples["one"]}, tmp_path / "x.tflite"
        )


def test_through_the_worker(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "m")
    convert_float(tmp_path / "m", tmp_path / "float.tflite")
    assert (tmp_path / "float.tflite").read_bytes()[4:8] == b"TFL3"
    assert len(capfd.readouterr().err.splitlines()) == 1
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"no protobuf")
    with pytest.raises(BadModelError, match=f"^{tmp_path}/m: is not a SavedModel that can be load"):
        convert_float(tmp_path / "m", tmp_path / "other.tflite")
    assert not (tmp_path / "other.tflite").exists()


def save(directory: Path, function: Any, *specs: Any, name: str = "serving_default") -> Path:
    module = tensorflow.Module()
    module.call = tensorflow.function(function, input_signature=list(specs))
    tensorflow.saved_model.save(
        module, str(directory), signatures={name: module.call.get_concrete_function()}
    )
    return directory


@pytest.mark.parametrize(
    ("dtype", "shape", "got"),
    [
        ("int32", (None, 3), r"int32 \[None, 3\]"),
        ("float32", (8, 3), r"float32 \[8, 3\]"),
        ("float32", (), r"float32 \[\]"),
        ("float32", None, "float32 of any shape"),
    ],
)
def test_inputs_that_cannot_be_used(tmp_path: Path, dtype: str, shape: Any, got: str) -> None:
    spec = tensorflow.TensorSpec(shape, dtype, name="x")
    path = save(tmp_path / "m", lambda x: {"y": x + x}, spec)
    with pytest.raises(BadModelError, match=f"input 'x' cannot be used; got {got}; allowed: flo"):
        freeze_saved_model(path, tmp_path / "f")


def test_another_signature(tmp_path: Path) -> None:
    spec = tensorflow.TensorSpec((None, 3), "float32", name="x")
    path = save(tmp_path / "m", lambda x: {"y": x + x}, spec, name="train")
    with pytest.raises(BadModelError, match=r"m: has no signature serving_default; got .*train"):
        freeze_saved_model(path, tmp_path / "f")


def test_a_real_one_of_an_older_tensorflow(shared: Path, tmp_path: Path) -> None:
    source = shared / "models/mlperf_tiny/keyword_spotting/kws_ref_model"
    assert freeze_saved_model(source, tmp_path / "f") == {"input_1": (49, 10, 1)}
