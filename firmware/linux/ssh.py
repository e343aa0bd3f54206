"""Reaches a board that runs Linux, through the system's own OpenSSH and rsync.

The user's ssh configuration, agent, keys and jump hosts work as they do on the command line, and
host keys are checked as that configuration says. Nothing here ever asks for a password.

No text from outside becomes a command: on this side programs get argument lists, on the other
side runs a fixed script whose arguments are quoted for the shell that sshd starts.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from edgekiln.errors import BadInputError, BoardError, ToolMissingError

CONFIG_VARIABLE = "EDGEKILN_SSH_CONFIG"
CONNECT_TIMEOUT_S = 10
CLOSE_TIMEOUT_S = 5
LOGIN_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 120.0
PUSH_TIMEOUT_S = 1800.0
IDLE_TIMEOUT_S = 60

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_IPV6 = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\]")
_ALLOWED = "user@name, user@name:port, a name of your ssh configuration, or [an IPv6 address]:port"

# The login that the others share. It ends with this process, whatever ends that: with its stdin.
_MASTER_SCRIPT = "echo ready; exec cat >/dev/null"

# OpenSSH's own exit code, of which a script on the board makes no use.
_SSH_FAILED = 255
_KILLED = 128

# Where a Unix socket's name may be at most 107 bytes, the usual folder can be too long.
_LONGEST_SOCKET_BYTES = 90


@dataclass(frozen=True)
class Host:
    """A board's address, checked: none of its parts can be taken for an option or a command.

    Attributes:
        name: A host's name, an address, or an alias of the ssh configuration.
        user: Who logs in, or empty for what the ssh configuration says.
        port: The port, or None for what the ssh configuration says.
        label: What it is called in messages, where that is not its address.
    """

    name: str
    user: str = ""
    port: int | None = None
    label: str = ""

    @property
    def destination(self) -> str:
        """What ssh takes: ``user@name`` or ``name``."""
        return f"{self.user}@{self.name}" if self.user else self.name

    @property
    def login(self) -> str:
        """What a user types after ``ssh`` to log in."""
        return self.destination if self.port is None else f"-p {self.port} {self.destination}"

    def __str__(self) -> str:
        if self.label:
            return self.label
        if self.port is None:
            return self.destination
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{self.user}@{name}:{self.port}" if self.user else f"{name}:{self.port}"


def parse_host(text: str) -> Host:
    """Reads a host as users write it: ``pi@raspberrypi.local``, ``pi@10.0.0.7:2222``, ``mypi``.

    Raises:
        BadInputError: It is something else, such as a text with spaces or a leading dash.
    """
    user, at, rest = text.rpartition("@")
    name, port = rest, ""
    bracketed = _IPV6.match(rest)
    if bracketed:
        name, tail = bracketed.group(1), rest[bracketed.end() :]
        if tail and not tail.startswith(":"):
            _refuse_host(text)
        port = tail[1:] if tail else ""
        tail_is_empty = tail == ":"
    else:
        name, colon, port = rest.partition(":")
        tail_is_empty = bool(colon) and not port
        if not _NAME.fullmatch(name):
            _refuse_host(text)
    if tail_is_empty or (at and not _USER.fullmatch(user)):
        _refuse_host(text)
    if not port:
        return Host(name, user)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        _refuse_host(text)
    return Host(name, user, int(port))


def _refuse_host(text: str) -> NoReturn:
    raise BadInputError("not a host", got=repr(text[:80]), allowed=_ALLOWED)


def check_remote_path(path: str) -> str:
    """Returns a path on the board, relative to the home directory or absolute, if it is sane.

    Raises:
        BadInputError: It is empty, begins with a dash or a tilde, goes up by ``..``, or holds
            control characters.
    """
    wrong = (
        not path
        or path.startswith(("-", "~"))
        or not path.isprintable()
        or ".." in path.split("/")
        or not path.strip("/. ")
    )
    if wrong:
        raise BadInputError(
            "not a path on the board",
            got=repr(path[:80]),
            allowed="a path without .., leading dash or tilde, and control characters",
        )
    return path


@dataclass(frozen=True)
class Completed:
    """What a script on the board left: its exit code and its output."""

    returncode: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """The output as text."""
        return self.stdout.decode("utf-8", errors="replace")


class Connection:
    """A connection to a board; several calls share one login.

    Use it as a context manager: leaving it ends the login.

    Args:
        host: Whom to reach.
        ssh_config: An ssh configuration file instead of the user's. Default: the one that the
            environment variable EDGEKILN_SSH_CONFIG names, else the user's.

    Raises:
        ToolMissingError: ssh is not installed.
        BadInputError: The configuration file is missing.
    """

    def __init__(self, host: Host, *, ssh_config: Path | None = None) -> None:
        self.host = host
        named = os.environ.get(CONFIG_VARIABLE, "")
        config = ssh_config or (Path(named) if named else None)
        if config is not None and not config.is_file():
            raise BadInputError("no such ssh configuration file", where=config)
        find_program("ssh", "openssh-client")
        self._directory = _private_directory()
        self._config = config.resolve() if config else None
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the login. The connection cannot be used afterwards."""
        master, self._master = self._master, None
        if master is not None:
            try:
                master.communicate(timeout=CLOSE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                master.kill()
                master.communicate()
        shutil.rmtree(self._directory, ignore_errors=True)

    def open(self) -> None:
        """Logs in, which every other call does when needed.

        Raises:
            BoardError: The board cannot be reached or does not let the user in.
        """
        if self._master is not None:
            return
        argv = self.command(_MASTER_SCRIPT)
        argv[argv.index("ControlMaster=no")] = "ControlMaster=yes"
        with (self._directory / "login").open("w+b") as log:
            master = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "LC_ALL": "C"},
            )
            try:
                answer = read_line(master, self.host, LOGIN_TIMEOUT_S)
                if answer == "ready":
                    self._master = master
                    return
            finally:
                if self._master is None:
                    master.communicate()
            log.seek(0)
            said = log.read().decode("utf-8", errors="replace")
        if answer:
            raise BoardError(
                "its login shell prints a text of its own, which nobody can tell from answers",
                where=self.host,
                got=repr(answer[:80]),
                hint=f"ssh {self.host.login} true has to print nothing: see ~/.bashrc there",
            )
        raise explain_ssh(self.host, master.returncode, said)

    def command(self, script: str, *arguments: str) -> list[str]:
        """Returns the argument list that runs a script on the board.

        Args:
            script: A POSIX shell script. It is fixed text: nothing may be formatted into it.
            arguments: Its ``$1``, ``$2``, …, any texts without NUL.
        """
        words = [script, "edgekiln", *arguments]
        if any("\0" in word for word in words):
            raise BadInputError("a NUL cannot be sent to the board", where=self.host)
        line = " ".join(map(_quote, words))
        return [*self._ssh(), "--", self.host.destination, f"exec sh -c {line}"]

    def run(
        self,
        script: str,
        *arguments: str,
        stdin: bytes = b"",
        check: bool = True,
        timeout_s: float = RUN_TIMEOUT_S,
    ) -> Completed:
        """Runs a script on the board and waits for its end.

        Args:
            script: As for `command`.
            arguments: As for `command`.
            stdin: What the script reads.
            check: An exit code other than 0 is an error.
            timeout_s: For how long it may run.

        Raises:
            BoardError: The board cannot be reached, the connection is lost, the script takes
                too long, or it fails (and ``check`` is set).
        """
        self.open()
        done = self._call(self.command(script, *arguments), stdin, timeout_s)
        if check and done.returncode != 0:
            raise BoardError(explain_script(done), where=self.host)
        return done

    def push(self, local: Path, remote: str) -> int:
        """Makes a directory on the board equal to a local one; sends only what differs.

        Args:
            local: The directory.
            remote: The directory on the board; its parent has to be there.

        Returns:
            How many bytes of files were sent.

        Raises:
            ToolMissingError: rsync is not installed here.
            BoardError: It fails; what is in ``remote`` then is unspecified.
        """
        options = ["-rlp", "--checksum", "--delete", "--stats", "--chmod=D755,Fu+rw,Fgo-w"]
        source, target = f"{local.resolve()}/", f"edgekiln:{check_remote_path(remote)}/"
        done = self._rsync(options, source, target)
        sent = re.search(r"Literal data: ([0-9.,]+)", done.text)
        return int(re.sub(r"[^0-9]", "", sent.group(1))) if sent else 0

    def pull(self, remote: str, local: Path) -> None:
        """Copies a directory of the board into a local one, which is made if it is not there.

        Raises:
            ToolMissingError: rsync is not installed here.
            BoardError: It fails.
        """
        local.mkdir(parents=True, exist_ok=True)
        source = f"edgekiln:{check_remote_path(remote)}/"
        self._rsync(["-rp", "--checksum"], source, f"{local.resolve()}/")

    def _rsync(self, options: Sequence[str], source: str, target: str) -> Completed:
        program = find_program("rsync", "rsync")
        self.open()
        # rsync splits the remote shell's command at spaces by rules of its own. It gets a small
        # script instead, which also replaces the host's name, so that rsync parses no host.
        script = self._directory / "rsh"
        command = shlex.join([*self._ssh(), "--", self.host.destination])
        script.write_text(f'shift\nexec {command} "$@"\n', encoding="utf-8")
        argv = [program, "--secluded-args", f"--timeout={IDLE_TIMEOUT_S}", f"--rsh=sh {script}"]
        argv += [*options, "--", source, target]
        done = self._call(argv, b"", PUSH_TIMEOUT_S)
        if done.returncode != 0:
            raise BoardError(explain_rsync(done), where=self.host)
        return done

    def _ssh(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_TIMEOUT_S),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ControlMaster": "no",
            "ControlPath": str(self._directory / "control"),
            "ControlPersist": "no",
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
            "RequestTTY": "no",
        }
        argv = [find_program("ssh", "openssh-client"), "-a", "-x", "-T"]
        if self._config:
            argv += ["-F", str(self._config)]
        for name, value in options.items():
            argv += ["-o", f"{name}={value}"]
        if self.host.port is not None:
            argv += ["-p", str(self.host.port)]
        return argv

    def _call(self, argv: Sequence[str], stdin: bytes, timeout_s: float) -> Completed:
        try:
            done = subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env={**os.environ, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            raise _no_answer(self.host, timeout_s) from None
        stderr = done.stderr.decode("utf-8", errors="replace")
        if done.returncode == _SSH_FAILED or done.returncode < 0:
            raise explain_ssh(self.host, done.returncode, stderr)
        return Completed(done.returncode, done.stdout, stderr)


def read_line(process: subprocess.Popen[bytes], host: Host, timeout_s: float) -> str:
    """Returns a line that a process prints, empty at its end; kills it when none comes in time.

    Raises:
        BoardError: None came in time.
    """
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    watchdog = threading.Timer(timeout_s, give_up)
    watchdog.start()
    try:
        line = process.stdout.readline() if process.stdout else b""
    finally:
        watchdog.cancel()
    if late.is_set():
        raise _no_answer(host, timeout_s)
    return last_line(line.decode("utf-8", errors="replace"))


def _no_answer(host: Host, timeout_s: float) -> BoardError:
    return BoardError(f"no answer within {timeout_s:.0f} s", where=host, hint="is it overloaded?")


def _quote(word: str) -> str:
    """Quotes a word for the login shell. For fish a backslash has to be in double quotes."""
    quoted = word.replace("'", "'\"'\"'").replace("\\", "'\"\\\\\"'")
    return f"'{quoted}'"


def find_program(name: str, package: str) -> str:
    """Returns the path of a program of this machine.

    Raises:
        ToolMissingError: It is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise ToolMissingError(
            f"{name} is not installed", hint=f"install it with: apt-get install {package}"
        )
    return path


# What OpenSSH says (in the C locale), what that means, and what to do; the first match counts.
_SSH_FAILURES: tuple[tuple[str, str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key has changed since the last login, or somebody else answers",
        "if the board was set up anew: ssh-keygen -R {known}, then: ssh {login}",
    ),
    (
        r"Host key verification failed",
        "its host key is not known here",
        "log in once, compare the fingerprint and accept it: ssh {login}",
    ),
    (
        r"Permission denied|Too many authentication failures|No more authentication methods",
        "it accepts none of your keys",
        "install one with: ssh-copy-id {login} (one with a passphrase has to be in ssh-agent)",
    ),
    (
        r"Could not resolve hostname|Name or service not known",
        "no host of this name is known",
        "is the board on, in this network, and the name right?",
    ),
    (r"Connection refused", "it refuses connections", "is its SSH server enabled?"),
    (
        r"[Cc]onnection timed out|Operation timed out|Timeout, server .* not responding",
        "it does not answer",
        "is the board on and in this network?",
    ),
    (r"No route to host|Network is unreachable", "there is no way to it", "check the network"),
    (
        r"Bad configuration option|[Bb]ad owner or permissions|terminating, \d+ bad",
        "the ssh configuration cannot be used",
        "",
    ),
    (
        r"closed by|Connection reset|Broken pipe|kex_exchange_identification|closed$|code 255",
        "the connection was lost",
        "a complete release still runs there; try again",
    ),
)


def explain_ssh(host: Host, returncode: int, stderr: str) -> BoardError:
    """Returns the error for what ssh said when it failed by itself.

    Args:
        host: Whom it was to reach.
        returncode: Its exit code, negative for a signal.
        stderr: Its messages.
    """
    if returncode < 0:
        what = f"ssh was killed by signal {-returncode}"
        return BoardError(what, where=host, hint="a complete release still runs there; try again")
    known = f"'[{host.name}]:{host.port}'" if host.port else host.name
    for pattern, what, hint in _SSH_FAILURES:
        if re.search(pattern, stderr, re.MULTILINE):
            return BoardError(what, where=host, hint=hint.format(known=known, login=host.login))
    said = last_line(stderr)
    return BoardError(f"ssh failed: {said}" if said else "the connection was lost", where=host)


def explain_script(done: Completed) -> str:
    """Returns in a few words why a script on the board failed."""
    if "No space left on device" in done.stderr or "Disk quota exceeded" in done.stderr:
        return "its disk is full: make room there and try again"
    said = last_line(done.stderr)
    if done.returncode > _KILLED:
        what = f"a command on it was killed by signal {done.returncode - _KILLED}"
        return f"{what}: {said}" if said else what
    return said.removeprefix("edgekiln: ") or f"a command on it failed with code {done.returncode}"


def explain_rsync(done: Completed) -> str:
    """Returns in a few words why rsync failed."""
    if "No space left on device" in done.stderr or "Disk quota exceeded" in done.stderr:
        return "its disk is full: make room there and try again"
    if re.search(r"rsync: (command )?not found|rsync: not found", done.stderr):
        return "rsync is not installed there: sudo apt-get install rsync"
    if re.search(r"connection unexpectedly closed|Broken pipe|error in socket", done.stderr):
        return "the connection was lost while files were sent: try again"
    errors = [line for line in done.stderr.splitlines() if "rsync error" not in line]
    return f"rsync failed: {last_line(chr(10).join(errors)) or f'code {done.returncode}'}"


def last_line(text: str) -> str:
    """Returns the last line that is not empty, printable, at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:300]


def _private_directory() -> Path:
    """Makes a directory that only this user can enter, with a name that suits a socket."""
    directory = tempfile.gettempdir()
    plain = re.fullmatch(r"[A-Za-z0-9/._+-]+", directory)
    if not plain or len(os.fsencode(directory)) > _LONGEST_SOCKET_BYTES - len("/ek-ssh-12345678"):
        directory = "/tmp"
    return Path(tempfile.mkdtemp(prefix="ek-ssh-", dir=directory))
