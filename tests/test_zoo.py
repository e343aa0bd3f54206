"""The zoo: what is kept is what the table says, and the table is what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from keras_marks import KERAS

from edgekiln import zoo
from edgekiln.bench.verify import verify_model
from edgekiln.errors import BadInputError
from edgekiln.export.compiler import compile_model
from edgekiln.quantize.variants import load_variant, variants_of
from edgekiln.train import kept
from edgekiln.train.registry import load_recipe

pytestmark = KERAS

PROMISED = {
    "mnist_mlp_100": 0.975,
    "mnist_mlp_512": 0.984,
    "mnist_cnn": 0.9925,
    "lenet5": 0.99,
    "resnet8": 0.92,
    "ds_cnn": 0.90,
}
KEPT = [
    member
    for member in zoo.members(())
    if member.variant is None or load_variant(member.recipe, member.variant).is_trained
]


def page_rows(text: str) -> dict[str, list[str]]:
    """Returns the rows of a page's table, by the first cell."""
    rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row for row in rows[2:]}  # without headings and the line below


def test_members() -> None:
    assert [member.recipe for member in zoo.members(()) if member.variant is None] == list(
        zoo.RECIPES
    )
    assert [member.name for member in zoo.members(("mnist_cnn",))] == [
        "mnist_cnn",
        "mnist_cnn_channels_50",
        "mnist_cnn_blocks_80",
    ]
    assert [member.name for member in zoo.members(("resnet8_qat_w4", "resnet8_qat_w4"))] == [
        "resnet8_qat_w4"
    ]
    with pytest.raises(BadInputError, match=r"^digits_cnn: is not in the zoo; allowed: mnist_mlp"):
        zoo.members(("digits_cnn",))


@pytest.mark.parametrize("member", KEPT, ids=lambda member: member.name)
def test_each_is_kept_with_its_history(member: zoo.Member) -> None:
    history = kept.read_history(member.name)
    assert history["command"] in (
        f"make zoo MODELS={name}" for name in (member.recipe, member.name)
    )
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


def test_what_compression_promised(root: Path) -> None:
    """The figures that the pages in docs/ rest on."""
    report: dict[str, Any] = json.loads((root / "docs" / "zoo.json").read_text())
    for name, entry in report.items():
        assert entry["accuracy_float"] >= PROMISED[name]
        assert entry["accuracy_float"] - entry["accuracy_int8_host"] <= 0.002
        on_device = entry["accuracy_float_device_samples"] - entry["accuracy_int8_device"]
        assert on_device <= 0.002
        assert entry["device_equals_host_bytes"]
        pruned = [variant for variant in variants_of(name) if variant.is_pruned]
        first = entry["variants"][pruned[0].name]
        assert entry["accuracy_pruned"] == first["accuracy_pruned"]
        assert all(variant["device_equals_host_bytes"] for variant in entry["variants"].values())
    assert report["mnist_mlp_512"]["accuracy_int8_host"] >= 0.984
    assert report["mnist_cnn"]["accuracy_int8_host"] >= 0.9925
    pruned = report["mnist_mlp_512"]["variants"]["pruned_80"]
    assert pruned["accuracy_float"] - pruned["accuracy_pruned"] <= 0.003
    for name in ("mnist_cnn", "resnet8"):
        entry, smaller = report[name], report[name]["variants"]["channels_50"]
        macs = smaller["macs"] / entry["macs"]
        assert macs <= 0.5
        assert entry["accuracy_float"] - smaller["accuracy_pruned"] <= 0.003
        for key in ("instructions", "flash_bytes"):
            assert smaller[key] / entry[key] <= 1.15 * macs
    for name in ("ds_cnn", "resnet8"):
        variants = report[name]["variants"]
        trained = variants["qat_w4"]["accuracy_int8_host"]
        assert report[name]["accuracy_float"] - trained <= 0.015
        assert trained > variants["ptq_w4"]["accuracy_int8_host"]


