"""Models from outside, quantized with data from outside."""

from __future__ import annotations

import dataclasses
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError, BadModelError
from edgekiln.quantize import (
    Format,
    Method,
    QuantizeOptions,
    converter,
    qat_convert,
    quantize_file,
    quantize_model,
)
from edgekiln.quantize.audit import audit_int8
from edgekiln.quantize.finetune import Teaching, pack_inputs, predict
from edgekiln.quantize.own import compare_outputs, summary_table
from edgekiln.quantize.own_data import ModelShape, OwnData, Part, _split_of
from edgekiln.quantize.own_training import Trainer
from edgekiln.quantize.tflite_run import read_signature, run_real
from edgekiln.train.datasets import load_dataset
from edgekiln.train.model_file import read_model, write_model
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the workers' tasks done in this process, without the seconds that another costs."""

    def run(module: str, job: dict[str, Any], **_: Any) -> dict[str, Any]:
        tasks = importlib.import_module(module)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s+Warning: tf.lite.Interpreter is deprecated")
            return dict(tasks.convert(job, lambda _: None))

    monkeypatch.setattr(converter, "run_worker", run)
    monkeypatch.setattr(qat_convert, "run_worker", run)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds digits.keras, a small trained model, and labelled.npz and unlabelled.npz."""
    directory = tmp_path_factory.mktemp("own")
    data = load_dataset("digits")
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            layers.Conv2D(8, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(data.x_train, data.y_train, epochs=10, verbose=0)
    write_model(model, directory / "digits.keras")
    few = slice(0, 100)
    np.savez(
        directory / "labelled.npz",
        **{"x": data.x_train[:320], "y": data.y_train[:320]},
        **{"x_test": data.x_test[few], "y_test": data.y_test[few]},
    )
    np.savez(directory / "unlabelled.npz", x=data.x_train[:100])
    return directory


def check(summary: dict[str, Any], output: Path) -> bytes:
    """Holds the summary against the files, and measures its accuracy again."""
    assert json.loads((output / "quantize.json").read_text()) == summary
    name = f"{summary['options']['scheme']}.tflite"
    tflite = (output / name).read_bytes()
    assert summary["bytes"][name] == len(tflite)
    data = load_dataset("digits")
    signature = read_signature(tflite, name)
    (port,) = signature.inputs
    assert summary["inputs"] == [
        {
            **{"name": port.name, "shape": [1, 8, 8, 1], "dtype": port.dtype},
            **{"scale": port.scale, "zero_point": port.zero_point},
        }
    ]
    if summary["accuracy"]["int8_host"] is not None:
        kernels = summary["accuracy"]["int8_runtime"].split()[-1]
        (scores,) = run_real(tflite, {port.name: data.x_test[:100]}, name, kernels).values()
        correct = float(np.mean(scores.argmax(axis=1) == data.y_test[:100]))
        assert summary["accuracy"]["int8_host"] == correct
    return tflite


def test_with_labels(directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    summary = quantize_file(directory / "digits.keras", directory / "labelled.npz", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("float.tflite", "int8.tflite", "quantize.json")
    }
    out, err = capfd.readouterr()
    assert out == "" and "accuracy on 100 held-out samples" in err
    audit_int8(check(summary, tmp_path), "int8")
    data, model = load_dataset("digits"), read_model(directory / "digits.keras")
    scores = model.predict(data.x_test[:100], verbose=0)
    accuracy = summary["accuracy"]
    assert accuracy["float"] == float(np.mean(scores.argmax(axis=1) == data.y_test[:100])) > 0.8
    assert abs(accuracy["int8_host"] - accuracy["float"]) <= 0.03
    (agreement,) = summary["agreement"]
    assert agreement["top1"] >= 0.97 and agreement["sqnr_db"] > 20
    assert summary["options"] == QuantizeOptions().to_json()
    assert summary["split"]["test_samples"] == 100 and summary["representative"]["samples"] == 200


@pytest.mark.usefixtures("here")
def test_without_labels_the_outputs_are_compared(
    directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    summary = quantize_file(directory / "digits.keras", directory / "unlabelled.npz", tmp_path)
    accuracy = summary["accuracy"]
    assert accuracy["float"] is None and accuracy["int8_host"] is None
    assert accuracy["samples"] == 20 and summary["split"]["train_samples"] == 80
    said = " ".join(capfd.readouterr().err.split())
    assert "int8 against float on 20 held-out samples, which have no labels" in said
    assert "same decision" in said


TRAINED = QuantizeOptions(
    method=Method.QAT, sparsity=0.5, channels=0.6, epochs=2, learning_rate=1e-3
)


@pytest.mark.usefixtures("here")
def test_fewer_channels_zeros_and_rounding_in_training(directory: Path, tmp_path: Path) -> None:
    before = (directory / "digits.keras").read_bytes()
    summary = quantize_file(
        directory / "digits.keras", directory / "labelled.npz", tmp_path, TRAINED
    )
    assert (directory / "digits.keras").read_bytes() == before
    audit_int8(check(summary, tmp_path), "int8")
    channels = summary["channels"]
    assert channels["macs"] <= 0.6 * channels["macs_before"]
    assert len(channels["history"]) == len(summary["pruning"]["history"]) == 2
    assert [epoch["epoch"] for epoch in summary["training"]["history"]] == [1, 2]
    compressed = read_model(tmp_path / "compressed.keras")
    assert compressed.count_params() < read_model(directory / "digits.keras").count_params()
    for layer in compressed.layers:
        if layer.weights and not isinstance(layer, layers.BatchNormalization):
            assert np.mean(layer.get_weights()[0] == 0) == pytest.approx(0.5, abs=0.02)
    data = load_dataset("digits")
    scores = compressed.predict(data.x_test[:100], verbose=0)
    assert summary["accuracy"]["pruned"] == float(
        np.mean(scores.argmax(axis=1) == data.y_test[:100])
    )


@pytest.mark.parametrize(
    ("options", "data"),
    [
        (QuantizeOptions(scheme=Format.INT16X8, equalize=True), "labelled"),
        (QuantizeOptions(scheme=Format.FLOAT16), "labelled"),
        (QuantizeOptions(scheme=Format.DYNAMIC), "labelled"),
        (QuantizeOptions(scheme=Format.INT4_WEIGHTS, calibration="mse"), "labelled"),
        (QuantizeOptions(calibration="entropy", equalize=True, bias_correction=True), "labelled"),
        (QuantizeOptions(calibration="percentile"), "labelled"),
        (
            QuantizeOptions(method=Method.QAT, scheme=Format.INT4_WEIGHTS, epochs=1),
            "labelled",
        ),
        (QuantizeOptions(method=Method.QAT, epochs=1), "unlabelled"),
        (QuantizeOptions(sparsity=0.3, channels=0.7, epochs=1), "unlabelled"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.usefixtures("here")
def test_every_option(directory: Path, tmp_path: Path, options: QuantizeOptions, data: str) -> None:
    summary = quantize_file(
        directory / "digits.keras", directory / f"{data}.npz", tmp_path, options
    )
    check(summary, tmp_path)
    (agreement,) = summary["agreement"]
    assert agreement["top1"] >= 0.8
    accuracy = summary["accuracy"]
    if data == "labelled":
        assert accuracy["int8_host"] >= accuracy["float"] - 0.1


@pytest.mark.usefixtures("here")
def test_zeros_in_blocks(directory: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(sparsity=0.75, pattern="1x4", epochs=1)
    summary = quantize_file(
        directory / "digits.keras", directory / "labelled.npz", tmp_path, options
    )
    assert summary["pruning"]["pattern"] == "1x4"
    assert len(summary["pruning"]["left_dense"]) == 1  # the first layer has one input
    compressed = read_model(tmp_path / "compressed.keras")
    for name in summary["pruning"]["layers"]:
        kernel = compressed.get_layer(name).get_weights()[0]
        blocks = np.moveaxis(kernel, -2, -1).reshape(-1, 4) != 0
        assert (blocks.all(axis=1) | ~blocks.any(axis=1)).mean() > 0.99
        assert blocks.mean() == pytest.approx(0.25, abs=0.02)


def two_headed() -> keras.Model:
    """Two inputs whose order is not that of the alphabet, two outputs."""
    keras.utils.set_random_seed(0)
    one, two = layers.Input((4,), name="zebra"), layers.Input((6,), name="ant")
    both = layers.Concatenate()([layers.Dense(5)(one), layers.Dense(5, activation="relu")(two)])
    return keras.Model([one, two], [layers.Dense(2)(both), layers.Dense(3)(both)])


def two_inputs(path: Path) -> Path:
    random = np.random.default_rng(0)
    np.savez(
        path,
        zebra=random.uniform(-1, 1, (400, 4)).astype(np.float32),
        ant=random.uniform(-1, 1, (400, 6)).astype(np.float32),
    )
    return path


@pytest.mark.usefixtures("here")
def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    write_model(two_headed(), tmp_path / "m.keras")
    summary = quantize_file(tmp_path / "m.keras", two_inputs(tmp_path / "d.npz"), tmp_path / "out")
    assert {port["name"]: port["shape"] for port in summary["inputs"]} == {
        **{"zebra": [1, 4], "ant": [1, 6]}
    }
    assert len(summary["agreement"]) == 2
    assert all(each["sqnr_db"] > 25 for each in summary["agreement"])


@pytest.mark.usefixtures("here")
def test_a_model_of_mixed_precision(directory: Path, tmp_path: Path) -> None:
    model = keras.models.clone_model(
        read_model(directory / "digits.keras"),
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "dtype": "mixed_float16"}
        ),
    )
    model.set_weights(read_model(directory / "digits.keras").get_weights())
    write_model(model, tmp_path / "m.keras")
    data = directory / "unlabelled.npz"
    wanted = quantize_file(directory / "digits.keras", data, tmp_path / "plain")
    from_file = quantize_file(tmp_path / "m.keras", data, tmp_path / "file")
    in_memory = quantize_model(model, data, tmp_path / "memory")
    assert model.layers[0].compute_dtype == "float16"
    for summary in (from_file, in_memory):
        assert summary["agreement"][0]["sqnr_db"] == pytest.approx(
            wanted["agreement"][0]["sqnr_db"], abs=1
        )


def test_channels_go_by_fewer_than_four_where_there_are_few() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [layers.Input((8,), name="x"), layers.Dense(4, activation="relu"), layers.Dense(3)]
    )
    x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    part = Part({"x": x}, None)
    trainer = Trainer(
        model,
        OwnData(part, part, _split_of("", 0, 64, np.arange(64))),
        ModelShape({"x": (8,)}, ((3,),)),
        QuantizeOptions(channels=0.5, epochs=1),
    )
    assert trainer.remove_channels()["macs"] == 22
    assert trainer.model.layers[0].units == 2


class Doubled(layers.Layer):  # type: ignore[misc]  # Keras has no types
    def call(self, inputs: Any) -> Any:
        return 2 * inputs


@pytest.mark.usefixtures("here")
def test_a_model_in_memory_may_hold_code(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((4, 3), name="x"),
            layers.Lambda(lambda x: x[..., :2]),
            Doubled(),
            layers.Flatten(),
            layers.Dense(5),
        ]
    )
    random = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=random.normal(size=(50, 4, 3)).astype(np.float32))
    summary = quantize_model(model, tmp_path / "d.npz", tmp_path / "out")
    assert summary["agreement"][0]["sqnr_db"] > 25
    assert summary["model"] == f"model '{model.name}'"


class TestRefusals:
    def test_a_saved_model_takes_no_options_of_keras(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "saved_model.pb").touch()
        with pytest.raises(BadInputError, match=r"m: --sparsity needs a Keras model, and this is"):
            quantize_file(
                tmp_path / "m", tmp_path / "d.npz", tmp_path, QuantizeOptions(sparsity=0.5)
            )

    def test_a_directory_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match=r"is a directory without a saved_model\.pb"):
            quantize_file(tmp_path, tmp_path / "d.npz", tmp_path / "out")

    def test_other_types_of_inputs(self, tmp_path: Path) -> None:
        model = keras.Sequential([layers.Input((4,), dtype="int32"), layers.Embedding(3, 2)])
        write_model(model, tmp_path / "m.keras")
        np.savez(tmp_path / "d.npz", x=np.zeros((4, 4), np.float32))
        with pytest.raises(BadInputError, match="has a type that is not supported; got int32"):
            quantize_file(tmp_path / "m.keras", tmp_path / "d.npz", tmp_path / "out")

    def test_weights_that_are_not_finite(self, directory: Path, tmp_path: Path) -> None:
        model = read_model(directory / "digits.keras")
        kernel = model.layers[0].kernel
        kernel.assign(np.full(kernel.shape, np.nan))
        write_model(model, tmp_path / "m.keras")
        with pytest.raises(BadModelError, match=r"m\.keras: holds weights that are NaN .* 72 of"):
            quantize_file(tmp_path / "m.keras", directory / "labelled.npz", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_inputs_of_free_size(self, directory: Path, tmp_path: Path) -> None:
        x = layers.Input((None, None, 1), name="image")
        model = keras.Model(x, layers.GlobalAveragePooling2D()(layers.Conv2D(10, 3)(x)))
        write_model(model, tmp_path / "m.keras")
        with pytest.raises(BadInputError, match=r"input 'image' is not fixed; got \(None, None, N"):
            quantize_file(tmp_path / "m.keras", directory / "labelled.npz", tmp_path / "out")

    def test_fewer_channels_than_there_can_be(self, directory: Path, tmp_path: Path) -> None:
        options = QuantizeOptions(channels=0.01)
        with pytest.raises(BadInputError) as caught:
            quantize_file(
                directory / "digits.keras",
                directory / "labelled.npz",
                tmp_path,
                dataclasses.replace(options, epochs=1),
            )
        assert "--channels is smaller than this model can become; got 0.01, which is" in str(
            caught.value
        )
        assert "multiply-accumulate steps of 23,584; allowed: " in str(caught.value)

    @pytest.mark.usefixtures("here")
    def test_an_unsupported_layer_is_named(self, directory: Path, tmp_path: Path) -> None:
        model = keras.Sequential(
            [layers.Input((4,)), layers.Dense(3), layers.ELU(name="soft"), layers.Dense(2)]
        )
        write_model(model, tmp_path / "m.keras")
        np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((9, 4), np.float32))
        with pytest.raises(BadModelError, match=r"got FLOAT32 .*\(ELU, node"):
            quantize_file(tmp_path / "m.keras", tmp_path / "d.npz", tmp_path / "out")

    def test_data_of_another_model(self, directory: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", x=np.zeros((9, 28, 28, 1), np.float32))
        with pytest.raises(BadInputError) as caught:
            quantize_file(directory / "digits.keras", tmp_path / "d.npz", tmp_path / "out")
        assert str(caught.value) == (
            f"{tmp_path / 'd.npz'}: 'x' does not fit the model's input 'image'; got samples of "
            "shape (28, 28, 1); allowed: shape (8, 8, 1)"
        )
        assert not (tmp_path / "out").exists()


class TestTeaching:
    """What a model learns from."""

    X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)

    def model(self, activation: str | None) -> keras.Model:
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [layers.Input((4,), name="x"), layers.Dense(3, activation=activation)]
        )

    @pytest.mark.parametrize("activation", ["softmax", None])
    def test_labels(self, activation: str | None) -> None:
        labels = np.argmax(self.X[:, :3], axis=1).astype(np.int64)
        model = self.model(activation)
        teaching = Teaching(model, Part({"x": self.X}, labels))
        assert teaching.loss.from_logits == (activation is None)
        history = teaching.fit(model, epochs=30, learning_rate=0.05, description="test")
        assert history[-1]["loss"] < history[0]["loss"] / 2
        (outputs,) = predict(model, {"x": self.X})
        assert np.mean(outputs.argmax(axis=1) == labels) > 0.9

    @pytest.mark.parametrize(
        ("activation", "loss"), [("softmax", "CategoricalCrossentropy"), (None, "str")]
    )
    def test_without_labels_the_float_model_teaches(
        self, activation: str | None, loss: str
    ) -> None:
        model, other = self.model(activation), self.model(activation)
        other.set_weights([0 * weight for weight in other.get_weights()])
        teaching = Teaching(model, Part({"x": self.X}, None))
        assert type(teaching.loss).__name__ == loss
        teaching.fit(other, epochs=60, learning_rate=0.05, description="test")
        (got,), (wanted,) = predict(other, {"x": self.X}), predict(model, {"x": self.X})
        assert np.mean(got.argmax(axis=1) == wanted.argmax(axis=1)) > 0.9

    def test_inputs_in_any_structure(self) -> None:
        x = {"zebra": np.zeros((2, 4), np.float32), "ant": np.ones((2, 6), np.float32)}
        model = two_headed()
        assert [array.shape for array in pack_inputs(model, x)] == [(2, 4), (2, 6)]
        named = keras.Model({tensor.name: tensor for tensor in model.inputs}, model.outputs)
        assert pack_inputs(named, x).keys() == {"zebra", "ant"}
        assert [output.shape for output in predict(named, x)] == [(2, 2), (2, 3)]


def test_agreement() -> None:
    wanted = {"a": np.array([[1, 2], [4, 3]], np.float32), "b": np.ones((2, 1), np.float32)}
    got = {"b": np.ones((2, 1), np.float32), "a": np.array([[1, 2], [3, 3.5]], np.float32)}
    first, second = compare_outputs(wanted, got)
    assert first.output == "a" and first.top1 == 0.5 and first.max_abs_error == 1.0
    assert first.sqnr_db == pytest.approx(10 * np.log10(30 / 1.25))
    assert dataclasses.astuple(second) == ("b", None, None, 0.0)


def test_the_table_shows_dashes_for_what_is_not_known() -> None:
    table = summary_table(
        {
            "model": "m",
            "accuracy": {"float": None, "samples": 3},
            "options": {"scheme": "int8"},
            "agreement": [{"output": "o", "top1": None, "sqnr_db": None, "max_abs_error": 0.0}],
        }
    )
    assert [list(column.cells) for column in table.columns] == [["o"], ["-"], ["-"], ["0"]]
