"""What all runners have in common."""

from __future__ import annotations

import shlex
import shutil
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgekiln.console import progress
from edgekiln.firmware.boards import Board
from edgekiln.firmware.flash.diagnosis import Symptom, explain
from edgekiln.firmware.flash.process import ToolRun, run_tool, show_command
from edgekiln.firmware.flash.settings import RunnerSettings
from edgekiln.firmware.toolchain import install_hint

if TYPE_CHECKING:
    from edgekiln.firmware.image import Image

UNKNOWN_PORT = "<port>"


@dataclass(frozen=True)
class Job:
    """An image on its way to a board.

    Attributes:
        board: The board.
        image: The image.
        log: Where the tools' whole output goes; what is read back lies beside it.
        port: The board's serial port; None where the runner needs none.
        to: The drive's directory or GDB's server as the user named it; None to find it.
        probe: Serial number of the debug probe to use; empty for the only one.
    """

    board: Board
    image: Image
    log: Path
    port: str | None = None
    to: str | None = None
    probe: str = ""

    @property
    def directory(self) -> Path:
        """Where the image's files lie, and where every tool is run.

        Tools are told names in it: a path inside a command of OpenOCD or GDB could be read as
        one, and a colon in one of avrdude's arguments ends it.
        """
        return self.image.elf.parent

    @property
    def flash_origin(self) -> int:
        """Address of the flash."""
        if self.board.memory is None:
            raise AssertionError("the host is not flashed")
        return self.board.memory.flash_origin


@dataclass(frozen=True)
class Step:
    """One run of a tool.

    Attributes:
        argv: The program and its arguments.
        proof: A regular expression that the output has to hold: what the tool says when it is
            done. Exit codes alone prove little.
        disproof: A regular expression that the output must not hold.
        needs: What is wrong when the proof is missing.
        silence_s: The tool is given up when it says nothing for so long.
    """

    argv: tuple[str, ...]
    proof: str = ""
    disproof: str = ""
    needs: str = "the tool does not say that it is done"
    silence_s: float = 60.0


class Runner(ABC):
    """One way to write an image to a board.

    Attributes:
        name: What ``--runner`` takes.
        programs: Names of its program, the first that is there is used; none where it needs none.
        packages: Debian packages that hold it.
        needs_port: Whether it writes through the board's serial port.
        takes_to: Whether a user may say where it writes to.
        symptoms: What its program says when something is wrong.
    """

    name: ClassVar[str]
    programs: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    needs_port: ClassVar[bool] = False
    takes_to: ClassVar[bool] = False
    symptoms: ClassVar[tuple[Symptom, ...]] = ()

    def __init__(self, settings: RunnerSettings) -> None:
        self.settings = settings

    @property
    def program(self) -> str:
        """The program's name on this machine, or its first one where there is none."""
        return next(filter(None, map(_find_program, self.programs)), self.programs[0])

    def why_not(self) -> str:
        """Tells why it cannot work on this machine; empty when it can."""
        if self.programs and not any(map(_find_program, self.programs)):
            return f"{self.programs[0]} is not installed"
        return ""

    def how_to_get(self) -> str:
        """Returns the clause that tells how to make it work on this machine."""
        return install_hint(self.packages) if self.packages else ""

    @abstractmethod
    def steps(self, job: Job) -> tuple[Step, ...]:
        """Returns the runs of the tool, in their order."""

    def commands(self, job: Job) -> list[str]:
        """Returns what will be done, as lines for a shell."""
        directory = shlex.quote(str(job.directory))
        return [f"(cd {directory} && {show_command(step.argv)})" for step in self.steps(job)]

    def write(self, job: Job) -> None:
        """Writes the image and compares the board's memory with it.

        Raises:
            BoardError: No board is there, it cannot be reached, or it refuses.
            CheckFailedError: The memory differs from the image.
            ToolMissingError: The program is not installed.
        """
        steps = self.steps(job)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text("", encoding="utf-8")
        with progress() as bar:
            for number, step in enumerate(steps, 1):
                part = f", {number} of {len(steps)}" if len(steps) > 1 else ""
                task = bar.add_task(f"{self.name}{part}", total=None, note="%")

                def show(percent: float, task: object = task) -> None:
                    bar.update(task, total=100, completed=percent)  # type: ignore[arg-type]

                run = run_tool(
                    step.argv, job.directory, job.log, silence_s=step.silence_s, on_percent=show
                )
                self._judge(job, step, run)
                bar.update(task, total=100, completed=100)

    def _judge(self, job: Job, step: Step, run: ToolRun) -> None:
        where = f"{job.board.slug}, {self.name}"
        bad = step.disproof and run.has(step.disproof)
        if run.code != 0 or bad or not run.has(step.proof):
            raise explain(self.symptoms, run, where, self.enter, step.needs, job.log)

    @property
    def enter(self) -> str:
        """What a person does to bring the board into its bootloader; empty for nothing."""
        return getattr(self.settings, "enter", "")


def _find_program(name: str) -> str:
    """Returns what runs a program: its name, or where it lies beside Python; else nothing."""
    if shutil.which(name):
        return name
    return shutil.which(name, path=str(Path(sys.executable).parent)) or ""
