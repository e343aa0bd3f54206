"""Conversion to ``.tflite`` of all schemes, in its worker process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras_marks import KERAS

from edgekiln.errors import BadInputError, BadModelError
from edgekiln.quantize import litert, worker
from edgekiln.quantize.affine import dequantize_array, quantize_array
from edgekiln.quantize.audit import audit, audit_int8
from edgekiln.quantize.converter import convert, convert_float, convert_int8
from edgekiln.quantize.representative import Representative, check_representative
from edgekiln.quantize.scheme import Scheme
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


def run_real(tflite: bytes, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Runs a model of any scheme on real values by the names of its inputs."""
    interpreter = Interpreter(
        model_content=tflite, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    runner = interpreter.get_signature_runner()
    details = {**runner.get_input_details(), **runner.get_output_details()}

    def quantization(name: str) -> tuple[float, int, Any]:
        scale, zero_point = details[name]["quantization"]
        return scale, zero_point, details[name]["dtype"]

    def encode(name: str, values: np.ndarray) -> np.ndarray:
        scale, zero_point, dtype = quantization(name)
        return quantize_array(values, scale, zero_point, dtype) if scale else values

    (result,) = runner.get_output_details()
    scale, zero_point, _ = quantization(result)
    outputs = [
        runner(**{name: encode(name, array[n : n + 1]) for name, array in inputs.items()})[result]
        for n in range(len(next(iter(inputs.values()))))
    ]
    found = np.concatenate(outputs)
    return dequantize_array(found, scale, zero_point) if scale else found


def test_float_equals_keras(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_cnn(tmp_path / "m.keras")
    convert_float(tmp_path / "m.keras", tmp_path / "out" / "m.tflite")
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "Converting to float TFLite" in err
    outputs = run_real((tmp_path / "out" / "m.tflite").read_bytes(), {"image": INPUTS})
    np.testing.assert_allclose(outputs, model.predict(INPUTS, verbose=0), atol=1e-6)


def test_int8_is_near_keras_and_repeats(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_cnn(tmp_path / "m.keras")
    convert_int8(tmp_path / "m.keras", INPUTS, tmp_path / "m.tflite")
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "Quantizing to int8" in err
    tflite = (tmp_path / "m.tflite").read_bytes()
    audit_int8(tflite, "m")
    assert litert.read_input_spec(tflite, "m").shape == (6, 6, 2)
    outputs = run_real(tflite, {"image": INPUTS})
    assert np.abs(outputs - model.predict(INPUTS, verbose=0)).max() < 0.03

    convert_int8(tmp_path / "m.keras", INPUTS, tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == tflite


def test_the_input_range_comes_from_the_representative_data(tmp_path: Path) -> None:
    make_cnn(tmp_path / "m.keras")
    tflite = convert_here(tmp_path / "m.keras", Scheme.INT8, INPUTS * 3 + 1)
    spec = litert.read_input_spec(tflite, "m")
    low, high = dequantize_array(np.array([-128, 127], np.int8), spec.scale, spec.zero_point)
    assert low == pytest.approx(-2, abs=0.05) and high == pytest.approx(4, abs=0.05)


def test_a_layer_without_an_int8_form_is_named(tmp_path: Path) -> None:
    make(tmp_path / "m.keras", [layers.Flatten(), layers.Dense(5), layers.ELU()])
    with pytest.raises(BadModelError) as caught:
        convert_int8(tmp_path / "m.keras", INPUTS, tmp_path / "m.tflite")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'm.keras'}: is not int8 with fixed shapes throughout")
    assert "got FLOAT32 '" in message and "(ELU, node" in message
    assert not (tmp_path / "m.tflite").exists()


def convert_here(model: Path, scheme: Scheme, samples: Representative | None = None) -> bytes:
    """What `convert` does, without the seconds that a process costs."""
    output, archive = model.with_suffix(".tflite"), model.with_suffix(".npz")
    job = {"model": str(model), "scheme": str(scheme), "output": str(output)}
    job |= {"representative": None, "names": None}
    if samples is not None:
        checked = check_representative(samples, model)
        checked.write(archive)
        job |= {"representative": str(archive), "names": checked.names}
    with warnings.catch_warnings():
        # The converter's calibrator is built on it.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        worker.convert(job, lambda _: None)
    return output.read_bytes()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model with a kernel large enough for every scheme."""
    path = tmp_path_factory.mktemp("wide") / "m.keras"
    return path, make(
        path, [layers.Conv2D(8, 3), layers.ReLU(), layers.Flatten(), layers.Dense(40)]
    )


@pytest.mark.parametrize(
    ("scheme", "error"),
    [
        *[(Scheme.FLOAT32, 1e-6), (Scheme.FLOAT16, 2e-3), (Scheme.DYNAMIC_RANGE, 2e-2)],
        *[(Scheme.INT16X8, 1e-2), (Scheme.INT8, 3e-2)],
    ],
)
def test_every_scheme_gives_its_types_and_is_near_keras(
    wide: tuple[Path, Any], scheme: Scheme, error: float
) -> None:
    path, model = wide
    tflite = convert_here(path, scheme, INPUTS if scheme.needs_representative else None)
    audit(tflite, scheme, "m")
    outputs = run_real(tflite, {"image": INPUTS})
    assert np.abs(outputs - model.predict(INPUTS, verbose=0)).max() < error


def test_int16_activations_have_one_scale_and_biases_of_64_bits(wide: tuple[Path, Any]) -> None:
    interpreter = Interpreter(model_content=convert_here(wide[0], Scheme.INT16X8, INPUTS))
    kinds = {}
    for tensor in interpreter.get_tensor_details():
        kinds.setdefault(tensor["dtype"], set()).update(
            tensor["quantization_parameters"]["zero_points"].tolist()
        )
    assert kinds[np.int16] == {0} and kinds[np.int64] == {0}


@pytest.mark.parametrize("scheme", Scheme)
def test_representative_data_are_asked_for_where_they_are_needed_alone(
    wide: tuple[Path, Any], scheme: Scheme, tmp_path: Path
) -> None:
    needed = scheme.needs_representative
    with pytest.raises(BadInputError, match=f"{scheme} takes {'' if needed else 'no '}representat"):
        convert(wide[0], tmp_path / "m.tflite", scheme, None if needed else INPUTS)


def test_nothing_to_quantize_is_said(tmp_path: Path) -> None:
    make_cnn(tmp_path / "m.keras")
    tflite = convert_here(tmp_path / "m.keras", Scheme.DYNAMIC_RANGE)
    with pytest.raises(BadModelError) as caught:
        audit(tflite, Scheme.DYNAMIC_RANGE, "m")
    assert str(caught.value) == (
        "m: dynamic-range found no weights to convert; got no INT8 "
        "constant; all weights are too small, or in layers without such a form"
    )


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    make_cnn(tmp_path / "m.keras")
    with pytest.raises(BadInputError) as caught:
        convert_here(tmp_path / "m.keras", Scheme.INT8, INPUTS[..., 0])
    assert str(caught.value) == (
        f"{tmp_path / 'm.keras'}: the representative data do not fit the model's input; "
        "got samples of shape (6, 6); allowed: shape (6, 6, 2)"
    )


LEFT = np.random.default_rng(4).uniform(-1, 1, (30, 3)).astype(np.float32)
RIGHT = np.random.default_rng(5).uniform(-8, 8, (30, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("two") / "m.keras"
    keras.utils.set_random_seed(3)
    # Made in another order than they are taken in.
    right, left = layers.Input((4,), name="right"), layers.Input((3,), name="left")
    joined = layers.Concatenate()([layers.Dense(4, activation="relu")(left), right])
    model = keras.Model([left, right], layers.Dense(2)(joined))
    write_model(model, path)
    return path, model


@pytest.mark.parametrize(
    "samples", [[LEFT, RIGHT], {"right": RIGHT, "left": LEFT}], ids=["in order", "by name"]
)
def test_a_model_with_two_inputs(two_inputs: tuple[Path, Any], samples: Representative) -> None:
    path, model = two_inputs
    tflite = convert_here(path, Scheme.INT8, samples)
    outputs = run_real(tflite, {"left": LEFT, "right": RIGHT})
    expected = model.predict([LEFT, RIGHT], verbose=0)
    assert np.abs(outputs - expected).max() < 0.02 * np.ptp(expected)


def test_one_array_for_two_inputs_is_refused(two_inputs: tuple[Path, Any]) -> None:
    with pytest.raises(BadInputError, match=r"number of inputs .* got 1; allowed: 2 \(left, right"):
        convert_here(two_inputs[0], Scheme.INT8, LEFT)


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
