"""Which runner writes, and what it is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from flash_boards import make_board, settings_of

from edgekiln.errors import BadInputError, BoardError, ToolMissingError
from edgekiln.firmware.boards import Board, Flash, Usb, board_slugs, load_board
from edgekiln.firmware.flash import registry
from edgekiln.firmware.flash.destination import AUTO, Destination
from edgekiln.firmware.flash.settings import SETTINGS, EmulatorSettings
from edgekiln.firmware.image import Image

NOTHING = Destination()


def nobody(question: str, answers: object) -> None:
    return None


@pytest.fixture
def board() -> Board:
    names = ("st-flash", "openocd", "uf2", "avrdude")
    return make_board(*((name, settings_of(name)) for name in names))


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is all of the PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr("sys.executable", str(directory / "python"))
    return directory


def install(directory: Path, name: str) -> None:
    (directory / name).write_text("#!/bin/sh\n")
    (directory / name).chmod(0o755)


def test_the_first_that_works_here(board: Board, only: Path) -> None:
    assert registry.choose_runner(board, NOTHING) == "uf2"
    install(only, "openocd")
    assert registry.choose_runner(board, NOTHING) == "openocd"
    install(only, "st-flash")
    assert registry.choose_runner(board, NOTHING) == "st-flash"
    assert registry.choose_runner(board, Destination(runner="openocd")) == "openocd"


def test_a_wanted_one_has_to_be_the_boards_and_here(board: Board, only: Path) -> None:
    with pytest.raises(BadInputError, match=r"'gdb'; allowed: st-flash, openocd, uf2, avrdude"):
        registry.choose_runner(board, Destination(runner="gdb"))
    wanted = Destination(runner="openocd")
    with pytest.raises(ToolMissingError, match=r"openocd is not installed; .*install openocd"):
        registry.choose_runner(board, wanted)
    assert registry.choose_runner(board, wanted, dry_run=True) == "openocd"


def test_none_works_here(only: Path) -> None:
    board = make_board(("st-flash", settings_of("st-flash")), ("pyocd", settings_of("pyocd")))
    with pytest.raises(ToolMissingError) as caught:
        registry.choose_runner(board, NOTHING)
    line = str(caught.value)
    assert "st-flash: st-flash is not installed, pyocd: pyocd is not installed" in line
    assert "stlink-tools or install it with" in line and "edgekiln[probe]" in line
    assert registry.choose_runner(board, NOTHING, dry_run=True) == "st-flash"
    assert dict(registry.installed_runners(board)) == {
        "st-flash": "st-flash is not installed",
        "pyocd": "pyocd is not installed",
    }


def test_the_emulator_goes_first_unless_a_real_board_is_meant(only: Path) -> None:
    install(only, "gdb-multiarch")
    board = load_board("mps2-an386")
    assert registry.choose_runner(board, NOTHING) == "emulator"
    assert registry.choose_runner(board, Destination(port=AUTO)) == "gdb"
    assert registry.choose_runner(board, Destination(to="pc:3333")) == "gdb"
    assert registry.choose_runner(board, Destination(runner="gdb")) == "gdb"
    other = dataclasses.replace(
        board, flash=Flash(("avrdude", "emulator"), (settings_of("avrdude"), EmulatorSettings()))
    )
    with pytest.raises(ToolMissingError, match="avrdude is not installed"):
        registry.choose_runner(other, NOTHING)
    assert registry.choose_runner(other, Destination(runner="emulator")) == "emulator"
    host = load_board("host")
    assert registry.choose_runner(host, NOTHING) == "emulator"
    with pytest.raises(ToolMissingError, match="there is no way to write"):
        registry.choose_runner(host, Destination(port=AUTO))


def test_a_port_is_looked_for_where_one_is_needed(
    board: Board, image: Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("serial.tools.list_ports.comports", list)
    job = registry.plan_flash(board, image, "st-flash", NOTHING, nobody)
    assert (job.port, job.to, job.probe) == (None, None, "")
    assert job.log == image.elf.parent.parent / "flash" / "flash.log"
    with pytest.raises(BoardError, match="no serial port of this board"):
        registry.plan_flash(board, image, "avrdude", NOTHING, nobody)
    assert registry.plan_flash(board, image, "avrdude", NOTHING, nobody, dry_run=True).port is None
    auto = Destination(port=AUTO)
    assert registry.plan_flash(board, image, "st-flash", auto, nobody, dry_run=True).port is None
    with pytest.raises(BoardError, match="no serial port of this board"):
        registry.plan_flash(board, image, "st-flash", auto, nobody)
    named = Destination(port=str(tmp_path / "tty"))
    (tmp_path / "tty").touch()
    for name in ("st-flash", "avrdude"):
        assert registry.plan_flash(board, image, name, named, nobody).port == named.port


def test_what_a_runner_has_no_use_for_is_refused(board: Board, image: Image) -> None:
    with pytest.raises(BadInputError, match="--to says nothing to st-flash"):
        registry.plan_flash(board, image, "st-flash", Destination(to="/mnt"), nobody)


@pytest.mark.parametrize("slug", board_slugs())
def test_the_boards_of_the_project(slug: str, image: Image) -> None:
    """Every runner of every board can say what it would do."""
    board = load_board(slug)
    if board.flash is None:
        return
    assert len(set(board.flash.runners)) == len(board.flash.runners)
    for name, settings in zip(board.flash.runners, board.flash.settings, strict=True):
        assert type(settings) is SETTINGS[name]
        if name == "emulator":
            assert board.emulator is not None and settings == EmulatorSettings()
            continue
        job = registry.plan_flash(board, image, name, NOTHING, nobody, dry_run=True)
        assert registry.find_runner(board, name).commands(job)


def test_settings_come_with_their_runner(board: Board) -> None:
    moved = dataclasses.replace(board, usb=Usb(("1234:abcd",), True))
    assert registry.find_runner(moved, "avrdude").settings == settings_of("avrdude")
    with pytest.raises(AssertionError):
        registry.find_runner(moved, "emulator")


def test_the_page_names_every_board_that_can_be_flashed(root: Path) -> None:
    page = (root / "docs/flash.md").read_text(encoding="utf-8")
    for board in map(load_board, board_slugs()):
        runners = set(registry.runner_names(board)) - {"emulator"}
        family = f"{board.slug.partition('-')[0]}-\\*"
        assert not runners or board.slug in page or family in page, board.slug
    assert all(name in page for name in registry.RUNNERS)
