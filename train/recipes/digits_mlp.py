"""64-128-10 perceptron on scikit-learn's digits: the smallest model that is worth deploying."""

from __future__ import annotations

from typing import Any

from edgekiln.train.recipe import Augmentation, PruningPlan, Recipe


def build_model() -> Any:
    """Returns the model: float32 [N, 8, 8, 1] -> float32 [N, 10], class probabilities."""
    from edgekiln.train.quiet_keras import keras

    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            layers.Flatten(),
            layers.Dense(128, activation="relu", name="hidden"),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="digits_mlp",
    )


RECIPE = Recipe(
    name="digits_mlp",
    description="perceptron 64-128-10 on 8x8 digits",
    dataset="digits",
    build_model=build_model,
    epochs=30,
    batch_size=64,
    learning_rate=3e-3,
    patience=10,
    seed=1,
    augmentation=Augmentation(copies=7, rotation_degrees=12, shift_pixels=0.7, zoom=0.1),
    pruning=PruningPlan(sparsity=0.5, epochs=6, ramp_epochs=3, learning_rate=1e-3),
    min_float_accuracy=0.97,
)
