"""Bias correction: the means of all channels are those of the float model afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from digits_models import sqnr_db, train_digits_net
from keras_marks import KERAS

from edgekiln.quantize.bias_correction import correct_biases
from edgekiln.quantize.ptq import PtqConfig, make_ptq_model
from edgekiln.quantize.qat import observing, weight_quantizers
from edgekiln.train.datasets import load_dataset
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
DIGITS = load_dataset("digits")
DATA = {"image": DIGITS.x_train[:100]}


@pytest.fixture(scope="module")
def net() -> Any:
    return train_digits_net()


def preactivation_means(model: Any, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What each layer gives on average before its activation, by running the model eagerly."""
    means: dict[str, list[np.ndarray]] = {}
    quantized = weight_quantizers(model)
    activations = {name: layer.activation for name, layer in quantized.items()}

    def recording(name: str) -> Any:
        def call(values: Any) -> Any:
            means.setdefault(name, []).append(np.asarray(values))
            return activations[name](values)

        return call

    for name, layer in quantized.items():
        layer.activation = recording(name)
    try:
        model(list(data.values()) if len(data) > 1 else next(iter(data.values())))
    finally:
        for name, layer in quantized.items():
            layer.activation = activations[name]
    return {
        name: np.concatenate([each.reshape(-1, each.shape[-1]) for each in values]).mean(axis=0)
        for name, values in means.items()
    }


@pytest.mark.parametrize("bits", [8, 4])
def test_every_channel_has_the_mean_of_the_float_model(net: Any, bits: int) -> None:
    model = make_ptq_model(net, DATA, PtqConfig(weight_bits=bits, weight_range="mse"))
    with observing(model):
        expected = preactivation_means(model, DATA)
    before = preactivation_means(model, DATA)
    corrections = correct_biases(model, DATA)
    after = preactivation_means(model, DATA)
    assert [each.layer for each in corrections] == list(expected)
    for each in corrections:
        old = np.abs(before[each.layer] - expected[each.layer]).max()
        new = np.abs(after[each.layer] - expected[each.layer]).max()
        # Other sums, as another CPU makes them, move a value next to a border to the other code.
        assert new < 2e-3 and new < 0.1 * old
        assert 0 < each.mean_shift <= each.largest_shift
    assert corrections[0].largest_shift == pytest.approx(
        np.abs(before["stem"] - expected["stem"]).max(), rel=1e-3
    )


def test_four_bit_weights_lose_less(net: Any) -> None:
    expected = net.predict(DIGITS.x_test, verbose=0)
    plain, corrected = (
        make_ptq_model(net, DATA, PtqConfig(weight_bits=4, bias_correction=correction))
        for correction in (False, True)
    )
    noise = [sqnr_db(expected, m.predict(DIGITS.x_test, verbose=0)) for m in (plain, corrected)]
    assert noise[1] > noise[0] + 1.0


def test_layers_that_are_used_twice_and_several_inputs() -> None:
    keras.utils.set_random_seed(7)
    left, right = layers.Input((6,), name="left"), layers.Input((6,), name="right")
    shared = layers.Dense(5, activation="relu", name="shared")
    joined = layers.Concatenate(name="joined")([shared(left), shared(right)])
    model = keras.Model([left, right], layers.Dense(3, name="last")(joined))
    rng = np.random.default_rng(3)
    data = {name: rng.normal(1, 1, (50, 6)).astype(np.float32) for name in ("left", "right")}
    quantized = make_ptq_model(model, data, PtqConfig(weight_bits=4))
    with observing(quantized):
        expected = preactivation_means(quantized, data)
    corrections = correct_biases(quantized, data)
    assert [each.layer for each in corrections] == ["shared", "last"]
    after = preactivation_means(quantized, data)
    for name in ("shared", "last"):
        np.testing.assert_allclose(after[name], expected[name], atol=2e-4)


def test_activations_are_left_as_they_were(net: Any) -> None:
    model = make_ptq_model(net, DATA, PtqConfig())
    before = {name: layer.activation for name, layer in weight_quantizers(model).items()}
    kernels = {name: layer.weight_codes() for name, layer in weight_quantizers(model).items()}
    correct_biases(model, DATA)
    for name, layer in weight_quantizers(model).items():
        assert layer.activation is before[name]
        np.testing.assert_array_equal(layer.weight_codes(), kernels[name])
