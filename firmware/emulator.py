"""Runs an image in an emulator whose serial port is a pseudo-terminal.

For the host board the program itself takes the emulator's place. The pseudo-terminal is opened
here and handed to the emulator: one that QEMU opens itself (``-serial pty``) is looked at once a
second until it is first connected.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
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

    def check_alive(self, *, within_s: float = 0.0) -> None:
        """Raises a BoardError with the emulator's last words if it has ended.

        Args:
            within_s: How long to wait for an end that is suspected.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(within_s)
            words = self._log.read_text(encoding="utf-8", errors="replace").split()
            last = " ".join(words)[-300:]
            raise BoardError(f"{self._name} ended with code {code}", got=last or "no message")


@contextlib.contextmanager
def start_emulator(
    board: Board, image: Image, *, count: bool = True, plugin_arguments: Sequence[str] = ()
) -> Iterator[RunningEmulator]:
    """Runs an image for the length of a ``with`` block, which begins when it has started.

    Args:
        board: The board, with an emulator, or the host.
        image: What `build_image` made for that board.
        count: Count the instructions of every inference and node. Never done on the host.
        plugin_arguments: Further arguments of the counting plugin.

    Raises:
        ToolMissingError: There is no emulator for the board, or it is not installed.
        BoardError: The emulator ends, or the application says nothing, within 30 seconds.
        BadInputError: The image is not this board's.
    """
    if image.board != board.slug:
        raise BadInputError(
            "the image was built for another board", got=image.board, allowed=board.slug
        )
    with tempfile.TemporaryDirectory(prefix="edgekiln-emulator-") as name:
        work = Path(name)
        ours, theirs = os.openpty()
        try:
            tty.setraw(theirs)
            if board.is_host:
                command, counting = [str(image.elf.resolve())], None
            else:
                command, counting = _plan_qemu(board, image, work, ours, count, plugin_arguments)
            with _started(command, work / "log", ours, as_terminal=board.is_host) as process:
                os.close(ours)  # so that the port breaks when the emulator ends
                ours = -1
                program = Path(command[0]).name
                running = RunningEmulator(
                    program, os.ttyname(theirs), process, work / "log", counting
                )
                _wait_for_greeting(program, running, theirs)
                yield running
        finally:
            os.close(theirs)  # open all the while: a line that nobody holds open hangs up
            if ours >= 0:
                os.close(ours)


def _plan_qemu(
    board: Board,
    image: Image,
    work: Path,
    terminal: int,
    count: bool,
    plugin_arguments: Sequence[str],
) -> tuple[list[str], tuple[CountPlan, Path] | None]:
    if board.emulator is None:
        raise ToolMissingError("there is no emulator for this board", where=board.slug)
    command = qemu_command(board.emulator, image.elf, terminal)
    if not count:
        return command, None
    plan, counts = CountPlan(image), work / "counts"
    (work / "plan").write_text(plan.emit(), encoding="ascii")
    counts.touch()
    options = [str(build_plugin(command[0])), f"plan={work / 'plan'}", f"out={counts}"]
    options += plugin_arguments
    plugin = ",".join(option.replace(",", ",,") for option in options)
    return [*command, "-plugin", plugin], (plan, counts)


def qemu_command(emulator: boards.Emulator, elf: Path, terminal: int) -> list[str]:
    """Returns the command that runs an ELF with its UART on an open terminal.

    Args:
        emulator: The emulator.
        elf: The image.
        terminal: The file descriptor of a pseudo-terminal's own end, which it inherits.

    Raises:
        ToolMissingError: The emulator is not installed.
    """
    program = shutil.which(emulator.program)
    if program is None:
        raise ToolMissingError(
            f"{emulator.program} is not installed", hint=install_hint(emulator.packages)
        )
    command = [program, "-M", emulator.machine, "-display", "none", "-monitor", "none"]
    command += ["-add-fd", f"fd={terminal},set=1"]
    command += ["-chardev", "serial,id=uart,path=/dev/fdset/1", "-serial", "chardev:uart"]
    return [*command, "-kernel", str(elf)]


@contextlib.contextmanager
def _started(
    command: Sequence[str], log: Path, terminal: int, *, as_terminal: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a program with its messages in ``log``, and ends it, whatever happens.

    Args:
        command: The program and its arguments.
        log: Where its messages go.
        terminal: A file descriptor that it inherits.
        as_terminal: Make that its standard input and output, too.
    """
    # Where util-linux is there, the program also ends when this process is killed.
    setpriv = shutil.which("setpriv")
    guarded = [setpriv, "--pdeathsig", "KILL", *command] if setpriv else [*command]
    with log.open("wb") as messages:
        process = subprocess.Popen(
            guarded,
            stdin=terminal if as_terminal else subprocess.DEVNULL,
            stdout=terminal if as_terminal else messages,
            stderr=messages,
            pass_fds=[terminal],
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_for_greeting(name: str, running: RunningEmulator, terminal: int) -> None:
    """Waits for the application's first word, which is left for the reader."""
    readable, _, _ = select.select([terminal], [], [], _START_SECONDS)
    if not readable:
        running.check_alive()
        raise BoardError(f"{name}: the application did not start in {_START_SECONDS:.0f} s")
    running.check_alive(within_s=_START_SECONDS if _has_hung_up(terminal) else 0.0)


def _has_hung_up(terminal: int) -> bool:
    poll = select.poll()
    poll.register(terminal, select.POLLHUP)
    return bool(poll.poll(0))
