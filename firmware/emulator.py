"""Runs an image in an emulator whose serial port is a pseudo-terminal.

For the host board the program itself takes the emulator's place.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgekiln.errors import BadInputError, BoardError, ToolMissingError
from edgekiln.firmware import boards
from edgekiln.firmware.boards import Board
from edgekiln.firmware.counting import CountPlan, InstructionCount, build_plugin
from edgekiln.firmware.image import Image
from edgekiln.firmware.toolchain import install_hint

_START_SECONDS = 30.0
_POLL_SECONDS = 0.005
_PTY = re.compile(r"char device redirected to (\S+)\s")


class RunningEmulator:
    """An emulator while it runs.

    Attributes:
        port: The path of the serial port to open.
        pid: The process.
    """

    def __init__(
        self,
        name: str,
        port: str,
        process: subprocess.Popen[bytes],
        log: Path,
        counting: tuple[CountPlan, Path] | None = None,
    ) -> None:
        self.port = port
        self.pid = process.pid
        self._name = name
        self._process = process
        self._log = log
        self._counting = counting
        self._counts_read_bytes = 0

    @property
    def is_counting(self) -> bool:
        """Whether instructions are counted."""
        return self._counting is not None

    def take_counts(self) -> tuple[InstructionCount, ...]:
        """Returns the counts of the inferences since the last call; none when not counting.

        An inference is in it as soon as the application has answered.

        Raises:
            BoardError: The counts make no sense.
        """
        if self._counting is None:
            return ()
        plan, path = self._counting
        with path.open("rb") as stream:
            stream.seek(self._counts_read_bytes)
            text = stream.read().rpartition(b"\n")
        self._counts_read_bytes += len(text[0]) + len(text[1])
        return plan.parse(text[0].decode("ascii"))

    def check_alive(self) -> None:
        """Raises a BoardError with the emulator's last words if it has ended."""
        code = self._process.poll()
        if code is not None:
            _fail_early(self._name, code, self._log)


@contextlib.contextmanager
def start_emulator(
    board: Board, image: Image, *, count: bool = True, plugin_arguments: Sequence[str] = ()
) -> Iterator[RunningEmulator]:
    """Runs an image for the length of a ``with`` block.

    Args:
        board: The board, with an emulator, or the host.
        image: What `build_image` made for that board.
        count: Count the instructions of every inference and node. Never done on the host.
        plugin_arguments: Further arguments of the counting plugin.

    Raises:
        ToolMissingError: There is no emulator for the board, or it is not installed.
        BoardError: The emulator ends, or offers no serial port, within 30 seconds.
        BadInputError: The image is not this board's.
    """
    if image.board != board.slug:
        raise BadInputError(
            "the image was built for another board", got=image.board, allowed=board.slug
        )
    with tempfile.TemporaryDirectory(prefix="edgekiln-emulator-") as name:
        work = Path(name)
        if board.is_host:
            with _run_on_host(image, work) as running:
                yield running
        else:
            with _run_in_qemu(board, image, work, count, plugin_arguments) as running:
                yield running


@contextlib.contextmanager
def _run_in_qemu(
    board: Board, image: Image, work: Path, count: bool, plugin_arguments: Sequence[str]
) -> Iterator[RunningEmulator]:
    emulator = board.emulator
    if emulator is None:
        raise ToolMissingError("there is no emulator for this board", where=board.slug)
    command = qemu_command(emulator, image.elf)
    counting = (CountPlan(image), work / "counts") if count else None
    if counting is not None:
        plan, counts = counting
        (work / "plan").write_text(plan.emit(), encoding="ascii")
        counts.touch()
        options = [str(build_plugin(command[0])), f"plan={work / 'plan'}", f"out={counts}"]
        options += plugin_arguments
        command += ["-plugin", ",".join(option.replace(",", ",,") for option in options)]
    log = work / "log"
    with _started(command, log) as process:
        port = _wait_for_port(emulator.program, process, log)
        yield RunningEmulator(emulator.program, port, process, log, counting)


def qemu_command(emulator: boards.Emulator, elf: Path) -> list[str]:
    """Returns the command that runs an ELF with its UART on a pseudo-terminal.

    Raises:
        ToolMissingError: The emulator is not installed.
    """
    program = shutil.which(emulator.program)
    if program is None:
        raise ToolMissingError(
            f"{emulator.program} is not installed", hint=install_hint(emulator.packages)
        )
    command = [program, "-M", emulator.machine, "-display", "none", "-monitor", "none"]
    return [*command, "-serial", "pty", "-kernel", str(elf)]


@contextlib.contextmanager
def _run_on_host(image: Image, work: Path) -> Iterator[RunningEmulator]:
    ours, theirs = os.openpty()
    try:
        tty.setraw(theirs)  # and kept open: a line that nobody holds open hangs up
        log = work / "log"
        with _started([str(image.elf.resolve())], log, terminal=ours) as process:
            yield RunningEmulator(image.elf.name, os.ttyname(theirs), process, log)
    finally:
        os.close(ours)
        os.close(theirs)


@contextlib.contextmanager
def _started(
    command: Sequence[str], log: Path, *, terminal: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program with its messages in ``log``, and ends it, whatever happens."""
    # Where util-linux is there, the program also ends when this process is killed.
    setpriv = shutil.which("setpriv")
    guarded = [setpriv, "--pdeathsig", "KILL", *command] if setpriv else [*command]
    with log.open("wb") as messages:
        process = subprocess.Popen(
            guarded,
            stdin=subprocess.DEVNULL if terminal is None else terminal,
            stdout=messages if terminal is None else terminal,
            stderr=messages,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_for_port(name: str, process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        match = _PTY.search(log.read_text(encoding="utf-8", errors="replace"))
        if match:
            return match[1]
        code = process.poll()
        if code is not None:
            _fail_early(name, code, log)
        time.sleep(_POLL_SECONDS)
    raise BoardError(f"{name} offered no serial port within {_START_SECONDS:.0f} s")


def _fail_early(name: str, code: int, log: Path) -> None:
    words = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = " ".join(line.strip() for line in words if line.strip())[-300:]
    raise BoardError(f"{name} ended with code {code}", got=last or "no message")