@pytest.mark.emulator
@pytest.mark.parametrize("name", ["ds_cnn_qat_w4", "resnet8_qat_w4"])
def test_int4_runs_on_the_fast_kernels(name: str) -> None:
    """The board runs the instructions that other machines run in a plain form."""
    path = kept.kept_file(name)
    assert path is not None
    report = compile_model(path.read_bytes(), name="m", target="cortex-m4").report
    layers = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    kernels = [node["kernel"] for node in report["nodes"] if node["op"] in layers]
    assert all("_dsp_" in kernel for kernel in kernels)
    assert verify_model(path, samples=2, seed=0, target=zoo.BOARD).match


@pytest.mark.emulator
@pytest.mark.slow
def test_a_row_of_the_page_is_measured_again(root: Path, data: Path, tmp_path: Path) -> None:
    assert data.is_dir()
    report = zoo.measure_zoo(("mnist_mlp_100",), tmp_path, device_samples=1000, jobs=2)
    assert json.loads((tmp_path / "zoo.json").read_text()) == report
    stated = json.loads((root / "docs" / "zoo.json").read_text())["mnist_mlp_100"]
    measured = report["mnist_mlp_100"]
    for key in ("macs", "instructions", "flash_bytes", "ram_bytes", "parameters"):
        assert measured[key] == stated[key]
    assert measured["variants"].keys() == stated["variants"].keys()
    for key in ("accuracy_float", "accuracy_int8_host"):
        assert measured[key] == pytest.approx(stated[key], abs=3e-4)
    assert measured["device_samples"] == 1000 and measured["emulated"]
    rows = page_rows(zoo.zoo_markdown(report))
    assert list(rows) == ["mnist_mlp_100", "mnist_mlp_100 pruned_80"]


def test_the_page_is_made_of_the_figures(root: Path) -> None:
    report = json.loads((root / "docs" / "zoo.json").read_text())
    assert (root / "docs" / "zoo.md").read_text() == zoo.zoo_markdown(report)


def quoted_rows(report: dict[str, Any]) -> dict[str, list[str]]:
    """The rows of the tables that other pages make of the figures, by page."""
    pages: dict[str, list[str]] = {"README.md": [], "pruning": [], "qat": [], "choosing": []}
    for name, entry in report.items():
        shown = [(name, entry["accuracy_float"], entry)]
        for variant, each in entry["variants"].items():
            shown.append((f"{name}, {variant}", each["accuracy_pruned"], each))
            if load_variant(name, variant).is_pruned or variant.startswith("clustered"):
                ratios = [
                    f"{each[key] / entry[key]:.2f}"
                    for key in ("macs", "instructions", "flash_bytes", "ram_bytes")
                ]
                shares = (
                    each["accuracy_float"],
                    each["accuracy_pruned"],
                    each["accuracy_int8_host"],
                )
                pages["pruning"].append(row(f"{name} {variant}", *map(percent, shares), *ratios))
        pages["README.md"] += [
            row(
                label,
                percent(keras),
                percent(each["accuracy_int8_host"]),
                *(f"{each[k]:,}" for k in ("macs", "instructions", "flash_bytes", "ram_bytes")),
            )
            for label, keras, each in shown
            if not label.partition(", ")[2].startswith(("ptq", "clustered", "pruned_2_4"))
        ]
        lost = 100 * (entry["accuracy_int8_host"] - entry["accuracy_float"])
        both = (percent(entry["accuracy_float"]), percent(entry["accuracy_int8_host"]))
        pages["choosing"].append(row(name, *both, f"{lost:+.2f}"))
        if "qat_w4" in entry["variants"]:
            ways = [entry["variants"][way] for way in ("ptq_w4", "ptq_w4_repaired", "qat_w4")]
            found = (percent(way["accuracy_int8_host"]) for way in ways)
            sizes = (f"{each['flash_bytes']:,}" for each in (entry, ways[-1]))
            pages["qat"].append(row(name, *both, *found, *sizes))
    pages["choosing"] += pages["qat"]
    return pages


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def test_other_pages_quote_the_figures(root: Path) -> None:
    report = json.loads((root / "docs" / "zoo.json").read_text())
    for page, rows in quoted_rows(report).items():
        path = root / page if page == "README.md" else root / "docs" / f"{page}.md"
        text = path.read_text()
        assert rows
        missing = [each for each in rows if each not in text]
        assert not missing, f"{path} lacks\n" + "\n".join(missing)
