"""Locks on a board, each held by a process there that ends when the connection does."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from edgekiln.console import say
from edgekiln.errors import BoardError
from edgekiln.firmware.linux.ssh import (
    Completed,
    Connection,
    check_remote_path,
    explain_script,
    explain_ssh,
    read_line,
)

LOCK_SCRIPT = Path(__file__).parent / "lock.sh"

_HEARTBEAT_S = 5.0
_TIMEOUT_S = 60.0
_SSH_FAILED = 255
_WAITING = "waiting "


@contextlib.contextmanager
def hold_lock(connection: Connection, path: str, *, wait_s: int = 0) -> Iterator[str]:
    """Holds a lock on the board as long as the block runs; yields the name in which it is held.

    The lock is a kernel's lock, held by a process on the board that reads from this one. It ends
    with that process, whatever ends it: nothing has to be recognised as stale. A connection that
    hangs is noticed there because no byte has come for a while.

    Args:
        connection: The board.
        path: The lock's file there; it stays, and the directories above it are made.
        wait_s: For how long to wait while somebody else holds it.

    Raises:
        BoardError: Somebody else holds it, or the board cannot be reached.
    """
    user = re.sub(r"[^A-Za-z0-9._-]", "_", f"{_user()}-{socket.gethostname()}")[:60]
    who = f"{user} {secrets.token_hex(8)}"
    connection.open()
    script = LOCK_SCRIPT.read_text(encoding="utf-8")
    process = subprocess.Popen(
        connection.command(script, check_remote_path(path), who, str(wait_s)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
    )
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(process, done), daemon=True)
    try:
        _wait_for(process, connection, wait_s)
        heart.start()
        yield who
    finally:
        done.set()
        if heart.ident is not None:
            heart.join()
        _end(process)


def _wait_for(process: subprocess.Popen[bytes], connection: Connection, wait_s: int) -> None:
    """Returns once the lock is held."""
    answer = read_line(process, connection.host, _TIMEOUT_S)
    if answer.startswith(_WAITING):
        say(f"{connection.host}: waits for {answer.removeprefix(_WAITING)}")
        answer = read_line(process, connection.host, wait_s + _TIMEOUT_S)
    if answer == "locked":
        return
    stdout, stderr = process.communicate()
    done = Completed(process.returncode, stdout, stderr.decode(errors="replace"))
    if done.returncode == _SSH_FAILED or done.returncode < 0:
        raise explain_ssh(connection.host, done.returncode, done.stderr)
    raise BoardError(explain_script(done), where=connection.host)


def _beat(process: subprocess.Popen[bytes], done: threading.Event) -> None:
    pipe = process.stdin
    while pipe and not done.wait(_HEARTBEAT_S):
        try:
            pipe.write(b".")
            pipe.flush()
        except OSError:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "user"
