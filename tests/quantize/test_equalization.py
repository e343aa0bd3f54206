"""Cross-layer equalization: outputs stay, weights become even."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.quantize.equalization import equalize_layers, relax_relu6
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
RNG = np.random.default_rng(8)
INPUTS = RNG.uniform(-1, 1, (16, 8, 8, 3)).astype(np.float32)


def uneven(model: Any) -> Any:
    """Gives every layer's channels weights and statistics of very different size."""
    for layer in model.layers:
        weights = layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            shape = weights[0].shape
            layer.set_weights([RNG.uniform(0.2, 2, shape) for _ in weights])
        elif weights:
            sizes = 2.0 ** RNG.uniform(-4, 4, weights[0].shape[-1])
            biases = [RNG.normal(0, 0.3, bias.shape) for bias in weights[1:]]
            layer.set_weights([weights[0] * sizes, *biases])
    return model


def build(*hidden: Any) -> Any:
    keras.utils.set_random_seed(4)
    return uneven(keras.Sequential([layers.Input((8, 8, 3), name="image"), *hidden]))


def conv_net() -> Any:
    """Every kind of pair: conv, depthwise, transposed, flattened, dense; pools and padding."""
    return build(
        layers.Conv2D(6, 3, name="conv1"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.ZeroPadding2D(1),
        layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise"),
        layers.AveragePooling2D(2),
        layers.Conv2D(5, 1, activation="relu", name="pointwise"),
        layers.Conv2DTranspose(4, 2, strides=2, name="transposed"),
        layers.LeakyReLU(0.1),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(7, activation="relu", name="hidden"),
        layers.Dense(4, activation="softmax", name="probabilities"),
    )


def residual_net() -> Any:
    keras.utils.set_random_seed(5)
    image = layers.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(6, 3, padding="same", activation="relu", name="inner1")(x)
    y = layers.Conv2D(6, 3, padding="same", name="inner2")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return uneven(keras.Model(image, layers.Dense(4, name="head")(x)))


def assert_same_outputs(one: Any, other: Any) -> None:
    expected = one.predict(INPUTS, verbose=0)
    outputs = other.predict(INPUTS, verbose=0)
    assert np.abs(outputs - expected).max() <= 1e-4 * np.abs(expected).max()


def ranges(layer: Any, axis: int) -> np.ndarray:
    kernel = np.abs(layer.get_weights()[0])
    return kernel.max(axis=tuple(each for each in range(kernel.ndim) if each != axis % kernel.ndim))


def test_outputs_stay_and_all_pairs_are_found() -> None:
    model = conv_net()
    before = [weight.copy() for weight in model.get_weights()]
    equalization = equalize_layers(model)
    assert_same_outputs(model, equalization.model)
    assert [(pair.first, pair.second) for pair in equalization.pairs] == [
        ("conv1", "depthwise"),
        ("depthwise", "pointwise"),
        ("pointwise", "transposed"),
        ("transposed", "hidden"),
        ("hidden", "probabilities"),
    ]
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_both_layers_have_the_same_ranges_afterwards() -> None:
    model = build(
        layers.Conv2D(6, 3, activation="relu", name="one"),
        layers.Conv2D(5, 3, activation="relu", name="two"),
        layers.Flatten(),
        layers.Dense(4, name="three"),
    )
    equalization = equalize_layers(model)
    one, two, three = (equalization.model.get_layer(name) for name in ("one", "two", "three"))
    np.testing.assert_allclose(ranges(one, -1), ranges(two, -2), rtol=5e-3)
    flattened = np.abs(three.get_weights()[0]).reshape(16, 5, 4).max(axis=(0, 2))
    np.testing.assert_allclose(ranges(two, -1), flattened, rtol=5e-3)
    (pair, _), old = equalization.pairs, model.get_layer("one").get_weights()[0]
    factors = one.get_weights()[0] / old
    assert pair.greatest_factor == pytest.approx(factors.max(), rel=1e-4)
    assert pair.least_factor == pytest.approx(factors.min(), rel=1e-4)
    assert pair.least_factor < pair.greatest_factor / 4


def test_branches_end_chains() -> None:
    model = residual_net()
    equalization = equalize_layers(model)
    assert [(pair.first, pair.second) for pair in equalization.pairs] == [("inner1", "inner2")]
    assert_same_outputs(model, equalization.model)


@pytest.mark.parametrize(
    "between",
    [
        layers.ReLU(6.0),
        layers.Activation("tanh"),
        layers.Activation("softmax"),
        layers.Permute((3, 1, 2)),
        layers.Reshape((4, 72)),
    ],
)
def test_what_is_not_homogeneous_by_channel_ends_a_chain(between: Any) -> None:
    model = build(layers.Conv2D(8, 3), between, layers.Flatten(), layers.Dense(3))
    assert equalize_layers(model).pairs == ()


def test_layers_that_are_used_twice_stay() -> None:
    image = layers.Input((4,), name="x")
    shared = layers.Dense(4, activation="relu", name="shared")
    model = keras.Model(image, layers.Dense(2)(shared(shared(image))))
    assert equalize_layers(model).pairs == ()


def test_grouped_convolutions_and_fused_relu6_stay() -> None:
    grouped = build(layers.Conv2D(4, 3, activation="relu"), layers.Conv2D(4, 1, groups=2))
    bounded = build(layers.Conv2D(4, 3, activation="relu6"), layers.Conv2D(4, 1))
    assert equalize_layers(grouped).pairs == equalize_layers(bounded).pairs == ()


def test_dead_channels_stay_as_they_are() -> None:
    model = build(
        layers.Conv2D(4, 1, activation="relu", name="one"), layers.Conv2D(3, 1, name="two")
    )
    one, two = model.get_layer("one"), model.get_layer("two")
    kernel, bias = one.get_weights()
    kernel[..., 1] = 0.0
    kernel[..., 2] = 1e-30
    one.set_weights([kernel, bias])
    following, rest = two.get_weights()
    following[:, :, 3] = 0.0
    two.set_weights([following, rest])
    equalized = equalize_layers(model).model
    np.testing.assert_array_equal(equalized.get_layer("one").get_weights()[1][1:], bias[1:])
    np.testing.assert_array_equal(
        equalized.get_layer("two").get_weights()[0][:, :, 1:], following[:, :, 1:]
    )
    assert_same_outputs(model, equalized)


def test_relu6_becomes_relu_where_it_never_clips() -> None:
    keras.utils.set_random_seed(6)
    model = keras.Sequential(
        [
            layers.Input((8, 8, 3), name="image"),
            layers.Conv2D(4, 3, activation="relu6", name="small"),
            layers.Conv2D(4, 3, name="conv"),
            layers.ReLU(6.0, name="also_small"),
            layers.Conv2D(4, 1, activation="relu6", name="clipped"),
            layers.Conv2D(2, 1, name="last"),
        ]
    )
    kernel, bias = model.get_layer("clipped").get_weights()
    model.get_layer("clipped").set_weights([kernel, bias + 10])
    relaxed = relax_relu6(model, {"image": INPUTS})
    assert_same_outputs(model, relaxed)
    pairs = [(pair.first, pair.second) for pair in equalize_layers(relaxed).pairs]
    assert pairs == [("small", "conv"), ("conv", "clipped")]
    assert_same_outputs(model, equalize_layers(relaxed).model)


def test_models_without_relu6_are_only_copied() -> None:
    model = conv_net()
    assert_same_outputs(model, relax_relu6(model, {"image": INPUTS}))
