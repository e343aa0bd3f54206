"""Faults at every step of a deploy: what ran before still answers, the next deploy succeeds.

The faults come through the programs that a deploy calls: ssh on this side, and what the board's
side of it runs. Each test prints what it has survived, and counts it.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from linux_deploys import (
    NAME,
    Deploy,
    answering_model,
    edgekiln,
    home,
    models,
    one_line,
    write_wrapper,
)
from ssh_server import Server, server

from edgekiln.files import sha256_file
from edgekiln.firmware.linux import ssh

__all__ = ["edgekiln", "home", "models", "server"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "aarch64"), reason="the server stands for a board"
    ),
]


def leftovers(home: Path) -> list[str]:
    root = home / "edgekiln" / NAME
    paths = [*root.iterdir(), *(root / "releases").iterdir()] if root.exists() else []
    return [path.name for path in paths if path.name.startswith(".")]


class Faults:
    """Does harm to a deploy, and counts what it has survived."""

    def __init__(self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.directory = tmp_path / "faults"
        self.path = os.environ["PATH"]
        self.monkeypatch = monkeypatch
        self.counter = tmp_path / "counter"
        self.survived: list[str] = []

    def cut(self, program: str, number: int, harm: str) -> None:
        """Harms the n-th call of ssh or rsync on this side; 0 only counts."""
        real = shutil.which(program, path=self.path)
        harms = {
            "cut before": "echo 'Connection closed by remote host' >&2; exit 255",
            "cut after": f'{real} "$@" >/dev/null 2>&1; echo "Connection reset" >&2; exit 255',
            "killed": "kill -9 $$",
        }
        self.directory.mkdir(exist_ok=True)
        self.counter.write_text("")
        wrapper = self.directory / program
        wrapper.write_text(
            f"#!/bin/sh\nprintf x >>{self.counter}\n"
            f'[ "$(stat -c %s {self.counter})" != {number} ] || {{ {harms[harm]}; }}\n'
            f'exec {real} "$@"\n'
        )
        wrapper.chmod(0o755)
        self.monkeypatch.setenv("PATH", f"{self.directory}:{self.path}")

    def on_board(self, program: str, body: str) -> None:
        """Replaces a program of the board's."""
        write_wrapper(self.server, program, body)

    def heal(self) -> int:
        """Ends all harm; returns how often the program was called."""
        shutil.rmtree(self.directory, ignore_errors=True)
        for wrapper in self.server.wrappers.iterdir():
            wrapper.unlink()
        self.monkeypatch.setenv("PATH", self.path)
        return self.counter.stat().st_size if self.counter.exists() else 0


