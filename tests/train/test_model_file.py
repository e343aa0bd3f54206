"""Reading and writing model files, those of strangers included."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError, BadModelError
from edgekiln.train import unpack
from edgekiln.train.model_file import read_model, write_model
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers


def small_model() -> keras.Model:
    return keras.Sequential([layers.Input((3,)), layers.Dense(2, name="only")])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model = small_model()
    write_model(model, tmp_path / "new" / "a model.keras")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a model.keras"]
    again = read_model(tmp_path / "new" / "a model.keras")
    for one, two in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
def test_missing_file(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(BadInputError, match=r"none\.[a-z0-9]+: no such file"):
        read_model(tmp_path / f"none{suffix}")


def test_other_suffix(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(BadInputError, match=r"model\.onnx: is not a Keras model file; allowed"):
        read_model(tmp_path / "model.onnx")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    "content", [b"", b"no model", b"PK\x03\x04" + bytes(60), b"\x89HDF\r\n\x1a\n" + bytes(60)]
)
def test_damaged_file(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(BadModelError) as caught:
        read_model(path)
    assert str(caught.value).startswith(f"{path}: is not a Keras ")
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_file(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"model{suffix}"
    save(small_model(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(BadModelError, match="is not a Keras"):
        read_model(path)


def save(model: keras.Model, path: Path) -> None:
    if path.suffix == ".keras":
        return write_model(model, path)
    with pytest.MonkeyPatch.context() as patch:  # Keras calls the format legacy
        patch.setattr("absl.logging.warning", lambda *arguments: None)
        model.save(path)


def edit_zip(path: Path, member: str, change: Callable[[Any], Any]) -> None:
    """Changes a JSON member of a .keras file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[member] = json.dumps(change(json.loads(members[member]))).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def edit_h5(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the configuration of every layer in a .h5 file."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            change(layer)
        file.attrs["model_config"] = json.dumps(config)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    write_model(small_model(), path)
    data = bytearray(path.read_bytes())
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    data[local + 6] |= 1
    data[central + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(BadModelError, match=r"m\.keras: is an encrypted zip file"):
        read_model(path)


def test_a_zip_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("thesis.tex", "")
    with pytest.raises(BadModelError, match=r"is not a Keras 3 model .* no item named 'config"):
        read_model(path)


def test_weights_without_a_model(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_group("model_weights")
    with pytest.raises(BadModelError, match=r"w\.h5: holds weights without a model"):
        read_model(tmp_path / "w.h5")


class TestCode:
    @pytest.mark.parametrize("suffix", [".keras", ".h5"])
    @pytest.mark.parametrize("nested", [False, True])
    def test_a_lambda_is_not_run(self, tmp_path: Path, suffix: str, nested: bool) -> None:
        trap = tmp_path / "trap"
        program = f"lambda x: (open({str(trap)!r}, 'w'), x)[1]"
        hidden = layers.Lambda(eval(program), output_shape=(3,), name="surprise")
        inner = [keras.Sequential([layers.Input((3,)), hidden])] if nested else [hidden]
        path = tmp_path / f"model{suffix}"
        save(keras.Sequential([layers.Input((3,)), *inner]), path)
        trap.unlink(missing_ok=True)
        with pytest.raises(BadModelError) as caught:
            read_model(path)
        assert str(caught.value).startswith(
            f"{path}: layer 'surprise' is a Lambda: it holds code, which is not run; replace"
        )
        assert not trap.exists()

    def test_a_function_in_a_layer_is_not_run(self, tmp_path: Path) -> None:
        path = tmp_path / "m.keras"
        save(keras.Sequential([layers.Input((3,)), layers.Lambda(lambda x: x, name="l")]), path)

        def move(config: Any) -> Any:
            (layer,) = config["config"]["layers"][1:]
            layer["class_name"] = "Dense"
            layer["config"] = {
                **{"name": "sly", "trainable": True, "units": 2},
                "activation": layer["config"]["function"],
            }
            return config

        edit_zip(path, "config.json", move)
        with pytest.raises(BadModelError, match="layer 'sly' holds a Python function, which is"):
            read_model(path)

    @pytest.mark.parametrize("class_name", ["TorchModuleWrapper", "TFSMLayer", "JaxLayer"])
    def test_layers_that_carry_programs(self, tmp_path: Path, class_name: str) -> None:
        path = tmp_path / "m.keras"
        write_model(small_model(), path)

        def change(config: Any) -> Any:
            config["config"]["layers"][1]["class_name"] = class_name
            return config

        edit_zip(path, "config.json", change)
        with pytest.raises(BadModelError, match=f"layer 'only' is a {class_name}: it holds code"):
            read_model(path)

    @pytest.mark.parametrize("function", ["system", "exec"])
    def test_functions_of_other_modules(self, tmp_path: Path, function: str) -> None:
        path = tmp_path / "m.keras"
        write_model(small_model(), path)

        def change(config: Any) -> Any:
            config["config"]["layers"][1]["config"]["activation"] = {
                **{"module": "os", "class_name": "function", "config": function},
                "registered_name": "function",
            }
            return config

        edit_zip(path, "config.json", change)
        with pytest.raises(BadModelError, match=f"layer 'only' needs the function {function}, whi"):
            read_model(path)


class Doubled(layers.Layer):  # type: ignore[misc]  # Keras has no types
    def call(self, inputs: Any) -> Any:
        return 2 * inputs


class TestClassesOfOthers:
    @pytest.mark.parametrize("suffix", [".keras", ".h5"])
    def test_they_are_named(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"m{suffix}"
        save(keras.Sequential([layers.Input((3,)), Doubled(name="twice")]), path)
        with pytest.raises(BadModelError) as caught:
            read_model(path)
        message = str(caught.value)
        assert "layer 'twice' needs the class Doubled" in message
        assert "which is not Keras's; allowed: layers and functions of Keras; " in message

    def test_registered_ones_are_known(self, tmp_path: Path) -> None:
        path = tmp_path / "m.keras"
        with keras.saving.custom_object_scope({"Doubled": Doubled}):
            write_model(keras.Sequential([layers.Input((3,)), Doubled()]), path)
            model = read_model(path)
        np.testing.assert_array_equal(model(np.ones((1, 3), np.float32)), 2 * np.ones((1, 3)))

    @pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
    def test_a_model_without_inputs_is_of_no_use(self, tmp_path: Path) -> None:
        path = tmp_path / "m.keras"
        write_model(keras.Sequential([layers.Dense(2)]), path)
        with pytest.raises(BadModelError, match="is not a model with inputs; got Sequential; all"):
            read_model(path)


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict(x, verbose=0))


class TestFilesOfKeras2:
    def test_groups_of_depthwise_convolutions(self, tmp_path: Path) -> None:
        model = keras.Sequential(
            [
                layers.Input((6, 6, 2)),
                layers.DepthwiseConv2D(3, name="depthwise"),
                layers.Conv2DTranspose(3, 2),
                layers.SeparableConv2D(3, 2),
            ]
        )
        path = tmp_path / "m.h5"
        save(model, path)
        edit_h5(path, lambda layer: layer["config"].update(groups=1))
        x = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype(np.float32)
        again = read_model(path)
        np.testing.assert_array_equal(predict(again, x), predict(model, x))
        assert type(again.layers[0]) is layers.DepthwiseConv2D

        edit_h5(path, lambda layer: layer["config"].update(groups=2))
        with pytest.raises(BadModelError, match=r"layer 'depthwise' .* another groups than 1"):
            read_model(path)

    def test_time_first(self, tmp_path: Path) -> None:
        model = keras.Sequential([layers.Input((4, 2)), layers.LSTM(3, name="lstm")])
        path = tmp_path / "m.h5"
        save(model, path)
        edit_h5(path, lambda layer: layer["config"].update(time_major=False))
        x = np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
        np.testing.assert_array_equal(predict(read_model(path), x), predict(model, x))
        edit_h5(path, lambda layer: layer["config"].update(time_major=True))
        with pytest.raises(BadModelError, match=r"layer 'lstm' .* another time_major than False"):
            read_model(path)

    def branched(self, path: Path, function: str, node: Any) -> keras.Model:
        """Writes a model whose sum is a layer of TensorFlow's; returns one with Keras's Add."""
        taken = layers.Input((3,), name="in")
        sides = [layers.Dense(2, name=name)(taken) for name in ("left", "right")]
        model = keras.Model(taken, layers.Add(name="sum")(sides))
        save(model, path)

        def change(layer: dict[str, Any]) -> None:
            if layer["class_name"] == "Add":
                layer["class_name"] = "TFOpLambda"
                layer["config"] = {
                    **{"name": "sum", "trainable": True, "dtype": "float32"},
                    "function": function,
                }
                layer["inbound_nodes"] = [node]
            elif layer["class_name"] == "Dense":
                layer["inbound_nodes"] = [[["in", 0, 0, {}]]]

        edit_h5(path, change)
        return model

    def test_sums_of_two_tensors(self, tmp_path: Path) -> None:
        node = ["left", 0, 0, {"y": ["right", 0, 0], "name": None}]
        model = self.branched(tmp_path / "m.h5", "__operators__.add", node)
        x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
        again = read_model(tmp_path / "m.h5")
        np.testing.assert_array_equal(predict(again, x), predict(model, x))
        assert type(again.get_layer("sum")) is layers.Add

    @pytest.mark.parametrize(
        ("function", "argument"),
        [("math.floormod", ["right", 0, 0]), ("math.add", 1.5), ("math.add", [1.5, 2.5])],
    )
    def test_other_functions_are_named(
        self, tmp_path: Path, function: str, argument: object
    ) -> None:
        self.branched(tmp_path / "m.h5", function, ["left", 0, 0, {"y": argument}])
        with pytest.raises(BadModelError, match=f"layer 'sum' calls TensorFlow's {function}, whi"):
            read_model(tmp_path / "m.h5")


#: Models of Keras 2 with the float .tflite that lies beside them, if there is one.
OLD_MODELS = {
    "mlperf_tiny/anomaly_detection/ad01": "ad01_fp32",
    "mlperf_tiny/image_classification/pretrainedResnet": "pretrainedResnet",
    "mlperf_tiny/streaming_wakeword/str_ww_ref_model": None,
    "mlperf_tiny/visual_wake_words/vww_96": "vww_96_float",
    "tinymaix/cifar10": None,
    "tinymaix/mnist_arduino": None,
    "tinymaix/mnist_dw": "mnist_dw_f",
    "tinymaix/mnist_fc": None,
    "tinymaix/mnist_rect": None,
    "tinymaix/mnist_resnet": "mnist_resnet_f",
    "tinymaix/mnist_same": None,
    "tinymaix/mnist_valid": "mnist_valid_f",
    "tinymaix/vww96": None,
}


def test_all_old_models_are_known(shared: Path) -> None:
    found = {str(p.relative_to(shared / "models"))[:-3] for p in shared.glob("models/**/*.h5")}
    assert found == set(OLD_MODELS)


@pytest.mark.parametrize("name", OLD_MODELS)
def test_real_models_of_keras_2(shared: Path, name: str) -> None:
    path = shared / "models" / f"{name}.h5"
    model = read_model(path)
    shape = model.inputs[0].shape[1:]
    x = np.random.default_rng(0).uniform(0, 1, (3, *shape)).astype(np.float32)
    if OLD_MODELS[name] is None:
        assert np.isfinite(predict(model, x)).all()
        return
    if "ad01" in name:
        drop_biases(model)
    got = predict(model, x)
    want = run_tflite(path.with_name(f"{OLD_MODELS[name]}.tflite"), x).reshape(got.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())


def drop_biases(model: keras.Model) -> None:
    """Sets the biases before the batch norms to zero: that .tflite was written without them."""
    for layer, following in zip(model.layers, model.layers[1:], strict=False):
        if isinstance(following, layers.BatchNormalization):
            layer.bias.assign(np.zeros(layer.bias.shape))


def run_tflite(path: Path, x: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in x:
        interpreter.set_tensor(taken["index"], sample.reshape(taken["shape"]))
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(given["index"])[0])
    return np.stack(outputs)


@pytest.mark.parametrize("half", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_mixed_precision_computes_in_float32(tmp_path: Path, half: str) -> None:
    model = keras.Sequential([layers.Input((3,)), layers.Dense(2, dtype=half), layers.ReLU()])
    write_model(model, tmp_path / "m.keras")
    again = read_model(tmp_path / "m.keras")
    assert {layer.compute_dtype for layer in again.layers} == {"float32"}
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    exact = np.maximum(x @ np.asarray(model.layers[0].kernel), 0)
    np.testing.assert_allclose(np.asarray(again(x)), exact, rtol=1e-6)


def test_a_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(small_model(), tmp_path / "m.keras")
    monkeypatch.setattr(unpack, "memory_bytes", lambda: 2000)
    with pytest.raises(BadInputError, match=r"m\.keras: unpacks to more .*: at most 1,000"):
        read_model(tmp_path / "m.keras")
