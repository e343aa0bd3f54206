"""LeNet-5 on MNIST, in today's form: ReLU and maximum pooling.

Source of the layers' sizes: LeCun et al., "Gradient-based learning applied to document
recognition", Proceedings of the IEEE 86(11), 1998, figure 2.
"""

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
            layers.Conv2D(6, 5, padding="same", activation="relu", name="c1"),
            layers.MaxPooling2D(2, name="s2"),
            layers.Conv2D(16, 5, activation="relu", name="c3"),
            layers.MaxPooling2D(2, name="s4"),
            layers.Flatten(),
            layers.Dense(120, activation="relu", name="c5"),
            layers.Dense(84, activation="relu", name="f6"),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ],
        name="lenet5",
    )


RECIPE = Recipe(
    name="lenet5",
    description="LeNet-5 on MNIST, with ReLU and maximum pooling",
    dataset="mnist",
    build_model=build_model,
    epochs=15,
    batch_size=128,
    learning_rate=2e-3,
    patience=15,
    seed=1,
    augmentation=Augmentation(copies=0, rotation_degrees=8, shift_pixels=1, zoom=0.08),
    pruning=None,
    min_float_accuracy=0.99,
)
