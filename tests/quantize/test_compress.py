"""The steps of the variants, on a small recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.quantize import stage
from edgekiln.quantize.audit import audit_int8
from edgekiln.quantize.channels import count_macs
from edgekiln.quantize.clustering import measure_clusters
from edgekiln.quantize.compress import compress
from edgekiln.quantize.sparsity import Blocks, NofM, Unstructured, parse_pattern
from edgekiln.quantize.stage import quantize_recipe
from edgekiln.quantize.variants import (
    VARIANTS,
    ChannelStep,
    ClusteringStep,
    PtqStep,
    QatStep,
    Step,
    Variant,
    load_variant,
    variants_of,
)
from edgekiln.train import kept
from edgekiln.train.datasets import load_dataset
from edgekiln.train.loop import accuracy, train_recipe
from edgekiln.train.model_file import read_model, write_model
from edgekiln.train.recipe import PruningPlan
from edgekiln.train.registry import load_recipe, recipe_names

pytestmark = KERAS

RECIPE = dataclasses.replace(
    load_recipe("digits_mlp"), epochs=6, augmentation=None, pruning=None, min_float_accuracy=0.8
)
CHANNELS = ChannelStep(0.5, epochs=4, learning_rate=1e-3)
QAT = QatStep(weight_bits=4, epochs=2, learning_rate=5e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("train")
    train_recipe(RECIPE, directory)
    return directory / "model.keras"


def test_channels(trained: Path) -> None:
    digits, model = load_dataset("digits"), read_model(trained)
    smaller, record = compress(model, RECIPE, CHANNELS, digits)
    assert 0.4 < count_macs(smaller) / count_macs(model) <= 0.5
    assert accuracy(smaller, digits.x_test, digits.y_test) > 0.9
    assert [one["number"] for one in record["rounds"]] == [0, 1]
    json.dumps(record)


def test_clustering(trained: Path) -> None:
    digits, model = load_dataset("digits"), read_model(trained)
    step = ClusteringStep(clusters=16, epochs=2, learning_rate=5e-4)
    clustered, record = compress(model, RECIPE, step, digits)
    assert max(measure_clusters(clustered).values()) <= 16
    assert record["distinct_values"] == measure_clusters(clustered)
    assert accuracy(clustered, digits.x_test, digits.y_test) > 0.9
    json.dumps(record)


def test_pruning_in_a_pattern(trained: Path) -> None:
    digits, model = load_dataset("digits"), read_model(trained)
    plan = PruningPlan(0.5, epochs=2, ramp_epochs=1, learning_rate=1e-3, pattern="2:4")
    pruned, record = compress(model, RECIPE, plan, digits)
    kernel = pruned.get_layer("hidden").get_weights()[0]
    assert ((kernel.reshape(-1, 4, kernel.shape[1]) != 0).sum(axis=1) <= 2).all()
    assert record["layers"] == ["hidden", "probabilities"]


def test_a_variant_that_is_trained_quantized(trained: Path, tmp_path: Path) -> None:
    quantize_recipe(RECIPE, trained, tmp_path, Variant("qat", "", (QAT,)))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"float.tflite", "int8.tflite", "quantize.json", "predictions.npz"}
    audit_int8((tmp_path / "int8.tflite").read_bytes(), "m")
    summary = json.loads((tmp_path / "quantize.json").read_text())
    assert summary["variant"] == "qat" and summary["compression"][0]["step"] == "qat"
    measured = summary["accuracy"]
    assert min(measured["float"], measured["pruned"], measured["int8_host"]) > 0.9
    assert abs(measured["pruned"] - measured["int8_host"]) < 0.02


@pytest.mark.parametrize("step", [QAT, CHANNELS])
def test_what_is_kept_is_taken(
    step: Step, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained when a variant is kept, and the figures are the kept model's."""
    monkeypatch.setattr(kept, "DIRECTORY", tmp_path / "kept")
    variant = Variant("small", "", (step,))
    quantize_recipe(RECIPE, trained, tmp_path / "anew", variant)
    summary = json.loads((tmp_path / "anew" / "quantize.json").read_text())
    if step is QAT:
        data, suffix = (tmp_path / "anew" / "int8.tflite").read_bytes(), ".tflite"
    else:
        data, suffix = kept.pack_model(read_model(tmp_path / "anew" / "pruned.keras")), ".npz"
    kept.write_kept("digits_mlp_small", suffix, data, summary)
    monkeypatch.setattr(stage, "compress", None)
    quantize_recipe(RECIPE, trained, tmp_path / "again", variant)
    again = json.loads((tmp_path / "again" / "quantize.json").read_text())
    assert again["compression"] == summary["compression"]
    assert abs(again["accuracy"]["int8_host"] - summary["accuracy"]["int8_host"]) < 0.01
    if step is QAT:
        assert (tmp_path / "again" / "int8.tflite").read_bytes() == data


def test_patterns() -> None:
    assert parse_pattern("unstructured") == Unstructured()
    assert parse_pattern("1:4") == NofM(1, 4) and parse_pattern("1x8") == Blocks(8)
    for text in ("", "2:4:8", "x4", "4:2", "1x1", "2:4\n"):
        with pytest.raises(BadInputError, match=r"^pruning: "):
            parse_pattern(text)


def test_variants_are_of_recipes_and_end_quantized() -> None:
    assert set(VARIANTS) <= set(recipe_names())
    for recipe in VARIANTS:
        names = [variant.name for variant in variants_of(recipe)]
        assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)
        for variant in variants_of(recipe):
            assert variant.description and variant.steps
            assert not any(isinstance(step, QatStep | PtqStep) for step in variant.steps[:-1])
    assert variants_of("digits_mlp") == ()
    with pytest.raises(
        BadInputError, match=r"^channel_50: the recipe resnet8 has no such var.*\?$"
    ):
        load_variant("resnet8", "channel_50")


def test_rounding_a_kept_model_costs_little(trained: Path, tmp_path: Path) -> None:
    digits = load_dataset("digits")
    rounded = kept.round_model(read_model(trained))
    write_model(rounded, tmp_path / "m.keras")
    before = read_model(trained).predict(digits.x_test, verbose=0)
    after = rounded.predict(digits.x_test, verbose=0)
    assert np.abs(before - after).max() < 0.01
