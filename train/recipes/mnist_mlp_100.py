"""784-100-10 perceptron on MNIST: the textbook's first network."""

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
            layers.Flatten(),
            layers.Dense(100, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="mnist_mlp_100",
    )


RECIPE = Recipe(
    name="mnist_mlp_100",
    description="perceptron 784-100-10 on MNIST",
    dataset="mnist",
    build_model=build_model,
    epochs=15,
    batch_size=128,
    learning_rate=2e-3,
    patience=15,
    seed=1,
    augmentation=Augmentation(copies=0, rotation_degrees=6, shift_pixels=0.6, zoom=0.06),
    pruning=None,
    min_float_accuracy=0.975,
)