@pytest.fixture
def faults(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    # What waits for an answer that was cut off waits less.
    monkeypatch.setattr(ssh, "LOGIN_TIMEOUT_S", 15.0)
    monkeypatch.setattr(ssh, "IDLE_TIMEOUT_S", 5)
    made = Faults(server, tmp_path, monkeypatch)
    yield made
    made.heal()


class Trial:
    """Deploys a release over another one, with a fault, and looks what answers then."""

    def __init__(
        self, edgekiln: Deploy, home: Path, models: dict[str, Path], tmp_path: Path
    ) -> None:
        self.edgekiln, self.home, self.models = edgekiln, home, models
        self.digests = {sha256_file(path): kind for kind, path in models.items()}
        self.results = tmp_path / "build" / NAME / "rpi"
        assert edgekiln(models["cnn"], "--no-runtimes")[0] == 0
        shutil.rmtree(home / "edgekiln")
        assert edgekiln(models["mlp"], "--no-runtimes")[0] == 0
        shutil.copytree(home / "edgekiln", tmp_path / "kept", symlinks=True)
        self.kept = tmp_path / "kept"

    def begin(self) -> None:
        shutil.rmtree(self.home / "edgekiln", ignore_errors=True)
        shutil.copytree(self.kept, self.home / "edgekiln", symlinks=True)
        shutil.rmtree(self.results / "hosts", ignore_errors=True)  # measured again, too

    def deploy(self) -> str:
        """Deploys the new release; returns the error, or nothing."""
        code, _, err = self.edgekiln(self.models["cnn"], "--no-runtimes")
        return one_line(err) if code else ""

    def answer(self) -> str:
        """Returns which of the models answers: "mlp" is the old one."""
        return self.digests[answering_model(self.home)]

    def survive(self, faults: Faults, what: str, *, answers: str = "mlp") -> None:
        """The fault is in place: deploys, checks what answers, deploys again without it."""
        error = self.deploy()
        faults.heal()
        step = f"{what}: {error}"
        assert error, f"{what}: no failure"
        assert self.answer() == answers, step
        assert not self.deploy(), step
        assert self.answer() == "cnn", step
        assert leftovers(self.home) == [], step
        faults.survived.append(step)


@pytest.mark.parametrize("harm", ["cut before", "cut after", "killed"])
def test_a_connection_lost_at_any_step_leaves_what_ran_before(
    edgekiln: Deploy,
    faults: Faults,
    home: Path,
    models: dict[str, Path],
    tmp_path: Path,
    harm: str,
    record_property: Any,
) -> None:
    trial = Trial(edgekiln, home, models, tmp_path)
    trial.begin()
    faults.cut("ssh", 0, harm)
    assert not trial.deploy()
    calls = faults.heal()
    assert calls > 8, "facts, lock, prepare, rsync, verify, self-test, activate, measuring"
    current = 0  # the call that makes the release current
    for number in range(1, calls + 1):
        trial.begin()
        faults.cut("ssh", number, harm)
        error = trial.deploy()
        faults.heal()
        step = f"{harm} ssh {number}: {error or 'no failure'}"
        answer = trial.answer()
        if answer == "cnn":
            current = current or number
        assert answer == ("cnn" if current else "mlp"), step
        assert error or answer == "cnn", step
        assert not trial.deploy(), step
        assert trial.answer() == "cnn" and leftovers(home) == [], step
        faults.survived.append(step)
    assert current > calls / 2, "most of the steps come before the release is current"
    record_property("faults", len(faults.survived))
    print(*faults.survived, f"{len(faults.survived)} faults", sep="\n")


def test_what_goes_wrong_on_the_board_leaves_what_ran_before(
    edgekiln: Deploy,
    faults: Faults,
    home: Path,
    models: dict[str, Path],
    tmp_path: Path,
    record_property: Any,
) -> None:
    trial = Trial(edgekiln, home, models, tmp_path)
    full = "echo 'write failed: No space left on device' >&2; exit 1"
    other = "armv7l" if platform.machine() == "aarch64" else "aarch64"
    damage = (
        '$real "$@"; code=$?; for f in edgekiln/*/releases/.incoming-*/model.json; do '
        '[ ! -f "$f" ] || printf x >>"$f"; done; exit $code'
    )
    harms = {
        "rsync killed there": ("rsync", "kill -9 $$"),
        "disk full while files arrive": ("rsync", "echo 'No space left on device' >&2; exit 11"),
        "files damaged on the way": ("rsync", damage),
        "self-test failing": ("timeout", '[ $1 != 120 ] || exit 1; exec $real "$@"'),
        "self-test hanging": ("timeout", '[ $1 != 120 ] || exit 124; exec $real "$@"'),
        "killed before the rename": ("mv", "kill -9 $PPID; exit 137"),
        "killed after the rename of the release": (
            "ln",
            "kill -9 $PPID; exit 137",
        ),
        "disk full when the link is made": ("ln", full),
        "power cut while it syncs": ("sync", "kill -9 $PPID; exit 137"),
        "it says that it is of another kind": (
            "uname",
            f'[ "$1" = -m ] && echo {other} || exec $real "$@"',
        ),
    }
    for what, (program, body) in harms.items():
        if program == "uname" and shutil.which(f"{other}-linux-gnu-gcc") is None:
            continue
        trial.begin()
        faults.on_board(program, body)
        trial.survive(faults, what)
    record_property("faults", len(faults.survived))
    print(*faults.survived, f"{len(faults.survived)} faults", sep="\n")
