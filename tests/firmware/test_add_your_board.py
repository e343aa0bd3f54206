"""docs/add-your-board.md: its example is a board, and it names every key."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from edgekiln.firmware.boards import BOARDS, EMULATOR_KINDS, Board, read_board
from edgekiln.firmware.flash.settings import SETTINGS
from edgekiln.firmware.image import build_image


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs/add-your-board.md").read_text()


@pytest.fixture
def example(page: str, tmp_path: Path) -> Board:
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "stm32f407-disco.toml"
    path.write_text(text)
    return read_board(path)


@pytest.mark.emulator  # for the cross compiler
def test_the_example_is_a_complete_board(
    example: Board, digits_bundle: Callable[[str, str], Path], tmp_path: Path
) -> None:
    image = build_image(
        digits_bundle("cnn", example.target), example, tmp_path / "out", extra_flags=["-Werror"]
    )
    assert image.flash_bytes > image.flash_constants_bytes > 0
    assert shutil.which("arm-none-eabi-gcc")


def keys_of(table: dict[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        yield key
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield from keys_of(each)


def test_every_key_of_every_board_is_on_the_page(page: str) -> None:
    known = set(re.findall(r"`\[*([\w.-]+)\]*`", page))
    known |= {part for name in known for part in name.split(".")}
    for path in BOARDS.glob("*.toml"):
        for key in keys_of(tomllib.loads(path.read_text())):
            assert key in known or key.startswith("EK_"), f"{path.name}: {key}"
    for runner, settings in SETTINGS.items():
        assert {runner, *(field.name for field in fields(settings))} <= known
    assert set(EMULATOR_KINDS) <= known


def test_the_files_that_the_page_names_are_there(page: str, root: Path) -> None:
    named = set(re.findall(r"`?((?:firmware|tests)/[\w/]+\.\w+)`?", page))
    named |= {f"firmware/{n}" for n in re.findall(r"`((?:arm|avr|nrf|riscv|stm32)/\w+\.c)`", page)}
    assert len(named) >= 10
    assert [name for name in sorted(named) if not (root / name).exists()] == []
