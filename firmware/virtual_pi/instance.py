"""A virtual Pi while it runs."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self

from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware.virtual_pi.access import ALIAS, Access
from edgekiln.firmware.virtual_pi.kept_disk import KeptDisk
from edgekiln.firmware.virtual_pi.rootfs import USER, Architecture, guard_command

Kind = Literal["chroot", "virt", "raspi3b"]

_ATTEMPTS = 5
_PORT_TAKEN = ("Address already in use", "Could not set up host forwarding rule")


class VirtualPi:
    """A Debian with sshd that stands for a Raspberry Pi; a context manager.

    ``ssh -F <ssh_config> <alias>`` and ``rsync -e 'ssh -F <ssh_config>'`` reach it. It ends with
    `stop`, at the end of a ``with`` block, or with this process, whatever ends that.

    Attributes:
        kind: How it runs.
        architecture: Debian's name of its architecture.
        host: The address to connect to.
        port: The port of its sshd there.
        user: Who logs in.
        alias: Its name in `ssh_config`.
    """

    host = "127.0.0.1"
    user = USER
    alias = ALIAS

    def __init__(
        self,
        kind: Kind,
        architecture: Architecture,
        *,
        plan: Callable[[Access, int], list[str]],
        port: int | None,
        wait_s: float,
        disk: KeptDisk | None = None,
    ) -> None:
        """Starts it and waits until its sshd answers.

        Args:
            kind: How it runs.
            architecture: Debian's name of its architecture.
            plan: Prepares the scratch directory for a port and returns the command.
            port: A free port on the loopback interface; None for any.
            wait_s: How long the start may take, in seconds.
            disk: The disk that outlives it, if any; given back when it stops.

        Raises:
            BoardError: It does not start; says what it said last.
            BadInputError: The port is in use, or there is no room.
            ToolMissingError: A program is missing.
        """
        self.kind: Kind = kind
        self.architecture: Architecture = architecture
        self._plan = plan
        self._wait_s = wait_s
        self._disk = disk
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="edgekiln-pi-"))
        self._access = Access(self._directory)
        try:
            self._access.make_keys()
            self.port = self._start_on_a_port(port)
        except OSError as error:
            self.stop()
            raise BadInputError(
                f"cannot be written: {error.strerror}",
                where=self._directory.parent,
                hint="set TMPDIR to a directory with room",
            ) from None
        except BaseException:
            self.stop()
            raise

    @property
    def ssh_config(self) -> Path:
        """The configuration for ``ssh -F``, which knows the alias."""
        return self._access.ssh_config

    @property
    def identity_file(self) -> Path:
        """The private key that it lets in."""
        return self._access.identity_file

    @property
    def known_hosts(self) -> Path:
        """A file with its host key."""
        return self._access.known_hosts

    @property
    def log(self) -> str:
        """What it said so far: sshd's log, or the console."""
        with contextlib.suppress(OSError):
            return (self._directory / "log").read_text(encoding="utf-8", errors="replace")
        return ""

    def ssh_command(self, *options: str) -> list[str]:
        """Returns the ssh command up to the host, to which a remote command can be added."""
        return ["ssh", "-F", str(self.ssh_config), *options, self.alias]

    def wait(self) -> NoReturn:
        """Waits until it ends by itself, which is an error.

        Raises:
            BoardError: It has ended; says what it said last.
        """
        code = self._process.wait() if self._process is not None else 0
        raise BoardError(
            f"the virtual Pi ({self.kind}) ended with code {code}", got=self._last_words()
        )

    def cut_power(self) -> None:
        """Ends it at once, as `stop` does, but keeps its disk for `power_on`."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"cut\n")
            self._process.wait()
            self._process.stdin.close()
            self._process = None

    def power_on(self) -> None:
        """Starts it again after `cut_power`: same disk, port and keys.

        Raises:
            BoardError: It does not start; says what it said last.
        """
        if self._process is None:
            self._start(self.port)

    def stop(self) -> None:
        """Ends it and removes all that it left."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._disk is not None:
            self._disk.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_on_a_port(self, port: int | None) -> int:
        for attempt in range(_ATTEMPTS):
            chosen = _free_port(port or 0)
            try:
                self._start(chosen)
            except BoardError:
                taken = any(words in self.log for words in _PORT_TAKEN)
                if taken and port is not None:
                    raise _port_in_use(port) from None
                if not taken or attempt == _ATTEMPTS - 1:
                    raise
                self.cut_power()
            else:
                return chosen
        raise AssertionError("the last attempt raises")

    def _start(self, port: int) -> None:
        command = self._plan(self._access, port)
        log_path = self._directory / "log"
        log_path.unlink(missing_ok=True)
        with log_path.open("ab") as log:  # a machine's console appends to it, too
            self._process = subprocess.Popen(
                [*guard_command(self._directory), *command],
                bufsize=0,  # so that closing writes nothing, whoever still reads
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which then stops it
            )
        self._wait_for_sshd(self._process, port)

    def _wait_for_sshd(self, process: subprocess.Popen[bytes], port: int) -> None:
        end = time.monotonic() + self._wait_s
        while not _greets(port):
            if process.poll() is not None:
                self.wait()
            if time.monotonic() > end:
                raise BoardError(
                    f"the virtual Pi ({self.kind}) does not answer within {self._wait_s:.0f} s",
                    got=self._last_words(),
                )
            time.sleep(0.05)

    def _last_words(self) -> str:
        printable = "".join(c if c.isprintable() else " " for c in self.log)
        return " ".join(printable.split())[-400:] or "no message"


def _free_port(port: int) -> int:
    """Returns ``port`` if it is free, or any free one for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((VirtualPi.host, port))
        except (OSError, OverflowError):
            raise _port_in_use(port) from None
        return int(probe.getsockname()[1])


def _port_in_use(port: int) -> BadInputError:
    return BadInputError(
        f"port {port} is in use or not allowed", hint="leave the choice to edgekiln"
    )


def _greets(port: int) -> bool:
    """Tells whether an SSH server says hello at a port."""
    # A machine's port is open before there is a server behind it.
    try:
        with socket.create_connection((VirtualPi.host, port), timeout=1.0) as connection:
            # On a busy machine an emulated sshd takes long; left too early it never greets.
            connection.settimeout(15.0)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
