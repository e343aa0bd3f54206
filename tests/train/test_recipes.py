"""The recipes, really trained: what they promise, they reach, and the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.train.datasets import load_dataset
from edgekiln.train.loop import accuracy, train_recipe
from edgekiln.train.model_file import read_model
from edgekiln.train.registry import load_recipe

pytestmark = [*KERAS, pytest.mark.slow]

PROMISED = {"digits_mlp": 0.97, "digits_cnn": 0.985, "mnist_mlp_100": 0.975}


@pytest.mark.parametrize("name", PROMISED)
def test_recipe_reaches_its_accuracy(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = load_recipe(name)
    if recipe.dataset != "digits":
        request.getfixturevalue("data")  # skips without the published data sets
    assert recipe.min_float_accuracy >= PROMISED[name]
    train_recipe(recipe, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "model.keras"]

    dataset = load_dataset(recipe.dataset)
    model = read_model(tmp_path / "model.keras")
    outputs = model.predict(dataset.x_test, verbose=0)
    measured = float(np.mean(outputs.argmax(axis=1) == dataset.y_test))
    assert measured >= PROMISED[name]

    history = json.loads((tmp_path / "history.json").read_text())
    assert (
        history["accuracy"]["test"] == measured == accuracy(model, dataset.x_test, dataset.y_test)
    )
    assert history["split"]["test_samples"] == len(dataset.y_test)
    best = history["epochs"][history["best_epoch"] - 1]
    assert best["val_loss"] == min(epoch["val_loss"] for epoch in history["epochs"])
    assert history["accuracy"]["validation"] == pytest.approx(best["val_accuracy"])
