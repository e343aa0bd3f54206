"""Post-training quantization with all its choices, on a net trained in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits_models import sqnr_db, train_digits_net
from keras_marks import KERAS

from edgekiln.errors import BadInputError, UnsupportedOpError
from edgekiln.quantize import litert
from edgekiln.quantize.audit import audit
from edgekiln.quantize.calibration import CalibrationMethod, choose_range
from edgekiln.quantize.histogram import make_histogram
from edgekiln.quantize.ptq import (
    PtqConfig,
    calibrate,
    make_ptq_model,
    quantize_ptq,
    read_inputs,
)
from edgekiln.quantize.qat import (
    activation_quantizers,
    calibrate_ranges,
    weight_quantizers,
)
from edgekiln.quantize.scheme import Scheme
from edgekiln.train.datasets import load_dataset
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
DIGITS = load_dataset("digits")
TEST, LABELS = DIGITS.x_test, DIGITS.y_test
SAMPLES = DIGITS.x_train[:100]
DATA = {"image": SAMPLES}


@pytest.fixture(scope="module")
def net() -> Any:
    return train_digits_net()


@pytest.fixture(scope="module")
def expected(net: Any) -> np.ndarray:
    """What the float model gives for the test samples."""
    return np.asarray(net.predict(TEST, verbose=0))


@pytest.fixture(scope="module")
def eight(net: Any) -> Any:
    """The model with 8 bits; every test calibrates it as it wants."""
    return make_ptq_model(net, DATA, PtqConfig())


def accuracy(outputs: np.ndarray) -> float:
    return float(np.mean(outputs.argmax(axis=-1) == LABELS))


@pytest.mark.parametrize("method", CalibrationMethod)
def test_eight_bits_by_any_calibration_lose_little(
    eight: Any, expected: np.ndarray, method: CalibrationMethod
) -> None:
    calibrate(eight, DATA, method)
    outputs = eight.predict(TEST, verbose=0)
    assert accuracy(outputs) >= accuracy(expected) - 0.02
    assert sqnr_db(expected, outputs) > 20.0


def test_minmax_is_what_the_quantizers_themselves_find(eight: Any) -> None:
    def ranges() -> dict[str, tuple[float, float]]:
        return {name: each.range for name, each in activation_quantizers(eight).items()}

    calibrate(eight, DATA, CalibrationMethod.MSE)
    calibrate(eight, DATA)
    found = ranges()
    calibrate_ranges(eight, SAMPLES)
    for name, wanted in ranges().items():
        assert found[name] == pytest.approx(wanted)


@pytest.mark.parametrize("bits", [16, 8])
def test_ranges_are_those_of_the_float_activations(net: Any, eight: Any, bits: int) -> None:
    for quantizer in activation_quantizers(eight).values():
        quantizer.bits = bits
    method = CalibrationMethod.MSE
    ranges = calibrate(eight, DATA, method)
    assert {"image", "stem", "depthwise", "pointwise", "hidden", "probabilities"} <= set(ranges)
    stem = keras.Model(net.input, net.get_layer("stem_relu").output).predict(SAMPLES, verbose=0)
    wanted = choose_range(make_histogram(stem), method, bits=bits, symmetric=bits == 16)
    assert ranges["stem"] == pytest.approx(wanted, rel=1e-3)
    found = activation_quantizers(eight)["stem"].range
    assert found[1] == pytest.approx(wanted.high, rel=0.01)
    assert found[0] == pytest.approx(-found[1] if bits == 16 else 0.0)


def test_clipping_weights_makes_the_error_of_every_kernel_less(net: Any) -> None:
    errors = []
    for weight_range in ("max", "mse"):
        config = PtqConfig(weight_bits=4, weight_range=weight_range)
        model = make_ptq_model(net, {"image": SAMPLES[:4]}, config)
        errors.append(
            {
                name: float(np.square(np.asarray(layer.quantized_kernel() - layer.kernel)).sum())
                for name, layer in weight_quantizers(model).items()
            }
        )
    assert all(errors[1][name] < 0.99 * errors[0][name] for name in errors[0])


def test_single_layers_keep_eight_bits(net: Any) -> None:
    config = PtqConfig(weight_bits=4, layer_weight_bits={"stem": 8, "hidden": 8})
    model = make_ptq_model(net, {"image": SAMPLES[:4]}, config)
    widths = {name: layer.weight_bits for name, layer in weight_quantizers(model).items()}
    assert widths == {"stem": 8, "depthwise": 4, "pointwise": 4, "hidden": 8, "probabilities": 4}


EVERYTHING = PtqConfig(
    calibration=CalibrationMethod.MSE,
    weight_bits=4,
    layer_weight_bits={"depthwise": 8},  # LiteRT has no kernel for it with 4 bits.
    weight_range="mse",
    equalize=True,
    bias_correction=True,
)


def test_a_file_with_everything(net: Any, expected: np.ndarray, tmp_path: Path) -> None:
    before = [weight.copy() for weight in net.get_weights()]
    quantize_ptq(net, SAMPLES, EVERYTHING, tmp_path / "m.tflite")
    for old, new in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    tflite = (tmp_path / "m.tflite").read_bytes()
    audit(tflite, Scheme.INT8, "m")
    outputs = make_ptq_model(net, DATA, EVERYTHING).predict(TEST, verbose=0)
    assert sqnr_db(expected, outputs) > 5.0
    measured = litert.measure_accuracy(tflite, TEST, LABELS, "m")
    assert measured == pytest.approx(accuracy(outputs), abs=0.01)


def test_sixteen_bit_activations_go_through_the_converter(net: Any, tmp_path: Path) -> None:
    config = PtqConfig(activation_bits=16, equalize=True)
    assert config.uses_converter and PtqConfig().uses_converter
    quantize_ptq(net, [SAMPLES[:20]], config, tmp_path / "m.tflite")
    audit((tmp_path / "m.tflite").read_bytes(), Scheme.INT16X8, "m")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"calibration": "kl"},
            r"ptq: calibration; got kl; allowed: minmax or percentile or mse or",
        ),
        ({"percentile": 50.0}, r"ptq: percentile; got 50\.0; allowed: \(50, 100\]"),
        ({"weight_bits": 2}, "ptq: weight_bits; got 2; allowed: 8 or 4"),
        ({"layer_weight_bits": {"a": 3}}, "ptq: layer_weight_bits of 'a'; got 3; allowed: 8 or 4"),
        ({"weight_range": "kl"}, "ptq: weight_range; got kl; allowed: max or mse"),
        ({"activation_bits": 4}, "ptq: activation_bits; got 4; allowed: 8 or 16"),
        (
            {"activation_bits": 16, "weight_bits": 4, "calibration": "mse"},
            "16-bit activations are calibrated by the converter, .* got calibration mse, weight_bi",
        ),
        (
            {"activation_bits": 16, "bias_correction": True},
            "got bias_correction; allowed: equal",
        ),
    ],
)
def test_choices_that_are_not_possible(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        PtqConfig(**values)


def test_names_of_calibrations_are_taken_as_text(net: Any) -> None:
    assert not PtqConfig(calibration="mse").uses_converter  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [PtqConfig(), EVERYTHING])
def test_samples_of_another_shape(net: Any, config: PtqConfig, tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        quantize_ptq(net, SAMPLES[:, :7], config, tmp_path / "m.tflite", where="net.keras")
    assert str(caught.value) == (
        "net.keras: the representative data do not fit the model's input; "
        "got samples of shape (7, 8, 1); allowed: shape (8, 8, 1)"
    )


def test_a_layer_without_a_fake_quantized_form_is_named(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((4, 3)), layers.GRU(3, name="gru"), layers.Dense(2)])
    samples = np.zeros((2, 4, 3), np.float32)
    with pytest.raises(UnsupportedOpError, match=r"layer 'gru' .*has no fake-quantized form"):
        quantize_ptq(model, samples, PtqConfig(weight_bits=4), tmp_path / "m.tflite")


def test_activations_that_are_not_finite_are_named(net: Any) -> None:
    model = keras.Sequential([layers.Input((2,), name="x"), layers.Dense(2, name="dense")])
    model.layers[0].set_weights([np.full((2, 2), 3e38, np.float32), np.zeros(2, np.float32)])
    with pytest.raises(BadInputError, match=r"^dense: values to calibrate on hold NaN or infinity"):
        make_ptq_model(model, {"x": np.ones((4, 2), np.float32)}, PtqConfig())


def test_inputs_are_read_in_the_order_of_the_model() -> None:
    left, right = layers.Input((3,), name="left"), layers.Input((4,), name="right")
    model = keras.Model([left, right], layers.Concatenate()([left, right]))
    one, other = np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)
    assert list(read_inputs(model, {"right": other, "left": one}, "m")) == ["left", "right"]
