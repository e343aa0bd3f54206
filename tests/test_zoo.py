"""The zoo: what is kept is what the table says, and the table is what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from keras_marks import KERAS

from edgekiln import zoo
from edgekiln.errors import BadInputError
from edgekiln.train import kept
from edgekiln.train.registry import load_recipe

pytestmark = KERAS

PROMISED = {
    "mnist_mlp_100": 0.975,
    "mnist_mlp_512": 0.984,
    "mnist_cnn": 0.9925,
    "resnet8": 0.92,
    "ds_cnn": 0.90,
}
KEPT = [member for member in zoo.members(()) if kept.kept_file(member.name)]


def page_rows(text: str) -> dict[str, list[str]]:
    """Returns the rows of a page's table, by the first cell."""
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row for row in rows[1:]}


def test_members() -> None:
    assert [member.recipe for member in zoo.members(()) if member.variant is None] == list(
        zoo.RECIPES
    )
    assert [member.name for member in zoo.members(("mnist_cnn",))] == [
        "mnist_cnn",
        "mnist_cnn_channels_50",
    ]
    with pytest.raises(BadInputError, match=r"^digits_cnn: is not in the zoo; allowed: mnist_mlp"):
        zoo.members(("digits_cnn",))


@pytest.mark.parametrize("member", KEPT, ids=lambda member: member.name)
def test_each_is_kept_with_its_history(member: zoo.Member) -> None:
    history = kept.read_history(member.name)
    assert history["command"] == f"make zoo MODELS={member.recipe}"
    assert history["seed"] == load_recipe(member.recipe).seed
    assert history["split"]["test_samples"] == 10_000
    path = kept.kept_file(member.name)
    assert path is not None
    if path.suffix == ".npz":
        model = kept.unpack_model(path.read_bytes(), path)
        assert model.count_params() == history["parameters"]


def test_all_that_is_kept_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in kept.DIRECTORY.iterdir()}
    assert sum(sizes.values()) < 8_000_000
    names = {member.name for member in KEPT}
    assert {name.partition(".")[0] for name in sizes} == names


@pytest.mark.parametrize("name", PROMISED)
def test_float_accuracy(name: str) -> None:
    assert load_recipe(name).min_float_accuracy >= PROMISED[name]
    assert kept.read_history(name)["accuracy"]["test"] >= PROMISED[name]


@pytest.mark.emulator
@pytest.mark.slow
def test_a_member_is_measured(data: Path, tmp_path: Path) -> None:
    assert data.is_dir()
    report = zoo.measure_zoo(("mnist_mlp_512",), tmp_path, device_samples=20, jobs=1)
    assert json.loads((tmp_path / "zoo.json").read_text()) == report
    measured = report["mnist_mlp_512"]
    for key in ("accuracy_float", "accuracy_int8_host"):
        assert measured[key] >= PROMISED["mnist_mlp_512"]
    assert measured["device_equals_host_bytes"] and measured["instructions"] > measured["macs"]
    assert measured["device_samples"] == 20 and measured["emulated"]
    rows = page_rows(zoo.zoo_markdown(report))
    assert list(rows) == ["mnist_mlp_512", "mnist_mlp_512 pruned_80"]
