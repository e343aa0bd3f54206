"""Releases on a board: new ones become current by one rename, after their self-test.

::

    <base>/<name>/releases/<id>/   complete releases; the id is the hash of what is in them
    <base>/<name>/current          a link to one of them: what runs

The board's side is release.sh. Whatever fails or is killed at whatever moment, on either side,
``current`` leads to a complete release, and the next deploy cleans up.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import BadInputError, BoardError, CheckFailedError, EdgekilnError
from edgekiln.files import sha256_bytes, sha256_file, write_text
from edgekiln.firmware.linux.facts import Facts
from edgekiln.firmware.linux.lock import hold_lock
from edgekiln.firmware.linux.ssh import (
    Completed,
    Connection,
    check_remote_path,
    explain_script,
)

RELEASE_SCRIPT = Path(__file__).parent / "release.sh"
MANIFEST_NAME = "manifest.sha256"
DEFAULT_BASE = "edgekiln"
KEPT = 3
SELFTEST = ("./edgekiln-run", "--selftest")
SELFTEST_TIMEOUT_S = 120

_ID_DIGITS = 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_RESERVED = "envs"  # Python environments lie beside the applications
_ID = re.compile(r"[0-9a-f]+(-[0-9]+)?")
_CHECK_CODES = (65, 70)  # of release.sh: damaged files, failed self-test


@dataclass(frozen=True)
class Release:
    """A directory that is ready to be deployed.

    Attributes:
        name: Of the application: releases of the same name replace each other.
        directory: Where its files lie, the manifest among them.
        id: What it is called on the board: a hash of the files' names, modes and contents.
        architecture: What its programs are made for, as in `Facts`; empty where it does not matter.
        selftest: The command that proves that it works, run in the release's directory.
        bytes: Size of all files.
    """

    name: str
    directory: Path
    id: str
    architecture: str
    selftest: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Deployed:
    """What a deploy or a rollback did.

    Attributes:
        id: The release that is current now.
        previous: The one that was before, empty at the first deploy.
        sent_bytes: Bytes of files that were sent.
        directory: The release's directory on the board.
    """

    id: str
    previous: str
    sent_bytes: int
    directory: str

    @property
    def is_unchanged(self) -> bool:
        """Whether the release was current already."""
        return self.id == self.previous


@dataclass(frozen=True)
class ReleaseInfo:
    """A release on the board: its id, whether it is current and undamaged, and its size."""

    id: str
    is_current: bool
    is_whole: bool
    bytes: int


def make_release(
    directory: Path, name: str, *, architecture: str = "", selftest: tuple[str, ...] = SELFTEST
) -> Release:
    """Makes a directory ready to be deployed: writes its manifest and works out its id.

    Args:
        directory: The files. They must not change afterwards.
        name: The application's name.
        architecture: What its programs are made for; empty where it does not matter.
        selftest: The command that proves on the board that it works.

    Raises:
        BadInputError: The name cannot be used, or a file is no regular file or has a name that
            a manifest cannot hold.
    """
    check_name(name)
    paths = sorted(path for path in directory.rglob("*") if not _is_directory(path))
    files = [path for path in paths if path != directory / MANIFEST_NAME]
    if not files:
        raise BadInputError("there is nothing to deploy", where=directory)
    for path in files:
        _check_file(path, directory)
    manifest = "".join(f"{sha256_file(path)}  ./{_relative(path, directory)}\n" for path in files)
    modes = "".join("x" if os.access(path, os.X_OK) else "-" for path in files)
    write_text(directory / MANIFEST_NAME, manifest)
    return Release(
        name=name,
        directory=directory,
        id=sha256_bytes(f"{name}\n{modes}\n{manifest}".encode())[:_ID_DIGITS],
        architecture=architecture,
        selftest=selftest,
        bytes=sum(path.stat().st_size for path in files),
    )


def deploy_release(
    connection: Connection,
    release: Release,
    *,
    base: str = DEFAULT_BASE,
    facts: Facts | None = None,
    kept: int = KEPT,
    selftest_timeout_s: int = SELFTEST_TIMEOUT_S,
) -> Deployed:
    """Makes a release current on a board, after it has arrived whole and passed its self-test.

    Args:
        connection: The board.
        release: What to deploy.
        base: The directory on the board, relative to the home directory or absolute.
        facts: What is known of the board; with it a wrong architecture is found before
            anything is sent.
        kept: How many releases stay on the board, the new one among them.
        selftest_timeout_s: For how long the self-test may run.

    Returns:
        What is current now.

    Raises:
        BadInputError: The release is not for this board.
        CheckFailedError: Files were damaged on the way, or the self-test failed.
        BoardError: The board cannot be reached, somebody else deploys, or its disk is full.
            After any error what ran before still runs.
    """
    _check_architecture(connection, release, facts)
    root = _root(base, release.name)
    with hold_lock(connection, f"{root}/lock") as who:
        side = _Side(connection, root, who)
        there = side.ask("prepare", release.id)
        whole = there.get("whole", [""])[0]
        staged, sent = whole, 0
        if not whole:
            staged = f".incoming-{release.id}"
            sent = connection.push(release.directory, f"{root}/releases/{staged}")
            side.ask("verify", release.id)
        try:
            side.ask(
                "selftest",
                *(staged, str(selftest_timeout_s), *release.selftest),
                timeout_s=selftest_timeout_s + 30.0,
            )
        except CheckFailedError:
            with contextlib.suppress(EdgekilnError):
                side.ask("discard", release.id)
            raise
        now = side.ask("activate", release.id, whole, str(kept))
    return _deployed(now, there, sent, root)


def rollback(
    connection: Connection,
    name: str,
    *,
    base: str = DEFAULT_BASE,
    selftest: tuple[str, ...] = SELFTEST,
    selftest_timeout_s: int = SELFTEST_TIMEOUT_S,
    only_from: str = "",
) -> Deployed:
    """Makes the release current that was so before the present one. Called twice it goes back two.

    Args:
        connection: The board.
        name: The application's name.
        base: As for `deploy_release`.
        selftest: The command that proves that the earlier release works.
        selftest_timeout_s: For how long it may run.
        only_from: The release that has to be current; empty where any may be.

    Raises:
        BadInputError: There is no earlier release, or another one than ``only_from`` is current.
        CheckFailedError: Its self-test fails.
        BoardError: As for `deploy_release`.
    """
    root = _root(base, check_name(name))
    with hold_lock(connection, f"{root}/lock") as who:
        side = _Side(connection, root, who)
        before = {"current": [info.id for info in _list(connection, root) if info.is_current]}
        if only_from and before["current"] != [only_from]:
            got = " ".join(before["current"])
            raise BadInputError("another release is current", where=connection.host, got=got)
        found = side.ask("previous")
        if "previous" not in found:
            raise BadInputError("there is no earlier release", where=connection.host, got=name)
        target = found["previous"][0]
        seconds = str(selftest_timeout_s)
        timeout_s = selftest_timeout_s + 30.0
        side.ask("selftest", target, seconds, *selftest, timeout_s=timeout_s)
        now = side.ask("rollback", target)
    return _deployed(now, before, 0, root)


def list_releases(
    connection: Connection, name: str, *, base: str = DEFAULT_BASE
) -> tuple[ReleaseInfo, ...]:
    """Returns the releases on a board: the current one first, then by when they were current.

    Raises:
        BoardError: The board cannot be reached.
    """
    return _list(connection, _root(base, check_name(name)))


def check_name(name: str) -> str:
    """Returns an application's name if it can be that of a directory everywhere.

    Raises:
        BadInputError: It cannot.
    """
    if not _NAME.fullmatch(name) or name == _RESERVED:
        raise BadInputError(
            "not a name for an application",
            got=repr(name[:80]),
            allowed="letters, digits, _, . and -, beginning with a letter, digit or _; "
            f"not {_RESERVED}",
        )
    return name


class _Side:
    """Runs release.sh on the board, in the name of the one who holds the lock."""

    def __init__(self, connection: Connection, root: str, who: str) -> None:
        self._connection = connection
        self._root = root
        self._who = who

    def ask(self, action: str, *arguments: str, timeout_s: float = 300.0) -> dict[str, list[str]]:
        """Runs an action; returns what it printed, ``key value`` lines, by key."""
        done = self._connection.run(
            *(_script(), action, self._root, self._who, *arguments),
            check=False,
            timeout_s=timeout_s,
        )
        if done.returncode in _CHECK_CODES:
            raise CheckFailedError(
                explain_script(done),
                where=self._connection.host,
                hint="what ran before still runs",
            )
        return (
            _read_answer(self._connection, done)
            if action != "selftest"
            else _nothing(self._connection, done)
        )


def _nothing(connection: Connection, done: Completed) -> dict[str, list[str]]:
    """Checks that a self-test has passed; what it printed is its own affair."""
    if done.returncode != 0:
        raise BoardError(explain_script(done), where=connection.host)
    return {}


def _read_answer(connection: Connection, done: Completed) -> dict[str, list[str]]:
    if done.returncode != 0:
        raise BoardError(explain_script(done), where=connection.host)
    answer: dict[str, list[str]] = {}
    for line in done.text.splitlines():
        key, _, value = line.partition(" ")
        if not _ID.fullmatch(value):
            raise BoardError("its answer makes no sense", where=connection.host, got=repr(line))
        answer.setdefault(key, []).append(value)
    return answer


def _list(connection: Connection, root: str) -> tuple[ReleaseInfo, ...]:
    infos = []
    for line in connection.run(_script(), "list", root).text.splitlines():
        match = re.fullmatch(r"release (\S+) (current|other) (whole|damaged) (\d{1,15})", line)
        if not match or not _ID.fullmatch(match.group(1)):
            raise BoardError("its answer makes no sense", where=connection.host, got=repr(line))
        name, mark, state, size_kb = match.groups()
        infos.append(ReleaseInfo(name, mark == "current", state == "whole", int(size_kb) * 1024))
    return tuple(infos)


def _deployed(
    now: dict[str, list[str]], before: dict[str, list[str]], sent: int, root: str
) -> Deployed:
    (current,) = now["current"]
    previous = before.get("current", [])
    return Deployed(current, previous[0] if previous else "", sent, f"{root}/releases/{current}")


def _check_architecture(connection: Connection, release: Release, facts: Facts | None) -> None:
    if facts and release.architecture and release.architecture != facts.architecture:
        raise BadInputError(
            "the release was made for another architecture",
            where=connection.host,
            got=release.architecture,
            allowed=facts.architecture,
        )


def _check_file(path: Path, directory: Path) -> None:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise BadInputError("a release holds regular files only", where=path)
    name = _relative(path, directory)
    if not name.isprintable() or "\\" in name:
        raise BadInputError(
            "a file of a release must have a printable name without backslash", got=repr(name)
        )


def _relative(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _root(base: str, name: str) -> str:
    return f"{check_remote_path(base).rstrip('/')}/{name}"


def _script() -> str:
    return RELEASE_SCRIPT.read_text(encoding="utf-8")
