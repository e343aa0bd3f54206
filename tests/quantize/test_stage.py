"""The whole quantize stage on a small recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.quantize import litert
from edgekiln.quantize.audit import audit_int8
from edgekiln.quantize.compress import compress
from edgekiln.quantize.pruning import measure_sparsity
from edgekiln.quantize.stage import accuracy_table, choose_representative, quantize_recipe
from edgekiln.train.datasets import load_dataset
from edgekiln.train.loop import accuracy, train_recipe
from edgekiln.train.model_file import read_model, write_model
from edgekiln.train.quiet_keras import keras
from edgekiln.train.recipe import PruningPlan
from edgekiln.train.registry import load_recipe

pytestmark = KERAS

PLAN = PruningPlan(0.6, epochs=3, ramp_epochs=2, learning_rate=1e-3, exclude=("probabilities",))
RECIPE = dataclasses.replace(
    load_recipe("digits_mlp"), epochs=5, augmentation=None, pruning=PLAN, min_float_accuracy=0.8
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("train")
    train_recipe(RECIPE, directory)
    return directory / "model.keras"


def test_what_the_stage_writes(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = trained.read_bytes()
    quantize_recipe(RECIPE, trained, tmp_path)
    assert trained.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        *("pruned.keras", "float.tflite", "int8.tflite", "quantize.json", "predictions.npz")
    }
    out, err = capfd.readouterr()
    assert out == ""
    for text in ("Pruning digits_mlp to 60 %", "Quantizing to int8", "held-out", "BUILTIN_REF"):
        assert text in err
    check_summary(json.loads((tmp_path / "quantize.json").read_text()), trained, tmp_path)


def check_summary(summary: dict[str, Any], trained: Path, directory: Path) -> None:
    """Measures everything again that quantize.json states."""
    digits = load_dataset("digits")
    pruned = read_model(directory / "pruned.keras")
    int8 = (directory / "int8.tflite").read_bytes()
    audit_int8(int8, "int8.tflite")
    assert summary["accuracy"] == {
        "float": accuracy(read_model(trained), digits.x_test, digits.y_test),
        "pruned": accuracy(pruned, digits.x_test, digits.y_test),
        "int8_host": litert.measure_accuracy(int8, digits.x_test, digits.y_test, "m"),
        "float_runtime": f"keras {keras.__version__}",
        "int8_runtime": litert.runtime_name(),
        "samples": 360,
    }
    assert min(summary["accuracy"][key] for key in ("float", "pruned", "int8_host")) > 0.85
    assert summary["sparsity"] == measure_sparsity(pruned)
    assert summary["sparsity"] == {"hidden": round(0.6 * 8192) / 8192, "probabilities": 0.0}
    (record,) = summary["compression"]
    assert record["layers"] == ["hidden"]
    assert record["exclude"] == ["probabilities"]
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2, 3]
    assert summary["input"] == {"shape": [8, 8, 1], "scale": pytest.approx(1 / 255), **ZERO}
    assert summary["representative"]["samples"] == 200
    assert summary["split"]["test_indices_sha256"] == digits.split.test_indices_sha256


ZERO = {"zero_point": -128}


def test_a_recipe_without_pruning(trained: Path, tmp_path: Path) -> None:
    quantize_recipe(dataclasses.replace(RECIPE, pruning=None), trained, tmp_path)
    assert not (tmp_path / "pruned.keras").exists()
    summary = json.loads((tmp_path / "quantize.json").read_text())
    assert summary["accuracy"]["pruned"] is None and summary["compression"] == []
    assert summary["sparsity"] == {"hidden": 0.0, "probabilities": 0.0}
    assert accuracy_table(summary).row_count == 2


def test_the_table_names_the_runtimes() -> None:
    table = accuracy_table(
        {
            "recipe": "r",
            "accuracy": {
                **{"float": 0.9, "pruned": 0.85, "int8_host": 0.95, "samples": 7},
                **{"float_runtime": "keras x", "int8_runtime": "litert y"},
            },
        }
    )
    assert [list(column.cells) for column in table.columns] == [
        ["float", "pruned", "int8"],
        ["90.00 %", "85.00 %", "95.00 %"],
        ["+0.00", "-5.00", "+5.00"],
        ["keras x", "keras x", "litert y"],
    ]


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    write_model(model, tmp_path / "m.keras")
    with pytest.raises(BadInputError) as caught:
        quantize_recipe(RECIPE, tmp_path / "m.keras", tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path / 'm.keras'}: the model does not fit the data set digits; "
        "got shapes [(3,), (2,)]; allowed: input and output of shapes [(8, 8, 1), (10,)]"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.0}, r"final_sparsity is out of range; got 1\.0"),
        ({"ramp_epochs": 4}, "end_step lies after the end of training"),
        ({"ramp_epochs": -1}, "end_step is out of range"),
        ({"exclude": ("none",)}, "no such layer to exclude; got none"),
        ({"exclude": ("hidden", "probabilities")}, "no layer to prune"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, pruning=dataclasses.replace(PLAN, **change))
    dataset = load_dataset("digits")
    with pytest.raises(BadInputError, match=message):
        compress(recipe.build_model(), recipe, recipe.pruning or PLAN, dataset)


def test_representative_samples_come_from_the_training_part() -> None:
    digits = load_dataset("digits")
    chosen = choose_representative(digits)
    assert chosen.shape == (200, 8, 8, 1) and chosen.dtype == np.float32
    training = {image.tobytes() for image in digits.x_train}
    assert len({image.tobytes() for image in chosen} & training) == 200
    few = dataclasses.replace(digits, x_train=digits.x_train[:7])
    np.testing.assert_array_equal(choose_representative(few), digits.x_train[:7])
