"""Emulators: programs that stand for a board, with a serial port like a real one's.

Each kind is a module that says how its program is started (`base.Planner`); the kind is named
by the board's file. For the host board the program itself takes the emulator's place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.emulators import qemu, rp2040js, simavr
from edgekiln.firmware.emulators.base import (
    Counter,
    Counts,
    Job,
    Launch,
    Planner,
    RunningEmulator,
    run_image,
)
from edgekiln.firmware.image import Image

__all__ = ["Counter", "Counts", "Job", "Launch", "Planner", "RunningEmulator", "start_emulator"]

#: How each kind of boards.EMULATOR_KINDS is started.
PLANNERS: Mapping[str, Planner] = {
    "qemu": qemu.plan,
    "rp2040js": rp2040js.plan,
    "simavr": simavr.plan,
}


@contextlib.contextmanager
def start_emulator(
    board: Board, image: Image, *, count: bool = True, plugin_arguments: Sequence[str] = ()
) -> Iterator[RunningEmulator]:
    """Runs an image for the length of a ``with`` block, which begins when it has started.

    Args:
        board: The board, with an emulator, or the host.
        image: What `build_image` made for that board.
        count: Count what every inference and node takes, in the unit that the emulator has.
            Never done on the host.
        plugin_arguments: Further arguments of QEMU's counting plugin.

    Raises:
        ToolMissingError: There is no emulator for the board, or it is not installed.
        BoardError: The emulator ends, or the application says nothing, within 30 seconds.
        BadInputError: The image is not this board's.
    """
    if image.board != board.slug:
        raise BadInputError(
            "the image was built for another board", got=image.board, allowed=board.slug
        )
    planner = _find_planner(board)
    with run_image(
        planner, board, image, count=count, plugin_arguments=plugin_arguments
    ) as running:
        yield running


def _find_planner(board: Board) -> Planner:
    if board.is_host:
        return _plan_host
    if board.emulator is None:
        raise ToolMissingError("there is no emulator for this board", where=board.slug)
    return PLANNERS[board.emulator.kind]


def _plan_host(job: Job) -> Launch:
    return Launch((str(job.image.elf.resolve()),), on_stdio=True)
