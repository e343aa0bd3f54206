"""Small models trained on scikit-learn's digits in a few seconds, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekiln.train.datasets import load_dataset
from edgekiln.train.quiet_keras import keras

layers = keras.layers


def train_digits_net(seed: int = 1) -> Any:
    """Returns a residual, depthwise separable net with batch normalization and ReLU6."""
    keras.utils.set_random_seed(seed)
    image = layers.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(momentum=0.8, name="stem_norm")(x)
    x = layers.ReLU(name="stem_relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    y = layers.ReLU(6.0, name="relu6")(
        layers.BatchNormalization(momentum=0.8, name="depthwise_norm")(y)
    )
    y = layers.Conv2D(8, 1, name="pointwise")(y)
    x = layers.ReLU(name="joined")(layers.Add(name="add")([x, y]))
    x = layers.Flatten(name="flat")(layers.MaxPooling2D(2, name="pool")(x))
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    x = layers.Dense(10, activation="softmax", name="probabilities")(x)
    model = keras.Model(image, x, name="digits_net")
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    digits = load_dataset("digits")
    model.fit(digits.x_train, digits.y_train, epochs=8, batch_size=64, verbose=0)
    return model


def sqnr_db(expected: np.ndarray, outputs: np.ndarray) -> float:
    """Returns the ratio of signal to quantization noise in dB."""
    noise = np.square(expected.astype(np.float64) - outputs).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / noise))
