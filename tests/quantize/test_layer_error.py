"""Errors of quantized models by layer, in files and in Keras."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits_models import sqnr_db, train_digits_net
from keras_marks import KERAS

from edgekiln.errors import BadModelError
from edgekiln.quantize import litert
from edgekiln.quantize.affine import dequantize_array, quantize_array
from edgekiln.quantize.calibration import CalibrationMethod
from edgekiln.quantize.layer_error import (
    ErrorSums,
    LayerError,
    layer_error_table,
    measure_graph_errors,
    measure_layer_errors,
)
from edgekiln.quantize.ptq import PtqConfig, make_ptq_model, quantize_ptq
from edgekiln.train.datasets import load_dataset
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
DIGITS = load_dataset("digits")
DATA = {"image": DIGITS.x_test[:30]}
CALIBRATION = {"image": DIGITS.x_train[:60]}
GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def net() -> Any:
    return train_digits_net()


@pytest.fixture(scope="module", params=["minmax", "mse"])
def tflite(request: pytest.FixtureRequest, net: Any, tmp_path_factory: Any) -> bytes:
    """By the converter's own calibration, and by way of fake quantization."""
    path = tmp_path_factory.mktemp("m") / "m.tflite"
    config = PtqConfig(calibration=CalibrationMethod(request.param))
    quantize_ptq(net, CALIBRATION["image"], config, path)
    return path.read_bytes()


def test_every_layer_of_a_file_is_found(net: Any, tflite: bytes) -> None:
    errors = measure_layer_errors(net, tflite, DATA, "m")
    assert [each.layer for each in errors] == [
        *("stem_relu", "relu6", "pointwise", "joined", "pool", "flat", "hidden"),
        *("probabilities", "probabilities_softmax"),
    ]
    assert [each.node for each in errors] == list(range(9))
    assert [each.op for each in errors[:4]] == ["CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD"]
    for each in errors:
        assert 15 < each.sqnr_db < 70 and 0.98 < each.cosine <= 1.0
    spec = litert.read_input_spec(tflite, "m")
    codes = quantize_array(DATA["image"], spec.scale, spec.zero_point, np.int8)
    outputs = dequantize_array(litert.run_int8(tflite, codes, "m"), 1 / 256, -128)
    expected = net.predict(DATA["image"], verbose=0)
    assert errors[-1].sqnr_db == pytest.approx(sqnr_db(expected, outputs), abs=0.01)
    assert errors[-1].largest == pytest.approx(np.abs(outputs - expected).max(), rel=1e-4)


def test_errors_in_keras_are_those_of_the_file(net: Any, tflite: bytes) -> None:
    model = make_ptq_model(net, CALIBRATION, PtqConfig())
    graph = {each.layer: each for each in measure_graph_errors(net, model, DATA)}
    file = {each.layer: each for each in measure_layer_errors(net, tflite, DATA, "m")}
    assert {"stem_relu", "relu6", "joined", "hidden", "probabilities"} <= graph.keys()
    for name in graph:
        assert graph[name].sqnr_db == pytest.approx(file[name].sqnr_db, abs=3.0), name


def test_fewer_bits_have_larger_errors(net: Any) -> None:
    eight, four = (
        measure_graph_errors(
            net, make_ptq_model(net, CALIBRATION, PtqConfig(weight_bits=bits)), DATA
        )
        for bits in (8, 4)
    )
    for fine, coarse in zip(eight[:-1], four[:-1], strict=True):
        assert coarse.sqnr_db < fine.sqnr_db - 5 and coarse.cosine < fine.cosine


def test_a_file_of_another_model_is_refused(net: Any) -> None:
    data = (GOLDEN / "digits_cnn_int8.tflite").read_bytes()
    other = keras.Sequential([layers.Input((8, 8, 1), name="image"), layers.ReLU(name="only")])
    with pytest.raises(BadModelError, match=r"^m: shares no layer with the model; got layers only"):
        measure_layer_errors(other, data, DATA, "m")


def test_sums_over_batches_are_those_of_all_values() -> None:
    rng = np.random.default_rng(1)
    x, e = rng.normal(size=(4, 50)), 0.1 * rng.normal(size=(4, 50))
    sums = ErrorSums()
    for expected, error in zip(x, e, strict=True):
        sums.add(expected, expected + error)
    result = sums.result("conv", 3, "CONV_2D")
    assert (result.layer, result.node, result.op) == ("conv", 3, "CONV_2D")
    assert result.sqnr_db == pytest.approx(10 * np.log10(np.sum(x**2) / np.sum(e**2)))
    y = x + e
    cosine = np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y)
    assert result.cosine == pytest.approx(cosine)
    assert result.largest == pytest.approx(np.abs(e).max())


@pytest.mark.parametrize(
    ("expected", "got", "sqnr", "cosine"),
    [
        ([1.0, -2.0], [1.0, -2.0], math.inf, 1.0),
        ([0.0, 0.0], [0.0, 0.0], math.inf, 1.0),
        ([0.0, 0.0], [0.0, 1.0], -math.inf, 0.0),
        ([1.0, 0.0], [0.0, 0.0], 0.0, 0.0),
        ([1.0, 2.0], [-1.0, -2.0], 10 * math.log10(0.25), -1.0),
    ],
)
def test_limits(expected: list[float], got: list[float], sqnr: float, cosine: float) -> None:
    sums = ErrorSums()
    sums.add(expected, got)
    assert sums.sqnr_db == pytest.approx(sqnr) and sums.cosine == pytest.approx(cosine)


def test_errors_as_json_and_table() -> None:
    errors = [
        LayerError("conv", 0, "CONV_2D", 31.25, 0.9995, 0.5),
        LayerError("flat", 1, "RESHAPE", math.inf, 1.0, 0.0),
    ]
    assert json.loads(json.dumps([each.to_json() for each in errors]))[1] == {
        **{"layer": "flat", "node": 1, "op": "RESHAPE"},
        **{"sqnr_db": None, "cosine": 1.0, "largest": 0.0},
    }
    cells = [list(column.cells) for column in layer_error_table(errors).columns]
    assert cells[0] == ["conv", "flat"] and cells[3] == ["31.2", "inf"]
