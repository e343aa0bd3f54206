"""What the criteria say, against formulas and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from channel_models import convnet, inputs_of, outputs_of, residual_net
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.groups import find_groups
from edgekiln.quantize.channels.importance import normalize, score_channels
from edgekiln.quantize.channels.trace import trace
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
LOSS = "sparse_categorical_crossentropy"


def array(variable: Any) -> np.ndarray:
    values: np.ndarray = keras.ops.convert_to_numpy(variable)
    return values


def scores_of(model: Any, makers: tuple[str, ...], importance: Any, **data: Any) -> np.ndarray:
    traced = trace(model)
    (group,) = (group for group in find_groups(traced) if group.makers == makers)
    scores: np.ndarray = score_channels(traced, importance, **data)[group.channels]
    return scores


def labelled(model: Any, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(seed).integers(0, 5, samples)
    return inputs_of(model, seed, samples)[0], labels


def test_l1_sums_over_all_makers() -> None:
    model = residual_net()
    expected = sum(
        np.abs(array(model.get_layer(name).kernel)).sum((0, 1, 2))
        for name in ("stage1_p", "stage1_b")
    )
    np.testing.assert_allclose(scores_of(model, ("stage1_p", "stage1_b"), "l1"), expected, 1e-5)


def test_bn_scale_sums_the_scales() -> None:
    model = residual_net()
    gammas = [np.abs(array(model.get_layer(f"{name}_bn").gamma)) for name in ("stem", "stage0_b")]
    scores = scores_of(model, ("stem", "stage0_b"), "bn_scale")
    np.testing.assert_allclose(scores, gammas[0] + gammas[1], 1e-6)


def test_bn_scale_is_not_defined_without_one() -> None:
    assert np.isnan(scores_of(convnet(), ("hidden",), "bn_scale")).all()


def loss_of(model: Any, inputs: np.ndarray, labels: np.ndarray) -> float:
    probabilities = outputs_of(model, [inputs])[0][np.arange(len(labels)), labels]
    return float(-np.log(probabilities).mean())


@pytest.mark.parametrize("makers", [("conv_b",), ("hidden",)])
def test_taylor_is_the_derivative_by_a_gate(makers: tuple[str, ...]) -> None:
    """Central differences of the loss as the channel, ReLU and all, is scaled by 1 ± h."""
    model = convnet()
    inputs, labels = labelled(model, 20)
    layer, step = model.get_layer(makers[0]), 1e-3
    kernel, bias = array(layer.kernel), array(layer.bias)
    gates = []
    for channel in range(len(bias)):
        losses = []
        for factor in (1 + step, 1 - step):
            scale = np.ones(len(bias))
            scale[channel] = factor
            layer.kernel.assign(kernel * scale)
            layer.bias.assign(bias * scale)
            losses.append(loss_of(model, inputs, labels))
        gates.append((losses[0] - losses[1]) / (2 * step))
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)
    scores = scores_of(model, makers, "taylor", data=(inputs, labels), loss=LOSS)
    np.testing.assert_allclose(np.sqrt(scores), np.abs(gates), rtol=0.05, atol=2e-3)


def test_taylor_is_averaged_over_batches_of_64() -> None:
    model = convnet()
    inputs, labels = labelled(model, 128)
    halves = [
        scores_of(model, ("conv_a",), "taylor", data=(inputs[part], labels[part]), loss=LOSS)
        for part in (slice(64), slice(64, None))
    ]
    whole = scores_of(model, ("conv_a",), "taylor", data=(inputs, labels), loss=LOSS)
    np.testing.assert_allclose(whole, (halves[0] + halves[1]) / 2, rtol=1e-4)


def test_taylor_takes_the_compiled_loss_or_a_function() -> None:
    model = convnet()
    data = labelled(model, 16)
    by_name = scores_of(model, ("conv_a",), "taylor", data=data, loss=LOSS)
    function = keras.losses.sparse_categorical_crossentropy
    np.testing.assert_allclose(
        scores_of(model, ("conv_a",), "taylor", data=data, loss=function), by_name, rtol=1e-5
    )
    model.compile("sgd", LOSS)
    np.testing.assert_allclose(
        scores_of(model, ("conv_a",), "taylor", data=data), by_name, rtol=1e-5
    )


def test_taylor_of_frozen_layers() -> None:
    model = convnet()
    data = labelled(model, 16)
    scores = scores_of(model, ("conv_a",), "taylor", data=data, loss=LOSS)
    model.trainable = False
    frozen = scores_of(model, ("conv_a",), "taylor", data=data, loss=LOSS)
    np.testing.assert_allclose(frozen, scores, rtol=1e-5)
    assert scores.any()


def test_taylor_of_several_inputs_and_outputs() -> None:
    a, b = layers.Input((3,), name="a"), layers.Input((2,), name="b")
    x = layers.Dense(6, activation="relu", name="hidden")(layers.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b}, [layers.Dense(1, name="p")(x), layers.Dense(2)(x)])
    model.compile("sgd", ["mse", "mse"])
    random = np.random.default_rng(0)
    inputs = {"a": random.normal(size=(9, 3)), "b": random.normal(size=(9, 2))}
    labels = [random.normal(size=(9, 1)), random.normal(size=(9, 2))]
    assert scores_of(model, ("hidden",), "taylor", data=(inputs, labels)).any()


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        (None, LOSS, "needs data; pass data="),
        ((np.zeros((2, 8, 8, 1)), np.zeros(2)), None, "needs a loss; pass loss="),
        ((np.zeros((2, 8, 8, 1)), np.zeros(2)), "mean_of_nothing", "not one of Keras's"),
        ((np.zeros((2, 8, 8, 1)), np.zeros(3)), LOSS, "the same number of samples.*got 2, 3"),
        ((np.zeros((0, 8, 8, 1)), np.zeros(0)), LOSS, "at least one; got 0"),
        ((np.full((2, 8, 8, 1), np.nan), np.zeros(2)), LOSS, "loss is not finite; got nan"),
    ],
)
def test_what_taylor_refuses(data: Any, loss: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        score_channels(trace(convnet()), "taylor", data, loss)


def test_normalization() -> None:
    traced = trace(convnet())
    groups = [group for group in find_groups(traced) if not group.pinned]
    scores = score_channels(traced, "l1")
    for group in groups:
        own = scores[group.channels]
        by_mean = normalize(scores, groups, "mean")[group.channels]
        np.testing.assert_allclose(by_mean, own / own.mean())
        by_norm = normalize(scores, groups, "l2")[group.channels]
        np.testing.assert_allclose(by_norm, own / np.sqrt(np.sum(own**2)))
        np.testing.assert_array_equal(normalize(scores, groups, "none")[group.channels], own)
    zeros = np.zeros_like(scores)
    np.testing.assert_array_equal(normalize(zeros, groups, "l2"), zeros)
