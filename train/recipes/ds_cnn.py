"""Depthwise separable CNN, as keyword spotting uses it, on Fashion-MNIST.

Source of the layers: Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers"
(arXiv:1711.07128), DS-CNN small: 64 channels, four separable blocks.
"""

from __future__ import annotations

from typing import Any

from edgekiln.train.recipe import Augmentation, Recipe

_CHANNELS = 64


def build_model() -> Any:
    """Returns the model: float32 [N, 28, 28, 1] -> float32 [N, 10], class probabilities."""
    from edgekiln.train.quiet_keras import keras

    layers = keras.layers

    def normalized(x: Any, name: str) -> Any:
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    image = layers.Input((28, 28, 1), name="image")
    x = layers.Conv2D(_CHANNELS, 3, strides=2, padding="same", use_bias=False, name="conv")(image)
    x = normalized(x, "conv")
    for block in range(1, 5):
        name = f"block{block}_depthwise"
        x = normalized(
            layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=name)(x), name
        )
        name = f"block{block}_pointwise"
        x = normalized(layers.Conv2D(_CHANNELS, 1, use_bias=False, name=name)(x), name)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2)(x)
    x = layers.Dense(10, activation="softmax", name="probabilities")(x)
    return keras.Model(image, x, name="ds_cnn")


RECIPE = Recipe(
    name="ds_cnn",
    description="depthwise separable CNN on Fashion-MNIST",
    dataset="fashion_mnist",
    build_model=build_model,
    epochs=10,
    batch_size=128,
    learning_rate=4e-3,
    patience=10,
    seed=1,
    augmentation=Augmentation(copies=0, rotation_degrees=0, shift_pixels=0, zoom=0, flip=True),
    pruning=None,
    min_float_accuracy=0.90,
)
