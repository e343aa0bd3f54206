"""Channel pruning: the smaller model computes what the original does without the channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from channel_models import convnet, inputs_of, outputs_of, residual_net, silence
from keras_marks import KERAS

from edgekiln.quantize.channels import ChannelPruning, channel_counts, count_macs, prune_channels
from edgekiln.quantize.channels.groups import find_groups
from edgekiln.quantize.channels.surgery import remove_channels
from edgekiln.quantize.channels.trace import trace
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
BOTH = pytest.mark.parametrize("build", [convnet, residual_net])


def names(model: Any) -> list[tuple[str, str]]:
    return [(type(layer).__name__, layer.name) for layer in model.layers]


def groups_of(model: Any) -> dict[tuple[str, ...], int]:
    return {
        group.makers: len(group.channels) for group in find_groups(trace(model)) if not group.pinned
    }


def test_groups_of_a_plain_network() -> None:
    assert groups_of(convnet()) == {("conv_a",): 8, ("conv_b",): 12, ("hidden",): 16}


def test_groups_of_a_residual_network() -> None:
    assert groups_of(residual_net()) == {
        ("stem", "stage0_b"): 8,
        ("stage0_a",): 8,
        ("stage1_p", "stage1_b"): 12,
        ("stage1_a",): 12,
        ("stage2_p", "stage2_b"): 16,
        ("stage2_a",): 16,
    }


@BOTH
def test_the_pruned_model_equals_the_silenced_one(build: Callable[[], Any]) -> None:
    model = build()
    traced = trace(model)
    kept = np.random.default_rng(0).random(traced.channels.count) < 0.6
    kept |= np.array([bool(pin) for pin in traced.channels.pins])
    pruned = remove_channels(traced, kept)
    silence(traced, kept)
    inputs = inputs_of(model, 3)
    (expected,), (got,) = outputs_of(model, inputs), outputs_of(pruned, inputs)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert pruned.count_params() < model.count_params()


@BOTH
def test_half_of_the_macs_are_gone(build: Callable[[], Any]) -> None:
    model = build()
    before = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    pruned = prune_channels(model, ChannelPruning(macs_ratio=0.5))
    assert 0.3 * count_macs(model) < count_macs(pruned) <= 0.5 * count_macs(model)
    assert all(count % 4 == 0 for name, count in channel_counts(pruned).items() if name != "out")
    assert channel_counts(pruned)["out"] == 5
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))


@BOTH
def test_the_pruned_model_is_an_ordinary_one(build: Callable[[], Any], tmp_path: Path) -> None:
    model = build()
    pruned = prune_channels(model, ChannelPruning(macs_ratio=0.5))
    assert type(pruned) is type(model) and pruned.name == model.name
    assert names(pruned) == names(model)
    pruned.save(tmp_path / "pruned.keras")
    loaded = keras.models.load_model(tmp_path / "pruned.keras", compile=False)
    inputs = inputs_of(model, 4)
    assert np.array_equal(outputs_of(loaded, inputs)[0], outputs_of(pruned, inputs)[0])


def test_what_the_model_was_compiled_with_is_left_behind() -> None:
    """Even a loss that no other process could find."""
    model = convnet()
    model.compile("adam", lambda labels, outputs: keras.ops.mean(labels - outputs))
    assert not prune_channels(model, ChannelPruning(macs_ratio=0.5)).compiled


def test_frozen_layers_stay_frozen() -> None:
    model = convnet()
    model.get_layer("conv_b").trainable = False
    pruned = prune_channels(model, ChannelPruning(macs_ratio=0.5))
    assert [layer.name for layer in pruned.layers if not layer.trainable] == ["conv_b"]
    model.trainable = False
    assert not prune_channels(model, ChannelPruning(macs_ratio=0.5)).trainable_weights


def test_mixed_precision_is_kept() -> None:
    image = layers.Input((4, 4, 1))
    x = layers.Conv2D(8, 3, dtype="mixed_float16", name="half")(image)
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    half = prune_channels(model, ChannelPruning(macs_ratio=0.5)).get_layer("half")
    assert half.compute_dtype == "float16" and half.kernel.dtype == "float32"


def test_by_hand() -> None:
    """One channel out of two, worked out with numpy alone."""
    model = keras.Sequential(
        [layers.Input((3,)), layers.Dense(2, activation="relu", name="a"), layers.Dense(1)]
    )
    model.set_weights(
        [
            np.array([[1.0, 0.1], [2.0, 0.1], [-1.0, 0.2]]),
            np.array([0.5, -0.25]),
            np.array([[3.0], [100.0]]),
            np.array([7.0]),
        ]
    )
    pruned = prune_channels(model, ChannelPruning(keep={"a": 0.5}, round_to=1))
    kernel, bias, out, out_bias = (keras.ops.convert_to_numpy(each) for each in pruned.weights)
    assert kernel.tolist() == [[1.0], [2.0], [-1.0]] and bias.tolist() == [0.5]
    assert out.tolist() == [[3.0]] and out_bias.tolist() == [7.0]
