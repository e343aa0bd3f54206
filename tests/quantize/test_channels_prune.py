"""Targets, rounds and refusals of channel pruning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from channel_models import convnet, inputs_of, outputs_of, residual_net
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels import (
    ChannelPruning,
    channel_counts,
    count_flash_bytes,
    count_macs,
    prune_and_finetune,
    prune_channels,
)
from edgekiln.quantize.channels.costs import Costs
from edgekiln.quantize.channels.groups import find_groups
from edgekiln.quantize.channels.trace import trace
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers


def hidden_widths(model: Any) -> dict[str, int]:
    return {name: count for name, count in channel_counts(model).items() if name != "out"}


# ---- Targets ----


def largest_step(model: Any, round_to: int) -> int:
    """The most MACs that ``round_to`` channels of one group cost, in the whole model."""
    traced = trace(model)
    costs, everything = Costs(traced, "macs"), np.ones(traced.channels.count, np.bool_)
    steps = []
    for group in find_groups(traced):
        kept = everything.copy()
        kept[group.channels[:round_to]] = group.pinned != ""
        steps.append(costs.total(everything) - costs.total(kept))
    return max(steps)


@settings(max_examples=15)
@given(
    ratio=st.floats(0.3, 0.95),
    round_to=st.sampled_from([1, 2, 4]),
    per_mac=st.booleans(),
    allocation=st.sampled_from(["global", "uniform"]),
    normalization=st.sampled_from(["mean", "l2", "none"]),
    residual=st.booleans(),
)
def test_the_target_is_met_and_not_overshot_by_more_than_a_step(
    residual: bool, ratio: float, round_to: int, **options: Any
) -> None:
    model = residual_net() if residual else convnet()
    pruned = prune_channels(
        model, ChannelPruning(macs_ratio=ratio, round_to=round_to, min_share=0, **options)
    )
    target = int(ratio * count_macs(model))
    assert target - largest_step(model, round_to) < count_macs(pruned) <= target
    for name, count in hidden_widths(pruned).items():
        assert count % round_to == 0 or count == channel_counts(model)[name]


def test_flash_bytes() -> None:
    model = convnet()
    pruned = prune_channels(model, ChannelPruning(flash_bytes=1500))
    assert 1200 < count_flash_bytes(pruned) <= 1500 < count_flash_bytes(model)


def test_a_target_that_is_met_already_changes_nothing() -> None:
    model = convnet()
    same = prune_channels(model, ChannelPruning(flash_bytes=1_000_000))
    assert same is not model and channel_counts(same) == channel_counts(model)
    inputs = inputs_of(model, 0)
    assert np.array_equal(outputs_of(same, inputs)[0], outputs_of(model, inputs)[0])


@pytest.mark.parametrize(
    ("share", "round_to", "left"), [(0.5, 1, 6), (0.5, 4, 8), (0.3, 4, 4), (0.01, 4, 4), (1, 4, 12)]
)
def test_explicit_shares(share: float, round_to: int, left: int) -> None:
    pruned = prune_channels(convnet(), ChannelPruning(keep={"conv_b": share}, round_to=round_to))
    assert hidden_widths(pruned) == {"conv_a": 8, "conv_b": left, "hidden": 16}


def test_a_share_holds_for_all_layers_tied_to_the_named_one() -> None:
    pruned = prune_channels(residual_net(), ChannelPruning(keep={"stage2_p": 0.5}))
    widths = hidden_widths(pruned)
    assert (widths["stage2_p"], widths["stage2_b"], widths["stage2_a"]) == (8, 8, 16)


def test_the_least_important_channels_go() -> None:
    model = convnet()
    layer = model.get_layer("conv_b")
    norms = np.abs(keras.ops.convert_to_numpy(layer.kernel)).sum((0, 1, 2))
    kept = np.sort(np.argsort(norms)[-8:])
    pruned = prune_channels(model, ChannelPruning(keep={"conv_b": 8 / 12}))
    bias = keras.ops.convert_to_numpy(pruned.get_layer("conv_b").bias)
    assert np.array_equal(bias, keras.ops.convert_to_numpy(layer.bias)[kept])


def test_excluded_layers_keep_their_channels() -> None:
    plan = ChannelPruning(macs_ratio=0.6, exclude=("conv_a", "hidden"))
    widths = hidden_widths(prune_channels(convnet(), plan))
    assert widths["conv_a"] == 8 and widths["hidden"] == 16 and widths["conv_b"] < 12


def test_least_numbers_hold() -> None:
    plan = ChannelPruning(macs_ratio=0.7, min_channels=7, min_share=0.6, round_to=1)
    widths = hidden_widths(prune_channels(convnet(), plan))
    assert widths["conv_a"] >= 7 and widths["conv_b"] >= 8 and widths["hidden"] >= 10


def test_uniform_leaves_like_shares() -> None:
    plan = ChannelPruning(macs_ratio=0.5, allocation="uniform", round_to=1)
    shares = [
        count / channel_counts(convnet())[name]
        for name, count in hidden_widths(prune_channels(convnet(), plan)).items()
    ]
    assert max(shares) - min(shares) <= 1 / 8


def test_per_mac_takes_the_costly_channels() -> None:
    widths = [
        hidden_widths(prune_channels(convnet(), ChannelPruning(macs_ratio=0.5, per_mac=per_mac)))
        for per_mac in (False, True)
    ]
    # The convolutions cost nearly all of the steps, the dense layer has as many channels.
    assert widths[0]["hidden"] < 16 and widths[1]["hidden"] == 16


def test_bn_scale_leaves_channels_without_one() -> None:
    image = layers.Input((6, 6, 2))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="with")(image)))
    x = layers.Dense(8, activation="relu", name="without")(layers.Flatten()(x))
    model = keras.Model(image, layers.Dense(2)(x))
    plan = ChannelPruning(macs_ratio=0.6, importance="bn_scale")
    counts = channel_counts(prune_channels(model, plan))
    assert counts["with"] == 4 and counts["without"] == 8


def test_layers_of_nested_models_are_named_by_their_path() -> None:
    inner = keras.Sequential([layers.Input((3,)), layers.Dense(8, name="a")], name="inner")
    model = keras.Sequential([layers.Input((3,)), inner, layers.Dense(2, name="b")])
    pruned = prune_channels(model, ChannelPruning(keep={"inner/a": 0.5}))
    assert channel_counts(pruned) == {"inner/a": 4, "b": 2}
    assert pruned.get_layer("inner").get_layer("a").units == 4


# ---- Rounds ----


class Trainer:
    """Stands for training: records its calls; the accuracy follows from the MACs."""

    def __init__(self, points_per_half: float = 1.0) -> None:
        self.calls: list[tuple[int, str]] = []
        self.full = 0
        self.points = points_per_half

    def fit(self, model: Any, epochs: int, description: str) -> dict[str, list[float]]:
        self.calls.append((epochs, description))
        return {"loss": [0.5] * epochs}

    def evaluate(self, model: Any) -> float:
        macs = count_macs(model)
        self.full = max(self.full, macs)
        return 0.9 + self.points / 100 * float(np.log2(macs / self.full))


def test_rounds_fall_by_the_same_factor() -> None:
    model, trainer = residual_net(), Trainer()
    plan = ChannelPruning(macs_ratio=0.4, rounds=3, epochs=2, final_epochs=5, round_to=1)
    pruned, rounds = prune_and_finetune(model, plan, trainer.fit, trainer.evaluate)
    assert [each.number for each in rounds] == [0, 1, 2, 3]
    assert trainer.calls == [
        (2, "Fine-tuning after pruning round 1 of 3"),
        (2, "Fine-tuning after pruning round 2 of 3"),
        (5, "Fine-tuning after pruning round 3 of 3"),
    ]
    for number, each in enumerate(rounds):
        assert each.macs is not None and rounds[0].macs is not None
        share = each.macs / rounds[0].macs
        assert 0.4 ** (number / 3) - 0.06 < share <= 0.4 ** (number / 3)
    assert rounds[-1].macs == count_macs(pruned)
    assert rounds[-1].parameters == pruned.count_params()
    assert rounds[-1].channels == channel_counts(pruned)
    assert rounds[0].history is None and rounds[1].history == {"loss": [0.5, 0.5]}


def test_rounds_to_flash_bytes_and_to_shares() -> None:
    for plan in (
        ChannelPruning(flash_bytes=1500, rounds=2),
        ChannelPruning(keep={"conv_b": 0.25, "hidden": 0.25}, rounds=2, round_to=1, min_share=0.3),
    ):
        trainer = Trainer()
        pruned, rounds = prune_and_finetune(convnet(), plan, trainer.fit, trainer.evaluate)
        assert rounds[0].flash_bytes > rounds[1].flash_bytes > rounds[2].flash_bytes
    assert hidden_widths(pruned) == {"conv_a": 8, "conv_b": 4, "hidden": 5}


def test_training_is_real() -> None:
    model = convnet()
    random = np.random.default_rng(0)
    x, y = random.normal(size=(32, 8, 8, 1)).astype(np.float32), random.integers(0, 5, 32)

    def fit(smaller: Any, epochs: int, description: str) -> Any:
        smaller.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        return smaller.fit(x, y, epochs=epochs, verbose=0).history

    def evaluate(smaller: Any) -> float:
        return float(np.mean(outputs_of(smaller, [x])[0].argmax(1) == y))

    plan = ChannelPruning(macs_ratio=0.5, rounds=2, epochs=3, importance="taylor")
    loss = "sparse_categorical_crossentropy"
    _, rounds = prune_and_finetune(model, plan, fit, evaluate, data=(x, y), loss=loss)
    first, last = rounds[1].history["loss"], rounds[2].history["loss"]
    assert first[-1] < first[0] and last[-1] < last[0]


def test_the_last_model_within_the_largest_drop_is_kept() -> None:
    trainer = Trainer(points_per_half=1.0)
    plan = ChannelPruning(max_drop_points=1.0, rounds=9, round_ratio=0.75, round_to=1)
    pruned, rounds = prune_and_finetune(residual_net(), plan, trainer.fit, trainer.evaluate)
    # 0.75 and 0.5625 are within one halving, 0.42 is not.
    assert len(rounds) == 4
    assert count_macs(pruned) == rounds[2].macs
    assert rounds[2].accuracy >= rounds[0].accuracy - 0.01 > rounds[3].accuracy


def test_the_original_is_kept_when_the_first_round_loses_too_much() -> None:
    trainer, model = Trainer(points_per_half=50), residual_net()
    plan = ChannelPruning(max_drop_points=0.1, rounds=3, final_epochs=4)
    pruned, rounds = prune_and_finetune(model, plan, trainer.fit, trainer.evaluate)
    assert pruned is model and len(rounds) == 2 and len(trainer.calls) == 1


def test_rounds_end_where_nothing_is_left_to_remove() -> None:
    trainer = Trainer(points_per_half=0)
    plan = ChannelPruning(max_drop_points=1, rounds=50, round_ratio=0.5, final_epochs=7)
    pruned, rounds = prune_and_finetune(convnet(), plan, trainer.fit, trainer.evaluate)
    assert 2 < len(rounds) < 10
    assert trainer.calls[-1] == (7, "Fine-tuning after the last round")
    assert count_macs(pruned) == rounds[-1].macs == rounds[-2].macs


def test_the_last_epochs_are_dropped_when_they_make_it_worse() -> None:
    trainer = Trainer(points_per_half=0)
    accuracies = iter([0.9, 0.9, 0.85])
    plan = ChannelPruning(max_drop_points=1, rounds=1, final_epochs=7)
    pruned, rounds = prune_and_finetune(
        convnet(), plan, trainer.fit, lambda model: next(accuracies)
    )
    assert [each.accuracy for each in rounds] == [0.9, 0.9, 0.85]
    assert count_macs(pruned) == rounds[1].macs


def test_no_epochs_no_training() -> None:
    trainer = Trainer()
    plan = ChannelPruning(macs_ratio=0.5, epochs=0)
    _, rounds = prune_and_finetune(convnet(), plan, trainer.fit, trainer.evaluate)
    assert trainer.calls == [] and rounds[1].history is None


# ---- Refusals ----


def only_a_head() -> Any:
    return keras.Sequential([layers.Input((4,)), layers.Dense(3, name="out")], name="head")


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (only_a_head, {"macs_ratio": 0.5}, r"head: .*no channel can be .*got out: it is an output"),
        (
            convnet,
            {"macs_ratio": 0.5, "exclude": ("conv_a", "conv_b", "hidden")},
            r"no channel can be removed; got conv_a: it is excluded; conv_b",
        ),
        (
            convnet,
            {"macs_ratio": 0.5, "exclude": ("conv_c",)},
            r"convnet: .*to exclude; got conv_c; allowed: conv_a, conv_b, hidden, out",
        ),
        (convnet, {"macs_ratio": 0.5, "exclude": ("pool",)}, r"to exclude; got pool"),
        (
            convnet,
            {"macs_ratio": 0.01},
            r"cannot be reached; got [\d,]+ multiply-accumulate steps; allowed",
        ),
        (convnet, {"flash_bytes": 10}, r"cannot be reached; got 10 bytes; allowed: [\d,]+ or more"),
        (convnet, {"keep": {"pool": 0.5}}, r"to keep a share of; got pool; allowed: conv_a"),
        (
            convnet,
            {"keep": {"out": 0.5}},
            r"convnet, out: channels: none of .*; got the activation softmax",
        ),
        (
            residual_net,
            {"keep": {"stem": 0.5, "stage0_b": 0.75}},
            r"stem \+ stage0_b: .*different shares; got 0\.5 and 0\.75",
        ),
        (
            convnet,
            {"macs_ratio": 0.5, "importance": "bn_scale"},
            r"bn_scale is not defined for any channel; got conv_a, conv_b, hidden; bn_scale needs",
        ),
        (convnet, {"max_drop_points": 1.0}, r"needs fine-tuning.*call prune_and_finetune"),
    ],
)
def test_what_pruning_refuses(build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        prune_channels(build(), ChannelPruning(**options))
    assert "\n" not in str(caught.value)


def test_accuracy_in_percent_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"accuracy is not in \[0, 1\]; got 97\.5"):
        prune_and_finetune(convnet(), ChannelPruning(macs_ratio=0.5), Trainer().fit, lambda _: 97.5)


def test_a_first_round_that_cannot_be_is_refused() -> None:
    plan = ChannelPruning(max_drop_points=1.0, min_share=1.0)
    with pytest.raises(BadInputError, match="cannot be reached"):
        prune_and_finetune(convnet(), plan, Trainer().fit, Trainer().evaluate)


def test_a_layer_that_cannot_be_made_anew_is_named() -> None:
    @keras.saving.register_keras_serializable("edgekiln_tests")
    class Stubborn(layers.Layer):  # type: ignore[misc]
        def __init__(self, size: int) -> None:
            super().__init__(name="stubborn")

        def call(self, inputs: Any) -> Any:
            return inputs

        def get_config(self) -> dict[str, Any]:
            return {}

    image = layers.Input((4,))
    x = layers.Dense(8)(Stubborn(3)(image))
    model = keras.Model(image, layers.Dense(2)(x), name="m")
    with pytest.raises(BadInputError, match=r"m, stubborn: .*cannot be made anew.*TypeError"):
        prune_channels(model, ChannelPruning(macs_ratio=0.6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one target; got none; allowed: one of macs_ratio, flash_bytes, keep"),
        ({"macs_ratio": 0.5, "flash_bytes": 9}, "one target; got macs_ratio and flash_bytes"),
        ({"macs_ratio": 1.0}, r"macs_ratio is out of range; got 1\.0; allowed: in \(0, 1\)"),
        ({"macs_ratio": float("nan")}, "macs_ratio is out of range"),
        ({"flash_bytes": 0}, "flash_bytes is out of range"),
        ({"max_drop_points": -1}, "max_drop_points is out of range"),
        ({"keep": {"a": 0}}, "keep of a is out of range"),
        ({"macs_ratio": 0.5, "round_to": 0}, "round_to is out of range"),
        ({"macs_ratio": 0.5, "min_channels": 0}, "min_channels is out of range"),
        ({"macs_ratio": 0.5, "min_share": 1.5}, "min_share is out of range"),
        ({"macs_ratio": 0.5, "rounds": 0}, "rounds is out of range"),
        ({"macs_ratio": 0.5, "round_ratio": 1.0}, "round_ratio is out of range"),
        ({"macs_ratio": 0.5, "epochs": -1}, "epochs is out of range"),
        ({"macs_ratio": 0.5, "final_epochs": -1}, "final_epochs is out of range"),
        ({"macs_ratio": 0.5, "importance": "l2"}, "importance is not known; got l2; allowed: l1"),
        ({"macs_ratio": 0.5, "normalization": "max"}, "normalization is not known"),
        ({"macs_ratio": 0.5, "allocation": "fair"}, "allocation is not known"),
    ],
)
def test_plans_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        ChannelPruning(**options)


def test_equal_plans_are_equal() -> None:
    one, other = (ChannelPruning(keep={"a": 0.5}, exclude=("b",)) for _ in range(2))
    assert one == other and hash(one) == hash(other)


def test_groups_say_why_they_stay() -> None:
    pins = {group.name: group.pinned for group in find_groups(trace(convnet()), ("hidden",))}
    assert pins["conv_a"] == "" and pins["hidden"] == "it is excluded"
    assert pins["out"] == "the activation softmax of out mixes channels"
