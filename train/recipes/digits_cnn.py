"""Small depthwise separable CNN on scikit-learn's digits: the default model of ``make deploy``."""

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
            layers.Conv2D(16, 3, padding="same", activation="relu", name="conv1"),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv2"),
            layers.MaxPooling2D(2),
            layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise"),
            layers.Conv2D(48, 1, activation="relu", name="pointwise"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="digits_cnn",
    )


RECIPE = Recipe(
    name="digits_cnn",
    description="depthwise separable CNN on 8x8 digits",
    dataset="digits",
    build_model=build_model,
    epochs=24,
    batch_size=128,
    learning_rate=4e-3,
    patience=8,
    seed=1,
    augmentation=Augmentation(copies=7, rotation_degrees=12, shift_pixels=0.7, zoom=0.1),
    pruning=PruningPlan(sparsity=0.5, epochs=6, ramp_epochs=3, learning_rate=1e-3),
    min_float_accuracy=0.985,
)
