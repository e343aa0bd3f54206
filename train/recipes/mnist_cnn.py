"""The well-known small CNN on MNIST: two convolutions, a pool, a dense layer, dropout."""

from __future__ import annotations

from typing import Any

from edgekiln.train.recipe import Augmentation, Recipe


def build_model() -> Any:
    """Returns the model: float32 [N, 28, 28, 1] -> float32 [N, 10], class probabilities."""
    from edgekiln.train.quiet_keras import keras

    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((28, 28, 1), name="image"),
            layers.Conv2D(32, 3, activation="relu", name="conv1"),
            layers.Conv2D(64, 3, activation="relu", name="conv2"),
            layers.MaxPooling2D(2),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(128, activation="relu", name="hidden"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="mnist_cnn",
    )


RECIPE = Recipe(
    name="mnist_cnn",
    description="CNN on MNIST: conv32, conv64, pool, dense128, dropout",
    dataset="mnist",
    build_model=build_model,
    epochs=12,
    batch_size=128,
    learning_rate=1e-3,
    patience=12,
    seed=1,
    augmentation=Augmentation(copies=0, rotation_degrees=8, shift_pixels=1, zoom=0.08),
    pruning=None,
    min_float_accuracy=0.9925,
)
