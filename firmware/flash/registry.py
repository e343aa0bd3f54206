"""Chooses the runner for a board, and writes an image with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekiln.console import say
from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.flash.destination import AUTO, EMULATOR, Destination
from edgekiln.firmware.flash.ports import Choose, Port, find_port, list_ports, probe_of
from edgekiln.firmware.flash.runner import Job, Runner
from edgekiln.firmware.flash.settings import RunnerSettings
from edgekiln.firmware.flash.tools import (
    Avrdude,
    DfuUtil,
    Gdb,
    Openocd,
    Pyocd,
    StFlash,
    Stm32flash,
)
from edgekiln.firmware.flash.uf2 import Uf2

if TYPE_CHECKING:
    from edgekiln.firmware.image import Image

#: The runners that write; the emulator is none of them.
RUNNERS: dict[str, type[Runner]] = {
    kind.name: kind for kind in (Uf2, Stm32flash, Openocd, Pyocd, StFlash, DfuUtil, Avrdude, Gdb)
}


def runner_names(board: Board) -> tuple[str, ...]:
    """Returns the runners of a board, in order of preference."""
    if board.flash is not None:
        return board.flash.runners
    return (EMULATOR,) if board.is_host or board.is_emulated else ()


def find_runner(board: Board, name: str) -> Runner:
    """Returns a board's runner with its settings."""
    if board.flash is None or name not in RUNNERS:
        raise AssertionError(f"{board.slug} has no runner {name} that writes")
    settings: dict[str, RunnerSettings] = dict(
        zip(board.flash.runners, board.flash.settings, strict=True)
    )
    return RUNNERS[name](settings[name])


def why_not(board: Board, name: str) -> str:
    """Tells why a board's runner cannot work on this machine; empty when it can."""
    if name == EMULATOR:
        return ""
    return find_runner(board, name).why_not()


def choose_runner(board: Board, where: Destination, *, dry_run: bool = False) -> str:
    """Returns the name of the runner to use: the wanted one, or the first that works here.

    Whoever names a port or a place means a real board.

    Args:
        board: The board.
        where: What the user said.
        dry_run: Whether it will only be looked at: then it need not be installed.

    Raises:
        BadInputError: The board has no such runner.
        ToolMissingError: It cannot work here, or none of the board's can.
    """
    names, wanted = runner_names(board), where.runner
    means_real = where.port is not None or where.to is not None
    # Where a board can be written to, its emulator is no substitute unless it is asked for.
    if means_real or (wanted is None and names[:1] != (EMULATOR,)):
        names = tuple(name for name in names if name != EMULATOR)
    if wanted is not None and wanted not in names:
        raise BadInputError(
            "not a runner of this board",
            where=board.slug,
            got=repr(wanted),
            allowed=", ".join(names) or "none",
        )
    if not names:
        raise ToolMissingError(
            "there is no way to write to it",
            where=board.slug,
            hint="[flash] in the board's file names them; see docs/add-your-board.md",
        )
    tried = (wanted,) if wanted is not None else names
    for name in tried:
        if not why_not(board, name):
            return name
    if dry_run and tried:
        return tried[0]
    raise ToolMissingError(
        "no runner of this board works here" if wanted is None else why_not(board, wanted),
        where=board.slug,
        got=", ".join(f"{name}: {why_not(board, name)}" for name in tried if wanted is None),
        hint=" or ".join(filter(None, (find_runner(board, name).how_to_get() for name in tried))),
    )


def plan_flash(
    board: Board,
    image: Image,
    name: str,
    where: Destination,
    choose: Choose,
    *,
    dry_run: bool = False,
) -> Job:
    """Finds the port that a runner needs, and returns the job for it.

    Args:
        board: The board.
        image: The image.
        name: The runner.
        where: What the user said.
        choose: Asks which port, where several fit.
        dry_run: Whether nothing will be written: then no board has to be there.

    Raises:
        BoardError: There is no port that fits, or it may not be used.
        BadInputError: Several fit, and nobody is there to be asked.
    """
    runner = find_runner(board, name)
    _refuse_useless(runner, where)
    port: Port | None = None
    named = where.port or AUTO
    wanted = where.port is not None or runner.needs_port
    # A dry run shows a place for the port where there is none.
    if wanted and not (dry_run and named == AUTO and not list_ports()):
        port = find_port(board, named, choose)
    return Job(
        board=board,
        image=image,
        log=log_path(image),
        port=port.device if port else None,
        to=where.to,
        probe=probe_of(board, port) if port else "",
    )


def _refuse_useless(runner: Runner, where: Destination) -> None:
    if where.to is not None and not runner.takes_to:
        raise BadInputError(
            f"--to says nothing to {runner.name}",
            got=repr(where.to),
            allowed="with uf2, the drive; with gdb, the server",
        )


def log_path(image: Image) -> Path:
    """Returns where the output of an image's flash tools goes."""
    return image.elf.parent.with_name("flash") / "flash.log"


def write_image(runner: Runner, job: Job) -> None:
    """Writes an image to its board and verifies it, and says so.

    Raises:
        EdgekilnError: As `Runner.write`.
    """
    for command in runner.commands(job):
        say(command)
    runner.write(job)
    say(f"{job.image.name} is on {job.board.slug}, written by {runner.name} and verified")


def installed_runners(board: Board) -> Sequence[tuple[str, str]]:
    """Returns the runners of a board, each with why it cannot work here, or an empty text."""
    return [(name, why_not(board, name)) for name in runner_names(board)]
