"""Small models for the tests of channel pruning, and models whose channels are silent."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekiln.quantize.channels.tracer import Trace
from edgekiln.train.quiet_keras import keras

layers = keras.layers
SIDE = 6


def convnet() -> Any:
    """conv, conv, pool, flatten, dense: the shape of mnist_cnn."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            layers.Input((8, 8, 1), name="image"),
            layers.Conv2D(8, 3, activation="relu", name="conv_a"),
            layers.Conv2D(12, 3, activation="relu", name="conv_b"),
            layers.MaxPooling2D(name="pool"),
            layers.Dropout(0.25, name="dropout"),
            layers.Flatten(name="flatten"),
            layers.Dense(16, activation="relu", name="hidden"),
            layers.Dense(5, activation="softmax", name="out"),
        ],
        name="convnet",
    )
    return shake(model, 1)


def _block(x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
    x = layers.Conv2D(filters, kernel, strides=stride, padding="same", name=name)(x)
    return layers.BatchNormalization(name=name + "_bn")(x)


def residual_net() -> Any:
    """Three residual stages, the later ones with a strided 1x1 projection, as in resnet8."""
    keras.utils.set_random_seed(2)
    image = layers.Input((8, 8, 3), name="image")
    x = layers.ReLU(name="stem_relu")(_block(image, 8, 3, 1, "stem"))
    for stage, (filters, stride) in enumerate(((8, 1), (12, 2), (16, 2))):
        name = f"stage{stage}"
        y = layers.ReLU(name=name + "_relu")(_block(x, filters, 3, stride, name + "_a"))
        y = _block(y, filters, 3, 1, name + "_b")
        if stride != 1:
            x = layers.Conv2D(filters, 1, strides=stride, padding="same", name=name + "_p")(x)
        x = layers.ReLU(name=name + "_out")(layers.Add(name=name + "_add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(5, activation="softmax", name="out")(x)
    return shake(keras.Model(image, x, name="residual_net"), 2)


def shake(model: Any, seed: int) -> Any:
    """Gives every weight a random value, variances above zero, and returns the model."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        values = random.normal(0, 0.4, variable.shape)
        if "variance" in variable.path:
            values = np.abs(values) + 0.5
        variable.assign(values)
    return model


def inputs_of(model: Any, seed: int, samples: int = 3) -> list[np.ndarray]:
    """Returns random inputs, float32 [samples, ...] each."""
    random = np.random.default_rng(seed)
    return [
        random.normal(size=(samples, *tensor.shape[1:])).astype(np.float32)
        for tensor in model.inputs
    ]


def outputs_of(model: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the outputs at inference."""
    made = model(inputs[0] if len(inputs) == 1 else inputs, training=False)
    return [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(made)]


def silence(trace: Trace, kept: np.ndarray) -> None:
    """Sets to zero, in the traced model itself, what makes or scales the channels not kept.

    What reads them stays, so a pruned model can only agree if it dropped the right inputs.
    """
    for layer in trace.layers:
        for axis in layer.axes:
            if axis.role != "reads":
                values = np.moveaxis(keras.ops.convert_to_numpy(axis.variable).copy(), axis.axis, 0)
                values[~trace.stay(axis.lanes, kept)] = 0
                axis.variable.assign(np.moveaxis(values, 0, axis.axis))
