"""QEMU without a program: a board behind a GDB server, with its serial port on a pty."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekiln.firmware.boards import Board
from edgekiln.firmware.emulators.qemu import qemu_command


@dataclass(frozen=True)
class EmptyBoard:
    """Where an empty board is: GDB's server and the serial port."""

    server: str
    port: str


@contextlib.contextmanager
def empty_qemu(board: Board) -> Iterator[EmptyBoard]:
    """Starts a board's QEMU, stopped and with nothing in its memory."""
    assert board.emulator is not None
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    command = qemu_command(board.emulator, Path("none"), ours)
    place = command.index("-kernel")
    command[place : place + 2] = ["-S", "-gdb", f"tcp:127.0.0.1:{number}"]
    process = subprocess.Popen(command, pass_fds=[ours], stdin=subprocess.DEVNULL)
    try:
        os.close(ours)
        _wait_until_it_listens(number)
        yield EmptyBoard(f"127.0.0.1:{number}", os.ttyname(theirs))
    finally:
        process.kill()
        process.wait()
        os.close(theirs)


def _wait_until_it_listens(number: int) -> None:
    """Waits for the server without a connection, the first of which would be taken for GDB's."""
    wanted = f":{number:04X} 00000000:0000 0A"
    deadline = time.monotonic() + 30
    while wanted not in Path("/proc/net/tcp").read_text():
        assert time.monotonic() < deadline, "QEMU does not listen"
        time.sleep(0.02)
