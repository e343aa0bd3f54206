"""Sensitivity: the spoiled layer is found, and what helps is measured."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from digits_models import train_digits_net
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.quantize.ptq import PtqConfig, make_ptq_model
from edgekiln.quantize.sensitivity import (
    EXCLUDED,
    WIDE_ACTIVATIONS,
    WIDE_WEIGHTS,
    SensitivityReport,
    measure_sensitivity,
)
from edgekiln.train.datasets import load_dataset
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
DIGITS = load_dataset("digits")
CALIBRATION = {"image": DIGITS.x_train[:60]}
DATA, LABELS = {"image": DIGITS.x_test[:120]}, DIGITS.y_test[:120]


@pytest.fixture(scope="module")
def net() -> Any:
    return train_digits_net()


@pytest.fixture(scope="module")
def four_bits(net: Any) -> SensitivityReport:
    return measure_sensitivity(net, CALIBRATION, DATA, PtqConfig(weight_bits=4), LABELS)


def test_every_layer_is_measured_and_sorted(four_bits: SensitivityReport, net: Any) -> None:
    names = {each.layer for each in four_bits.layers}
    assert {"image", "stem", "depthwise", "pointwise", "hidden", "probabilities"} <= names
    order = [(each.alone.accuracy, each.alone.sqnr_db) for each in four_bits.layers]
    assert order == sorted(order)
    expected = np.mean(net.predict(DATA["image"], verbose=0).argmax(axis=-1) == LABELS)
    assert four_bits.float_score.accuracy == expected
    assert (four_bits.measure, four_bits.samples, four_bits.trained) == ("accuracy", 120, None)


def test_scores_are_those_of_the_models_they_speak_of(
    four_bits: SensitivityReport, net: Any
) -> None:
    def accuracy(config: PtqConfig) -> float:
        outputs = make_ptq_model(net, CALIBRATION, config).predict(DATA["image"], verbose=0)
        return float(np.mean(outputs.argmax(axis=-1) == LABELS))

    assert four_bits.quantized_score.accuracy == accuracy(PtqConfig(weight_bits=4))
    hidden = next(each for each in four_bits.layers if each.layer == "hidden")
    remedies = {each.name: each for each in hidden.remedies}
    assert remedies.keys() == {WIDE_ACTIVATIONS, WIDE_WEIGHTS, EXCLUDED}
    wide = PtqConfig(weight_bits=4, layer_weight_bits={"hidden": 8})
    assert remedies[WIDE_WEIGHTS].score.accuracy == accuracy(wide)
    assert remedies[EXCLUDED].score == hidden.without
    for each in hidden.remedies:
        gain = each.score.accuracy - four_bits.quantized_score.accuracy
        assert each.regained == pytest.approx(gain)


def test_one_quantized_layer_loses_less_than_all(four_bits: SensitivityReport) -> None:
    for each in four_bits.layers:
        assert each.alone.sqnr_db > four_bits.quantized_score.sqnr_db
        regained = [remedy.regained for remedy in each.remedies]
        assert regained == sorted(regained, reverse=True)


def spoiled_net() -> Any:
    """Two layers, of which the first has one output a thousand times the others."""
    keras.utils.set_random_seed(3)
    x = layers.Input((6,), name="x")
    model = keras.Model(
        x, layers.Dense(5, name="last")(layers.Dense(8, activation="relu", name="spoiled")(x))
    )
    kernel, bias = model.get_layer("spoiled").get_weights()
    bias[0] = 1000.0
    model.get_layer("spoiled").set_weights([kernel, bias])
    following, rest = model.get_layer("last").get_weights()
    following[0] = 0.0
    model.get_layer("last").set_weights([following, rest])
    return model


def test_the_layer_that_costs_is_named_with_what_helps() -> None:
    data = {"x": np.random.default_rng(2).normal(size=(100, 6)).astype(np.float32)}
    report = measure_sensitivity(spoiled_net(), data, data, PtqConfig())
    worst = report.layers[0]
    assert report.measure == "agreement" and report.float_score.accuracy == 1.0
    assert worst.layer == "spoiled" and worst.alone.accuracy < 0.9
    assert worst.without.accuracy > 0.9
    wide = next(each for each in worst.remedies if each.name == WIDE_ACTIVATIONS)
    assert wide.regained > 0.1 and wide.regained_db > 10
    assert WIDE_WEIGHTS not in {each.name for each in worst.remedies}


def test_corrected_biases_go_back_with_the_layer_that_stays_float() -> None:
    data = {"x": np.random.default_rng(2).normal(size=(100, 6)).astype(np.float32)}
    keras.utils.set_random_seed(3)
    x = layers.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(5, name="last")(x))
    config = PtqConfig(weight_bits=4, bias_correction=True)
    report = measure_sensitivity(model, data, data, config)
    only_input = next(each for each in report.layers if each.layer == "x").alone
    last = next(each for each in report.layers if each.layer == "last").without
    assert only_input == last and last.sqnr_db > 30


def test_training_is_measured_last(net: Any) -> None:
    trained: list[Any] = []

    def train(model: Any) -> None:
        model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
        model.fit(DIGITS.x_train, DIGITS.y_train, epochs=2, batch_size=64, verbose=0)
        trained.append(model)

    x = layers.Input((8, 8, 1), name="image")
    keras.utils.set_random_seed(1)
    plain = keras.Model(x, layers.Dense(10, activation="softmax")(layers.Flatten()(x)))
    report = measure_sensitivity(plain, CALIBRATION, DATA, PtqConfig(), LABELS, train)
    assert report.trained is not None
    assert report.trained.accuracy > report.quantized_score.accuracy + 0.2
    outputs = trained[0].predict(DATA["image"], verbose=0)
    assert report.trained.accuracy == np.mean(outputs.argmax(axis=-1) == LABELS)
    assert "trained" in str(report.table().title)


def test_the_report_as_json_and_table(four_bits: SensitivityReport) -> None:
    values = json.loads(json.dumps(four_bits.to_json()))
    assert values["measure"] == "accuracy" and values["trained"] is None
    assert [each["layer"] for each in values["layers"]] == [e.layer for e in four_bits.layers]
    table = four_bits.table()
    assert table.row_count == len(four_bits.layers)
    assert list(table.columns[0].cells) == [each.layer for each in four_bits.layers]
    assert "accuracy on 120 samples, float" in str(table.title)


def test_the_table_shows_a_remedy_that_can_be_had(four_bits: SensitivityReport) -> None:
    """A layer that is left float is no integer model; what it would regain has its own column."""
    names = [each.layer for each in four_bits.layers]
    cells = dict(zip(names, _last_column(four_bits), strict=True))
    assert not any(cell.startswith(EXCLUDED) for cell in cells.values())
    assert cells["hidden"].startswith((WIDE_WEIGHTS, WIDE_ACTIVATIONS))
    assert cells["probabilities_softmax"] == "-"


def _last_column(report: SensitivityReport) -> list[str]:
    return [str(cell) for cell in report.table().columns[-1].cells]


def test_labels_of_another_length_are_refused(net: Any) -> None:
    with pytest.raises(BadInputError, match=r"labels do not fit .* got shape \(3,\); allowed: \("):
        measure_sensitivity(net, CALIBRATION, DATA, PtqConfig(), LABELS[:3])
