"""The training loop on a small recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import CheckFailedError
from edgekiln.train import loop
from edgekiln.train.loop import train_recipe
from edgekiln.train.model_file import read_model
from edgekiln.train.quiet_keras import keras
from edgekiln.train.recipe import Augmentation, Recipe
from edgekiln.train.registry import load_recipe

pytestmark = KERAS

SMALL = dataclasses.replace(
    load_recipe("digits_mlp"), epochs=4, augmentation=None, pruning=None, min_float_accuracy=0.5
)


def weights(directory: Path) -> list[np.ndarray]:
    arrays: list[np.ndarray] = read_model(directory / "model.keras").get_weights()
    return arrays


def test_a_seed_gives_the_same_weights(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, augmentation=Augmentation(1, 5, 0.5, 0.05), epochs=2)
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        train_recipe(dataclasses.replace(recipe, seed=seed), tmp_path / name)
    first, again, other = (weights(tmp_path / name) for name in ("first", "again", "other"))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(not np.array_equal(one, two) for one, two in zip(first, other, strict=True))
    texts = [(tmp_path / name / "history.json").read_bytes() for name in ("first", "again")]
    assert texts[0] == texts[1]


def test_history(tmp_path: Path) -> None:
    train_recipe(SMALL, tmp_path)
    history = json.loads((tmp_path / "history.json").read_text())
    assert history["recipe"] == "digits_mlp" and history["seed"] == SMALL.seed
    assert history["parameters"] == 64 * 128 + 128 + 128 * 10 + 10
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2, 3, 4]
    for epoch in history["epochs"]:
        assert epoch.keys() == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}
    assert history["epochs"][-1]["loss"] < history["epochs"][0]["loss"]
    assert history["versions"]["keras"] == keras.__version__


class Spoil(keras.callbacks.Callback):  # type: ignore[misc]
    """Ruins the weights after an epoch, so that an earlier one was the best."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch >= self.epoch:
            for variable in self.model.trainable_variables:
                variable.assign(keras.random.normal(variable.shape, seed=epoch) * 3)


@pytest.mark.parametrize(("patience", "epochs_run"), [(1, 3), (2, 4), (10, 5)])
def test_early_stopping_keeps_the_best_weights(patience: int, epochs_run: int) -> None:
    dataset = loop.load_dataset("digits")
    loop.make_reproducible(1)
    model = SMALL.build_model()
    epochs = loop.fit(
        model,
        SMALL,
        dataset,
        epochs=5,
        learning_rate=1e-3,
        description="Training",
        callbacks=[loop.early_stopping(patience), Spoil(2)],
    )
    assert len(epochs) == epochs_run
    losses = [epoch["val_loss"] for epoch in epochs]
    assert np.argmin(losses) == 1
    loss, _ = model.evaluate(dataset.x_val, dataset.y_val, verbose=0)
    assert loss == pytest.approx(min(losses), rel=1e-5)


def test_early_stopping_does_not_look_before_its_first_epoch() -> None:
    dataset = loop.load_dataset("digits")
    loop.make_reproducible(1)
    model = SMALL.build_model()
    epochs = loop.fit(
        model,
        SMALL,
        dataset,
        epochs=4,
        learning_rate=1e-3,
        description="Training",
        callbacks=[loop.early_stopping(10, first_epoch=2), Spoil(2)],
    )
    losses = [epoch["val_loss"] for epoch in epochs]
    loss, _ = model.evaluate(dataset.x_val, dataset.y_val, verbose=0)
    assert min(losses) == losses[1]
    assert loss == pytest.approx(min(losses[2:]), rel=1e-5)


def test_steps_per_epoch_is_what_fit_does() -> None:
    class Count(keras.callbacks.Callback):  # type: ignore[misc]
        steps = 0

        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            self.steps += 1

    dataset = loop.load_dataset("digits")
    recipe = dataclasses.replace(SMALL, augmentation=Augmentation(1, 5, 0.5, 0.05), batch_size=100)
    count = Count()
    loop.fit(
        recipe.build_model(),
        recipe,
        dataset,
        epochs=2,
        learning_rate=1e-3,
        description="Training",
        callbacks=[count],
    )
    assert count.steps == 2 * loop.steps_per_epoch(recipe, dataset) == 2 * 26


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e30}, "digits_mlp: the training diverged: the loss is not finite"),
        (
            {"min_float_accuracy": 0.9999, "epochs": 1},
            "digits_mlp: the trained model is below the recipe's accuracy; got 0.",
        ),
    ],
)
def test_a_failed_training_writes_nothing(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    recipe: Recipe = dataclasses.replace(SMALL, **change)
    with pytest.raises(CheckFailedError) as caught:
        train_recipe(recipe, tmp_path)
    assert str(caught.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_training_prints_on_stderr_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_recipe(dataclasses.replace(SMALL, epochs=2), tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Training digits_mlp" in err and "2/2" in err and len(err.splitlines()) == 1


def test_batches_hold_every_image_once_in_an_order_of_their_own() -> None:
    images = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1)
    batches = loop.Batches(images, np.arange(10), dataclasses.replace(SMALL, batch_size=4))
    orders = []
    for _ in range(2):
        parts = [batches[index] for index in range(len(batches))]
        assert [len(labels) for _, labels in parts] == [4, 4, 2]
        labels = np.concatenate([labels for _, labels in parts])
        np.testing.assert_array_equal(
            np.concatenate([images for images, _ in parts]).reshape(-1), labels
        )
        orders.append(labels.tolist())
        batches.on_epoch_end()
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(10))


def test_images_are_distorted_anew_every_epoch() -> None:
    plan = Augmentation(copies=0, rotation_degrees=10, shift_pixels=1, zoom=0.1)
    recipe = dataclasses.replace(SMALL, augmentation=plan, batch_size=4)
    images = np.random.default_rng(1).uniform(size=(4, 8, 8, 1)).astype(np.float32)
    batches = loop.Batches(images, np.arange(4), recipe)
    first, labels = batches[0]
    np.testing.assert_array_equal(first, batches[0][0])
    batches.on_epoch_end()
    second, other_labels = batches[0]
    assert not np.array_equal(first[np.argsort(labels)], second[np.argsort(other_labels)])
