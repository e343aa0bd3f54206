"""MACs and bytes of a Keras model, against those of the compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from channel_models import convnet, inputs_of, residual_net
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.export.compiler import compile_model
from edgekiln.quantize.channels import (
    ChannelPruning,
    count_flash_bytes,
    count_layer_macs,
    count_macs,
    prune_channels,
)
from edgekiln.quantize.channels.costs import Costs
from edgekiln.quantize.channels.groups import find_groups
from edgekiln.quantize.channels.surgery import remove_channels
from edgekiln.quantize.channels.trace import trace
from edgekiln.quantize.converter import convert_int8
from edgekiln.train.model_file import write_model
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers


def every_layer() -> Any:
    """One of each kind that multiplies."""
    image = layers.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(12, 3, activation="relu", name="separable")(x)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="transpose")(x)
    x = layers.Conv2D(8, 3, dilation_rate=2, activation="relu", name="dilated")(x)
    gate = layers.Dense(4, activation="relu", name="squeeze")(layers.GlobalAveragePooling2D()(x))
    gate = layers.Dense(8, activation="sigmoid", name="excite")(gate)
    x = layers.Multiply()([x, layers.Reshape((1, 1, 8))(gate)])
    x = layers.Conv1D(8, 5, strides=2, activation="relu", name="along")(layers.Reshape((-1, 8))(x))
    x = layers.Dense(4, activation="relu", name="rows")(x)
    x = layers.Dense(5, activation="softmax", name="out")(layers.Flatten()(x))
    return keras.Model(image, x, name="every_layer")


def compiled(model: Any, directory: Path) -> dict[str, Any]:
    write_model(model, directory / "m.keras")
    representative = inputs_of(model, 0, samples=8)[0]
    convert_int8(directory / "m.keras", representative, directory / "m.tflite")
    data = (directory / "m.tflite").read_bytes()
    return compile_model(data, name="m", target="cortex-m4").report


def test_macs_of_each_layer() -> None:
    assert count_layer_macs(every_layer()) == {
        "conv": 12 * 12 * 9 * 3 * 8,
        "depthwise": 6 * 6 * 9 * 8,
        "separable": 4 * 4 * (9 * 8 + 8 * 12),
        "transpose": 4 * 4 * 9 * 12 * 8,
        "dilated": 4 * 4 * 9 * 8 * 8,
        "squeeze": 8 * 4,
        "excite": 4 * 8,
        "along": 6 * 5 * 8 * 8,
        "rows": 6 * 8 * 4,
        "out": 24 * 5,
    }


@pytest.mark.slow
def test_the_compiler_counts_the_same(tmp_path: Path) -> None:
    model = every_layer()
    report = compiled(model, tmp_path)
    assert report["macs"] == count_macs(model)
    assert count_flash_bytes(model) == pytest.approx(report["constants_bytes"], rel=0.12)


@pytest.mark.slow
def test_the_compiled_model_shrinks_as_the_estimate_says(tmp_path: Path) -> None:
    model = convnet()
    pruned = prune_channels(model, ChannelPruning(macs_ratio=0.5))
    before, after = (compiled(each, tmp_path) for each in (model, pruned))
    assert after["macs"] == count_macs(pruned) <= before["macs"] / 2
    saved = before["constants_bytes"] - after["constants_bytes"]
    assert saved == pytest.approx(count_flash_bytes(model) - count_flash_bytes(pruned), rel=0.1)


@pytest.mark.parametrize("build", [convnet, residual_net, every_layer])
def test_costs_without_channels_are_those_of_the_smaller_model(build: Any) -> None:
    model = build()
    traced = trace(model)
    kept = np.ones(traced.channels.count, np.bool_)
    random = np.random.default_rng(1)
    for group in find_groups(traced):
        if not group.pinned:
            kept[random.choice(group.channels, len(group.channels) // 2, replace=False)] = False
    smaller = remove_channels(traced, kept)
    assert Costs(traced, "macs").total(kept) == count_macs(smaller) < count_macs(model)
    assert Costs(traced, "bytes").total(kept) == count_flash_bytes(smaller)


def test_a_shared_layer_counts_once_a_call() -> None:
    image = layers.Input((4, 4, 2))
    conv = layers.Conv2D(2, 3, padding="same", name="conv")
    model = keras.Model(image, conv(conv(image)))
    assert count_layer_macs(model) == {"conv": 2 * 16 * 9 * 2 * 2}
    assert count_flash_bytes(model) == 9 * 2 * 2 + 2 * 9


def test_layers_of_nested_models_have_paths() -> None:
    inner = keras.Sequential([layers.Input((3,)), layers.Dense(4, name="a")], name="inner")
    model = keras.Sequential([layers.Input((3,)), inner, layers.Dense(2, name="b")])
    assert count_layer_macs(model) == {"inner/a": 12, "b": 8}


def test_recurrent_layers_are_counted() -> None:
    model = keras.Sequential([layers.Input((5, 3)), layers.LSTM(4, name="lstm")])
    assert count_layer_macs(model) == {"lstm": 5 * 4 * 4 * (3 + 4)}


def test_what_cannot_be_counted_is_named() -> None:
    image = layers.Input((5, 4))
    model = keras.Model(image, layers.MultiHeadAttention(2, 4, name="attention")(image, image))
    with pytest.raises(BadInputError, match=r"are not known; got attention; give flash_bytes"):
        count_macs(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: keras.Sequential([layers.Dense(2)], name="m"), "m: .*no input shape yet"),
        (lambda: keras.Sequential([layers.Input((None, 2)), layers.Dense(2)]), "is not fixed"),
        (lambda: keras.Model(name="own"), "own: .* cannot be followed; got a Model"),
        (lambda: 7, "int: .* cannot be followed"),
    ],
)
def test_models_that_cannot_be_followed(model: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        count_macs(model())
