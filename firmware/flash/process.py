"""Runs a flash tool: its whole output goes to a log, its progress to a bar."""

from __future__ import annotations

import os
import re
import select
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import BoardError, ToolMissingError

_END_SECONDS = 5.0
_TAIL = 200  # characters: no tool's bar is longer
_PERCENT = re.compile(r"(?<![\d.])(\d{1,3}(?:\.\d+)?) ?%")
_HASHES = re.compile(r"\| (#+)\s*$")  # avrdude: fifty of them are everything
_PAGES = re.compile(r"(\d+)/\s*(\d+) (?:half)?pages written")


@dataclass(frozen=True)
class ToolRun:
    """What a tool did.

    Attributes:
        program: Its name.
        code: Its exit code.
        output: All that it printed, on stdout and stderr.
    """

    program: str
    code: int
    output: str

    def has(self, pattern: str) -> bool:
        """Tells whether the output holds a match of a regular expression."""
        return re.search(pattern, self.output) is not None


def show_command(argv: Sequence[str]) -> str:
    """Returns a command as one line for a shell."""
    return shlex.join(argv)


def run_tool(
    argv: Sequence[str],
    directory: Path,
    log: Path,
    *,
    silence_s: float,
    on_percent: Callable[[float], None] = lambda _percent: None,
) -> ToolRun:
    """Runs a tool until it ends.

    Args:
        argv: The program and its arguments; no shell sees them.
        directory: Where it is run.
        log: The command and the output are added to this file.
        silence_s: It is ended when it prints nothing for so long.
        on_percent: Called with how far it says that it is.

    Raises:
        ToolMissingError: The program is not there.
        BoardError: It printed nothing for too long.
    """
    program = argv[0]
    with log.open("ab") as file:
        file.write(f"$ cd {shlex.quote(str(directory))} && {show_command(argv)}\n".encode())
        file.flush()
        try:
            process = subprocess.Popen(
                list(argv),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,  # an interrupt goes to us, and we end the tool
            )
        except OSError as error:
            raise ToolMissingError(f"{program} cannot be run: {error.strerror}") from None
        try:
            output = _read_all(process, file.write, silence_s, on_percent)
            if output is None:
                raise BoardError(
                    f"{program} says nothing for {silence_s:.0f} s",
                    hint=f"its output is in {log}",
                )
            code = process.wait()
            file.write(f"\n({program} ended with {code})\n\n".encode())
        finally:
            _end(process)
    return ToolRun(program, code, output)


def _read_all(
    process: subprocess.Popen[bytes],
    keep: Callable[[bytes], object],
    silence_s: float,
    on_percent: Callable[[float], None],
) -> str | None:
    """Returns all that a tool prints, or None when it falls silent."""
    assert process.stdout is not None
    pieces: list[bytes] = []
    tail = ""
    deadline = time.monotonic() + silence_s
    while True:
        left_s = deadline - time.monotonic()
        if not select.select([process.stdout], [], [], max(left_s, 0.0))[0]:
            return None
        piece = os.read(process.stdout.fileno(), 65536)
        if not piece:
            return b"".join(pieces).decode("utf-8", errors="replace")
        keep(piece)
        pieces.append(piece)
        deadline = time.monotonic() + silence_s
        tail = (tail + piece.decode("utf-8", errors="replace"))[-_TAIL:]
        percent = find_percent(tail)
        if percent is not None:
            on_percent(percent)


def find_percent(text: str) -> float | None:
    """Returns how far a tool is, in percent, by the end of what it printed; or None."""
    if pages := _PAGES.findall(text):
        done, total = map(int, pages[-1])
        return min(100.0 * done / max(total, 1), 100.0)
    if found := _PERCENT.findall(text):
        return min(float(found[-1]), 100.0)
    if match := _HASHES.search(text):
        return min(2.0 * len(match[1]), 100.0)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a tool that still runs: first asks, so that it lets go of the board."""
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
