"""MLPerf Tiny's residual network for image classification, on Fashion-MNIST.

Source of the layers: mlcommons/tiny, benchmark/training/image_classification. That one is for
CIFAR-10; here an image has one channel and 28 x 28 pixels.
"""

from __future__ import annotations

from typing import Any

from edgekiln.train.recipe import Augmentation, Recipe


def build_model() -> Any:
    """Returns the model: float32 [N, 28, 28, 1] -> float32 [N, 10], class probabilities."""
    from edgekiln.train.quiet_keras import keras

    layers = keras.layers
    image = layers.Input((28, 28, 1), name="image")
    x = _conv(image, 16, 3, 1, "stem")
    x = layers.ReLU(name="stem_relu")(x)
    for number, (channels, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
        y = _conv(x, channels, 3, stride, f"stack{number}_conv1")
        y = layers.ReLU(name=f"stack{number}_relu1")(y)
        y = _conv(y, channels, 3, 1, f"stack{number}_conv2")
        if stride > 1:
            x = layers.Conv2D(
                channels, 1, strides=stride, padding="same", name=f"stack{number}_shortcut"
            )(x)
        x = layers.Add(name=f"stack{number}_add")([x, y])
        x = layers.ReLU(name=f"stack{number}_relu2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(10, activation="softmax", name="probabilities")(x)
    return keras.Model(image, x, name="resnet8")


def _conv(x: Any, channels: int, size: int, stride: int, name: str) -> Any:
    """Returns a convolution and its batch normalization."""
    from edgekiln.train.quiet_keras import keras

    convolution = keras.layers.Conv2D(
        channels, size, strides=stride, padding="same", use_bias=False, name=name
    )
    return keras.layers.BatchNormalization(name=f"{name}_bn")(convolution(x))


RECIPE = Recipe(
    name="resnet8",
    description="MLPerf Tiny's residual network, on Fashion-MNIST",
    dataset="fashion_mnist",
    build_model=build_model,
    epochs=14,
    batch_size=128,
    learning_rate=4e-3,
    patience=14,
    seed=1,
    augmentation=Augmentation(copies=0, rotation_degrees=0, shift_pixels=0, zoom=0, flip=True),
    pruning=None,
    min_float_accuracy=0.92,
)
