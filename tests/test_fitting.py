"""What is said when a board is too small, and that it is true."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from edgekiln import fitting, pipeline
from edgekiln.errors import DoesNotFitError
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.firmware.boards import Board, load_board
from edgekiln.firmware.image import build_image
from edgekiln.quantize.variants import VARIANTS
from edgekiln.train.registry import load_recipe, recipe_names

pytestmark = pytest.mark.emulator  # for the cross compiler


def shrunk(slug: str, **sizes: int) -> Board:
    board = load_board(slug)
    assert board.memory is not None
    return replace(board, memory=replace(board.memory, **sizes))


def build_for(data: bytes, name: str, board: Board, optimize: str, directory: Path) -> None:
    compiled = compile_model(data, name=name, target=board.target, optimize=optimize)
    write_bundle(compiled, directory / optimize / "c")
    build_image(directory / optimize / "c", board, directory / optimize / "out")


def explained(
    data: bytes, name: str, board: Board, directory: Path, dataset: str | None = None
) -> str:
    with pytest.raises(DoesNotFitError) as caught:
        build_for(data, name, board, "balanced", directory)
    error = fitting.explain(caught.value, data, name, board, optimize="balanced", dataset=dataset)
    assert str(error).startswith(str(caught.value))
    assert "\n" not in str(error)
    return error.hint.removeprefix(caught.value.hint).removeprefix("; ")


@pytest.fixture
def cnn(root: Path) -> bytes:
    return (root / "tests/golden/digits_cnn_int8.tflite").read_bytes()


def test_an_option_that_fits_is_named_with_its_numbers(cnn: bytes, tmp_path: Path) -> None:
    board = shrunk("mps2-an386", ram_bytes=4800)
    hint = explained(cnn, "net", board, tmp_path, "digits")
    found = re.match(r"--optimize (\w+) would fit, with ([\d,]+) bytes of flash and ([\d,]+)", hint)
    assert found is not None
    build_for(cnn, "net", board, found[1], tmp_path)
    assert int(found[3].replace(",", "")) <= 4800
    assert "digits_mlp" not in hint


def test_else_another_model_on_the_same_data(cnn: bytes, root: Path, tmp_path: Path) -> None:
    board = shrunk("microbit", ram_bytes=2048, flash_bytes=32_768)
    hint = explained(cnn, "digits_cnn", board, tmp_path, "digits")
    assert hint.startswith("digits_mlp would fit, with 11,588 bytes of weights and 192 of arena")
    mlp = (root / "tests/golden/digits_mlp_int8.tflite").read_bytes()
    build_for(mlp, "digits_mlp", board, "balanced", tmp_path)


def test_else_a_board_that_holds_it(cnn: bytes, tmp_path: Path) -> None:
    board = shrunk("microbit", ram_bytes=2048)
    hint = explained(cnn, "mine", board, tmp_path)
    found = re.fullmatch(r"the smallest board that holds it is ([\w-]+)", hint)
    assert found is not None
    build_for(cnn, "mine", load_board(found[1]), "balanced", tmp_path)


def test_nothing_is_promised_where_nothing_fits(root: Path, tmp_path: Path) -> None:
    board = shrunk("mps2-an386", flash_bytes=4096)
    mlp = (root / "tests/golden/digits_mlp_int8.tflite").read_bytes()
    hint = explained(mlp, "digits_mlp", board, tmp_path, "digits")
    assert "--optimize" not in hint and "digits_cnn" not in hint


def test_the_pipeline_explains_before_anything_is_flashed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = shrunk("mps2-an386", ram_bytes=4800)
    monkeypatch.setattr("edgekiln.firmware.boards.load_board", lambda slug: board)
    monkeypatch.setattr("edgekiln.bench.device.run_on_board", None)
    model = str(root / "tests/golden/digits_cnn_int8.tflite")
    with pytest.raises(DoesNotFitError, match=r"RAM is too small by 1 bytes.*--optimize ram would"):
        pipeline.flash(model, board.slug, tmp_path)


# ---- needs.json ----


def test_needs_are_known_of_every_model_and_no_other() -> None:
    wanted = {name: load_recipe(name).dataset for name in recipe_names()}
    for recipe, variants in VARIANTS.items():
        for variant in variants:
            wanted[variant.model_name(recipe)] = load_recipe(recipe).dataset
    assert {need.model: need.dataset for need in fitting.read_needs()} == wanted


@pytest.mark.parametrize("model", ["ds_cnn_qat_w4", "resnet8_qat_w4"])
def test_needs_are_those_of_the_kept_models(root: Path, model: str) -> None:
    need = next(need for need in fitting.read_needs() if need.model == model)
    data = (root / f"train/kept/{model}.tflite").read_bytes()
    assert fitting.need_of(model, need.dataset, data) == need


@pytest.mark.parametrize("model", ["digits_cnn", "digits_mlp"])
def test_needs_of_the_digits_are_those_of_the_golden_models(root: Path, model: str) -> None:
    need = next(need for need in fitting.read_needs() if need.model == model)
    data = (root / f"tests/golden/{model}_int8.tflite").read_bytes()
    assert fitting.need_of(model, need.dataset, data) == need
