"""simavr: the UART on a terminal, clock cycles counted by a program of our own (simavr/run.c)."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekiln.errors import ToolMissingError
from edgekiln.firmware.boards import FIRMWARE, Emulator
from edgekiln.firmware.counting import CountPlan
from edgekiln.firmware.emulators.base import Counter, Job, Launch
from edgekiln.firmware.native import build_native
from edgekiln.firmware.toolchain import install_hint

CYCLES_MODEL = (
    "simavr's AVR core: every instruction takes the cycles of its data sheet; flash and RAM have "
    "no wait states, and no interrupt is enabled"
)

_SOURCE = FIRMWARE / "simavr" / "run.c"
_FLAGS = ("-std=gnu11", "-O2")
_HEADER = Path("simavr/sim_avr.h")
_INCLUDE = (Path("/usr/include"), Path("/usr/local/include"))


def plan(job: Job) -> Launch:
    """Says how simavr runs an image.

    Raises:
        ToolMissingError: simavr, or the compiler for what drives it, is not installed.
    """
    board, emulator = job.board, job.board.emulator
    if emulator is None or job.image.bin is None:
        raise AssertionError("a board whose emulator is simavr has one, and a flash")
    command = (
        str(build_runner(emulator)),
        emulator.machine,
        str(board.clock_hz),
        str(job.image.bin.resolve()),
        str(job.terminal),
    )
    if not job.count:
        return Launch(command)
    counter = Counter("cycles", CYCLES_MODEL, CountPlan(job.image), job.work / "counts")
    plan_file = job.work / "plan"
    plan_file.write_text(counter.plan.emit(), encoding="ascii")
    return Launch((*command, str(plan_file), str(counter.path)), counter)


def build_runner(emulator: Emulator) -> Path:
    """Returns the program that runs images on simavr, compiled if it is not in the cache.

    Raises:
        ToolMissingError: simavr's library or a C compiler is not installed.
        BadInputError: It does not compile.
    """
    found = shutil.which(emulator.program)
    if found is None or not any((place / _HEADER).is_file() for place in _INCLUDE):
        raise ToolMissingError(
            f"{emulator.program} or its library is not installed",
            hint=install_hint(emulator.packages),
        )
    return build_native(_SOURCE, _FLAGS, "simavr-{}", ("-lsimavr",))
