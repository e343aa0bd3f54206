"""What all emulators have in common: a serial port as a pseudo-terminal, and a counter.

An emulator is a program that runs an image with its UART on a terminal. The pseudo-terminal is
opened here and its own end handed to the program as an open file: one that QEMU opens itself
(``-serial pty``) is looked at once a second until it is first connected.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import subprocess
import tempfile
import tty
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekiln.errors import BoardError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.counting import CountPlan, InferenceCount
from edgekiln.firmware.image import Image

Counts = Literal["instructions", "cycles"]
"""What an emulator counts. Instructions are never called cycles."""

_START_SECONDS = 30.0


@dataclass(frozen=True)
class Job:
    """What an emulator is asked to do.

    Attributes:
        board: The board.
        image: Its image.
        work: A directory for files of its own, gone when the emulator has ended.
        terminal: File descriptor of the terminal that is the UART; the program inherits it.
        count: Whether to count what an inference takes, where it can.
        plugin_arguments: Further arguments of QEMU's counting plugin.
    """

    board: Board
    image: Image
    work: Path
    terminal: int
    count: bool
    plugin_arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counter:
    """What an emulator counts, and where it writes it.

    Attributes:
        counts: The unit.
        cycles_model: How cycles are modelled, in words; empty for instructions.
        plan: What is counted.
        path: The file to which it adds a line for each inference: the total, then what each
            node of the plan took (`CountPlan.parse`). A line is there before the application
            has answered.
    """

    counts: Counts
    cycles_model: str
    plan: CountPlan
    path: Path


@dataclass(frozen=True)
class Launch:
    """How an emulator is started.

    Attributes:
        command: The program and its arguments.
        counter: What it counts, or None.
        on_stdio: Whether the UART is its standard input and output.
    """

    command: tuple[str, ...]
    counter: Counter | None = None
    on_stdio: bool = False


Planner = Callable[[Job], Launch]
"""What a kind of emulator has to provide: it writes its files into ``Job.work``.

Raises `ToolMissingError` where the emulator is not installed.
"""


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
        counter: Counter | None = None,
    ) -> None:
        self.port = port
        self.pid = process.pid
        self._name = name
        self._process = process
        self._log = log
        self._counter = counter
        self._counts_read_bytes = 0

    @property
    def counts(self) -> Counts | None:
        """What is counted, or None when nothing is."""
        return self._counter.counts if self._counter else None

    @property
    def cycles_model(self) -> str:
        """How the cycles that are counted are modelled, in words; empty without."""
        return self._counter.cycles_model if self._counter else ""

    def take_counts(self) -> tuple[InferenceCount, ...]:
        """Returns the counts of the inferences since the last call; none when not counting.

        An inference is in it as soon as the application has answered.

        Raises:
            BoardError: The counts make no sense.
        """
        if self._counter is None:
            return ()
        with self._counter.path.open("rb") as stream:
            stream.seek(self._counts_read_bytes)
            text = stream.read().rpartition(b"\n")
        self._counts_read_bytes += len(text[0]) + len(text[1])
        return self._counter.plan.parse(text[0].decode("ascii"))

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
def run_image(
    planner: Planner,
    board: Board,
    image: Image,
    *,
    count: bool,
    plugin_arguments: Sequence[str] = (),
) -> Iterator[RunningEmulator]:
    """Runs an image for the length of a ``with`` block, which begins when it has started.

    Args:
        planner: Says how the emulator is started.
        board: The board.
        image: What `build_image` made for that board.
        count: Count what every inference takes.
        plugin_arguments: Further arguments of QEMU's counting plugin.

    Raises:
        ToolMissingError: The emulator is not installed.
        BoardError: The emulator ends, or the application says nothing, within 30 seconds.
    """
    with tempfile.TemporaryDirectory(prefix="edgekiln-emulator-") as name:
        work = Path(name)
        ours, theirs = os.openpty()
        try:
            tty.setraw(theirs)
            launch = planner(Job(board, image, work, ours, count, tuple(plugin_arguments)))
            if launch.counter is not None:
                launch.counter.path.touch()
            with _started(launch, work / "log", ours) as process:
                os.close(ours)  # so that the port breaks when the emulator ends
                ours = -1
                program = Path(launch.command[0]).name
                running = RunningEmulator(
                    program, os.ttyname(theirs), process, work / "log", launch.counter
                )
                _wait_for_greeting(program, running, theirs)
                yield running
        finally:
            os.close(theirs)  # open all the while: a line that nobody holds open hangs up
            if ours >= 0:
                os.close(ours)


@contextlib.contextmanager
def _started(launch: Launch, log: Path, terminal: int) -> Iterator[subprocess.Popen[bytes]]:
    """Runs an emulator with its messages in ``log``, and ends it, whatever happens."""
    # Where util-linux is there, the program also ends when this process is killed.
    setpriv = shutil.which("setpriv")
    guarded = [setpriv, "--pdeathsig", "KILL", *launch.command] if setpriv else [*launch.command]
    with log.open("wb") as messages, _free_processor() as processor:
        with _running_on(processor):
            process = subprocess.Popen(
                guarded,
                stdin=terminal if launch.on_stdio else subprocess.DEVNULL,
                stdout=terminal if launch.on_stdio else messages,
                stderr=messages,
                pass_fds=[terminal],
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _free_processor() -> Iterator[int | None]:
    """Yields a processor that no other emulator of this user has meanwhile, or None.

    QEMU's two threads hand each byte of a UART to one another. On one processor that takes a
    third of the time.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    with contextlib.ExitStack() as held:
        taken = (number for number in sorted(allowed) if _take_processor(number, held))
        yield next(taken, None)


def _take_processor(number: int, held: contextlib.ExitStack) -> bool:
    """Locks a processor's file, unless another emulator holds it."""
    place = Path(tempfile.gettempdir()) / f"edgekiln-processor-{os.getuid()}-{number}"
    try:
        descriptor = os.open(place, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _running_on(processor: int | None) -> Iterator[None]:
    """Moves this thread to a processor; what is started meanwhile stays there."""
    if processor is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


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
