"""784-512-512-10 perceptron with dropout on MNIST."""

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
            layers.Dense(512, activation="relu", name="hidden1"),
            layers.Dropout(0.2),
            layers.Dense(512, activation="relu", name="hidden2"),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="mnist_mlp_512",
    )


RECIPE = Recipe(
    name="mnist_mlp_512",
    description="perceptron 784-512-512-10 with dropout on MNIST",
    dataset="mnist",
    build_model=build_model,
    epochs=25,
    batch_size=128,
    learning_rate=1e-3,
    patience=25,
    seed=1,
    augmentation=Augmentation(copies=0, rotation_degrees=8, shift_pixels=1, zoom=0.08),
    pruning=None,
    min_float_accuracy=0.984,
)
