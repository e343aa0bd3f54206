"""Batch normalization folded into the layers before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadModelError
from edgekiln.quantize.batch_norm import fold_batch_norm, remaining_batch_norms
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
IMAGES = np.random.default_rng(3).normal(size=(4, 6, 6, 3)).astype(np.float32)


def randomize(model: Any) -> Any:
    """Gives every weight a value of its own, as after training."""
    generator = np.random.default_rng(5)
    for layer in model._flatten_layers(include_self=False):
        if not isinstance(layer, keras.Model) and layer.weights:
            layer.set_weights([generator.uniform(0.3, 1.2, w.shape) for w in layer.weights])
    return model


def image_model(body: Callable[[Any], Any], shape: tuple[int, ...] = (6, 6, 3)) -> Any:
    image = layers.Input(shape, name="image")
    return randomize(keras.Model(image, body(image), name="small"))


def assert_same_outputs(model: Any, folded: Any, inputs: Any = IMAGES) -> None:
    want, got = (each.predict(inputs, verbose=0) for each in (model, folded))
    for one, other in zip(keras.tree.flatten(want), keras.tree.flatten(got), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, 3, name="linear", use_bias=False),
        layers.Conv2D(6, 3, name="linear", groups=3),
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="linear", use_bias=False),
        layers.SeparableConv2D(5, 3, depth_multiplier=2, name="linear"),
        layers.Conv2DTranspose(4, 3, strides=2, name="linear", use_bias=False),
        layers.Dense(4, name="linear"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_goes_into_a_linear_layer(layer: Any) -> None:
    model = image_model(lambda x: layers.ReLU()(layers.BatchNormalization()(layer(x))))
    before = model.get_weights()
    folded = fold_batch_norm(model)
    assert_same_outputs(model, folded)
    assert remaining_batch_norms(folded) == ()
    assert folded.get_layer("linear").use_bias
    assert [each.name for each in folded.layers] == ["image", "linear", model.layers[-1].name]
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "kind", [layers.Conv1D, layers.DepthwiseConv1D, layers.SeparableConv1D, layers.Conv1DTranspose]
)
def test_goes_into_one_dimension(kind: Any) -> None:
    layer = kind(3) if kind is layers.DepthwiseConv1D else kind(4, 3)
    model = image_model(
        lambda x: layers.BatchNormalization(scale=False)(layer(x)),
        shape=(9, 2),
    )
    folded = fold_batch_norm(model)
    assert remaining_batch_norms(folded) == ()
    inputs = np.random.default_rng(1).normal(size=(4, 9, 2)).astype(np.float32)
    assert_same_outputs(model, folded, inputs)


def test_parts_of_a_normalization_may_be_absent() -> None:
    def body(x: Any) -> Any:
        x = layers.BatchNormalization(center=False, scale=False)(layers.Conv2D(3, 3)(x))
        return layers.BatchNormalization(center=False)(layers.Dense(2)(x))

    model = image_model(body)
    folded = fold_batch_norm(model)
    assert remaining_batch_norms(folded) == ()
    assert_same_outputs(model, folded)


def residual(x: Any) -> Any:
    shared = layers.Dense(3, name="shared")
    x = layers.Conv2D(3, 3, activation="relu")(x)
    x = layers.BatchNormalization(name="after_relu")(x)
    y = layers.Conv2D(3, 3, padding="same")(x)
    z = layers.BatchNormalization(name="of_two_takers")(y)
    x = layers.Add()([x, y, z])
    x = layers.BatchNormalization(name="after_add")(x)
    x = layers.Dropout(0.3, name="kept")(x)
    x = layers.BatchNormalization(name="of_shared")(shared(shared(x)))
    other_axis = layers.BatchNormalization(axis=1, name="other_axis")
    return other_axis(layers.Conv2D(2, 1)(x))


def test_others_stay() -> None:
    model = image_model(residual)
    folded = fold_batch_norm(model)
    assert remaining_batch_norms(folded) == remaining_batch_norms(model)
    assert remaining_batch_norms(folded) == (
        "after_relu",
        "of_two_takers",
        "after_add",
        "of_shared",
        "other_axis",
    )
    assert folded.get_layer("kept").rate == 0.3
    assert len([each for each in folded.layers if each.name.startswith("shared")]) == 1
    assert_same_outputs(model, folded)


def test_a_normalization_whose_input_is_an_output_stays() -> None:
    image = layers.Input((6, 6, 3))
    linear = layers.Conv2D(3, 3)(image)
    model = keras.Model(image, [linear, layers.BatchNormalization(name="stays")(linear)])
    randomize(model)
    assert remaining_batch_norms(fold_batch_norm(model)) == ("stays",)


def test_nested_models_inputs_and_outputs_by_name() -> None:
    inner = keras.Sequential(
        [layers.Input((4, 4, 4)), layers.Conv2D(4, 3), layers.BatchNormalization(name="norm")],
        name="block",
    )
    image, extra = layers.Input((6, 6, 3), name="image"), layers.Input((4,), name="extra")
    x = layers.GlobalAveragePooling2D()(inner(layers.Conv2D(4, 3)(image)))
    x = x + extra
    outputs = {"sum": x, "twice": layers.Dense(2, name="head")(x)}
    model = randomize(keras.Model({"image": image, "extra": extra}, outputs))
    assert remaining_batch_norms(model) == ("block/norm",)
    folded = fold_batch_norm(model)
    assert remaining_batch_norms(folded) == ()
    assert "block_conv2d" in folded.layers[2].name
    inputs = {"image": IMAGES, "extra": np.ones((4, 4), np.float32)}
    want, got = model.predict(inputs, verbose=0), folded.predict(inputs, verbose=0)
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)


def test_a_subclassed_model_is_refused() -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(BadModelError) as caught:
        fold_batch_norm(Own(name="own"))
    assert str(caught.value) == (
        "model 'own': is not a functional or Sequential model whose input shape is known; "
        "build it with keras.Input and keras.Model(inputs, outputs)"
    )


def test_a_layer_with_half_a_configuration_is_named() -> None:
    class Half(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, factor: Callable[[], float], **options: Any) -> None:
            super().__init__(**options)
            self.factor = factor

        def call(self, x: Any) -> Any:
            return x * self.factor()

    model = image_model(lambda x: Half(lambda: 2.0, name="half")(x))
    with pytest.raises(BadModelError, match=r"^layer 'half' \(Half\): cannot be copied"):
        fold_batch_norm(model)
