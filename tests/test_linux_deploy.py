"""The whole deploy to boards that run Linux, by the command, to SSH servers of the tests' own.

The server is this machine, so what is compiled is its own code and everything takes a second or
two; tests/test_virtual_pi_deploy.py does the same to boards of another architecture.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh_server import Server, run_server, server

from edgekiln import cli
from edgekiln.bench.results import read_results
from edgekiln.files import sha256_file
from edgekiln.firmware.linux import ssh

__all__ = ["server"]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the server stands for a board"
)

Deploy = Callable[..., tuple[int, str, str]]
NAME = "my_model"


@pytest.fixture
def models(root: Path, tmp_path: Path) -> dict[str, Path]:
    """Two models of the same name: releases of one application."""
    paths = {}
    for kind in ("mlp", "cnn"):
        paths[kind] = tmp_path / kind / "my model.tflite"
        paths[kind].parent.mkdir()
        shutil.copy(root / f"tests/golden/digits_{kind}_int8.tflite", paths[kind])
    return paths


@pytest.fixture
def home(server: Server) -> Iterator[Path]:
    """The home directory on the board, where nothing has been deployed."""
    shutil.rmtree(server.home)
    server.home.mkdir()
    yield server.home
    for wrapper in server.wrappers.iterdir():
        wrapper.unlink()


@pytest.fixture
def edgekiln(
    server: Server,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Deploy:
    """Runs `edgekiln deploy --board rpi` to the server: ``(*arguments) -> (code, out, err)``."""
    monkeypatch.setenv("EDGEKILN_SSH_CONFIG", str(server.config))
    monkeypatch.setenv("RPI_HOST", server.alias)

    def call(*arguments: object) -> tuple[int, str, str]:
        command = ["deploy", "--board", "rpi", "--build-dir", str(tmp_path / "build")]
        code = cli.main([*command, *map(str, arguments)])
        return (code, *capfd.readouterr())

    return call


def answering_model(home: Path) -> str:
    """Returns the SHA-256 of the model that runs, asked as a user would; its self-test passes."""
    current = home / "edgekiln" / NAME / "current"
    command = ["./edgekiln-run", "--selftest"]
    subprocess.run(command, cwd=current, check=True, capture_output=True, timeout=60)
    said = subprocess.run(
        [current / "edgekiln-run", "--version"], check=True, capture_output=True, timeout=60
    )
    return str(json.loads(said.stdout)["model_sha256"])


def leftovers(home: Path) -> list[str]:
    root = home / "edgekiln" / NAME
    paths = [*root.iterdir(), *(root / "releases").iterdir()] if root.exists() else []
    return [path.name for path in paths if path.name.startswith(".")]


def one_line(err: str) -> str:
    """Returns the last line, the error, after making sure that it is the only one."""
    lines = err.splitlines()
    assert [line.startswith("edgekiln: error: ") for line in lines].count(True) == 1, err
    assert lines[-1].startswith("edgekiln: error: "), err
    assert "Traceback" not in err
    return lines[-1].removeprefix("edgekiln: error: ")


def stages_run(err: str) -> set[str]:
    return {line.partition(":")[0] for line in err.splitlines() if ": done in" in line}


def test_a_model_is_deployed_measured_and_reported(
    edgekiln: Deploy, home: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    code, out, err = edgekiln(models["cnn"], "--no-runtimes")
    assert code == 0, err
    path = tmp_path / "build" / NAME / "rpi" / "results.json"
    assert out == f"{path}\n"
    results = read_results(path)
    assert results.all_equal and results.accuracy.device_equals_host_bytes
    assert (results.board, results.emulated) == ("rpi", False)
    assert {"board", "generated C on host"} <= {c.left for c in results.comparisons} | {
        c.right for c in results.comparisons
    }
    assert path.with_name("report.html").read_text(encoding="utf-8").startswith("<!")
    assert answering_model(home) == sha256_file(models["cnn"])
    for artifact in results.artifacts:
        made = tmp_path / "build" / NAME / artifact.name
        assert (artifact.bytes, artifact.sha256) == (made.stat().st_size, sha256_file(made))
    assert any(artifact.name.endswith("/edgekiln-model") for artifact in results.artifacts)


def test_a_second_deploy_sends_nothing_and_measures_nothing(
    edgekiln: Deploy, home: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    assert edgekiln(models["mlp"], "--no-runtimes")[0] == 0
    build, board = tmp_path / "build", home / "edgekiln" / NAME / "releases"
    before = {
        path: path.stat().st_mtime_ns
        for directory in (build, board)
        for path in directory.rglob("*")
        if path.is_file()
    }
    code, out, err = edgekiln(models["mlp"], "--no-runtimes", "--json")
    assert code == 0 and stages_run(err) == set()
    assert "is current already; nothing was sent" in err
    assert json.loads(out)["model"] == NAME
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if after[path] != before[path]} == {
        # written anew with what it held: that makes a directory a release
        path
        for path in before
        if path.name == "manifest.sha256" and build in path.parents
    }


def test_releases_are_listed_and_rolled_back(
    edgekiln: Deploy, home: Path, models: dict[str, Path]
) -> None:
    assert edgekiln("--list", models["mlp"])[:2] == (0, "host  release  state  bytes\n")
    assert one_line(edgekiln("--rollback", models["mlp"])[2]) == (
        "virtual-pi: nothing has been deployed there"
    )
    for kind in ("mlp", "cnn"):
        assert edgekiln(models[kind], "--no-runtimes")[0] == 0
    code, out, _ = edgekiln("--list", models["mlp"], "--json")
    newest, oldest = json.loads(out)["virtual-pi"]
    assert code == 0 and newest["is_current"] and newest["is_whole"] and not oldest["is_current"]
    code, out, _ = edgekiln("--list", models["mlp"])
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["virtual-pi", newest["id"], "current", f"{newest['bytes']:,}"],
        ["virtual-pi", oldest["id"], "kept", f"{oldest['bytes']:,}"],
    ]
    code, out, _ = edgekiln("--rollback", models["mlp"])
    assert (code, out.splitlines()[1].split()) == (0, ["virtual-pi", oldest["id"], newest["id"]])
    assert answering_model(home) == sha256_file(models["mlp"])
    assert one_line(edgekiln("--rollback", models["mlp"])[2]) == (
        "virtual-pi: there is no earlier release; got my_model"
    )
    assert edgekiln(models["cnn"], "--no-runtimes")[0] == 0
    assert (
        json.loads(edgekiln("--rollback", models["mlp"], "--json")[1])["virtual-pi"]["id"]
        == (oldest["id"])
    )


def test_several_hosts_are_deployed_to_at_once(
    edgekiln: Deploy,
    server: Server,
    home: Path,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosts = ["--host", server.alias, "--host", "another-pi", "--host", "pi@no-such-pi.invalid"]
    (tmp_path / "other").mkdir()
    with run_server(tmp_path / "other", "another-pi") as other:
        both = tmp_path / "both"
        both.write_text(server.config.read_text() + other.config.read_text())
        monkeypatch.setenv("EDGEKILN_SSH_CONFIG", str(both))
        code, out, err = edgekiln(models["cnn"], "--no-runtimes", "--json", *hosts[:4])
        assert code == 0, err
        assert [result["accuracy"]["samples"] for result in json.loads(out)] == [20, 20]
        for place in (home, other.home):
            assert answering_model(place) == sha256_file(models["cnn"])
        directory = tmp_path / "build" / NAME / "rpi" / "hosts"
        assert sorted(path.name for path in directory.iterdir()) == ["another-pi", "virtual-pi"]
        assert (directory / "another-pi" / "report.html").exists()
        code, out, err = edgekiln(models["mlp"], "--no-runtimes", *hosts)
        line = one_line(err)
        assert line.startswith("1 of 3 hosts failed; the first: pi@no-such-pi.invalid: no host of")
        assert code == 3 and out == ""
        for place in (home, other.home):
            assert answering_model(place) == sha256_file(models["mlp"]), "the others are done"
        table = err[err.index("my_model on rpi") :]
        assert [name in table for name in ("virtual-pi", "another-pi", "failed")] == [True] * 3
        code, out, _ = edgekiln("--rollback", models["mlp"], *hosts[:4])
        assert code == 0 and len(out.splitlines()) == 3
        code, out, err = edgekiln("--list", models["mlp"], *hosts)
        assert code == 3 and one_line(err).startswith("1 of 3 hosts failed")


def test_without_a_host_the_line_says_what_to_do(
    edgekiln: Deploy, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RPI_HOST")
    for more in ([], ["--list"], ["--rollback"]):
        code, out, err = edgekiln(models["mlp"], *more)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "set RPI_HOST=pi@raspberrypi.local" in err and "HOST=virtual" in err
    assert not (tmp_path / "build").exists(), "nothing is made before that is known"


@pytest.mark.parametrize("option", [["--host", "x"], ["--list"], ["--rollback"], ["--service"]])
def test_microcontrollers_have_no_hosts(
    edgekiln: Deploy, models: dict[str, Path], option: list[str]
) -> None:
    code, _, err = edgekiln(models["mlp"], "--board", "host", *option)
    assert code == 2 and "are for boards that run Linux" in one_line(err)


NASTY = ["a b", "it's", 'say "hi"', "$(touch pwned)", "`touch pwned`", "a;touch pwned", "-oX", ".."]


@pytest.mark.parametrize("host", [*NASTY, "pi@$(touch pwned)", "x\ntouch pwned", "virtual:;id"])
def test_a_host_is_never_a_command(
    edgekiln: Deploy,
    home: Path,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["--host", host], [f"--host={host}", "--list"]):
        code, _, err = edgekiln(models["mlp"], *arguments)
        assert code == 2, err
        one_line(err)
    monkeypatch.setenv("RPI_HOST", host)
    assert edgekiln(models["mlp"])[0] in (2, 3)
    assert not list(tmp_path.rglob("pwned")) and not list(home.rglob("pwned"))


@pytest.mark.parametrize(
    "name",
    ['it\'s "a b"; touch pwned', "$(touch pwned)`touch pwned`", "-rf", "--help", "a..b"],
)
def test_a_model_of_any_name_is_deployed(
    edgekiln: Deploy,
    home: Path,
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    directory = tmp_path / name
    directory.mkdir()
    shutil.copy(models["mlp"], directory / f"{name}.tflite")
    monkeypatch.chdir(tmp_path)
    build = directory / f"build of {name}"
    code, out, err = edgekiln(
        "--no-runtimes", "--build-dir", build, "--", directory / f"{name}.tflite"
    )
    assert code == 0, err
    (application,) = (path for path in (home / "edgekiln").iterdir() if path.name[0] != ".")
    assert application.name.isidentifier()
    command = [application / "current/edgekiln-run", "--selftest"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert Path(out.strip()).is_file()
    assert not list(tmp_path.rglob("pwned")) and not list(home.rglob("pwned"))


def write_wrapper(server: Server, name: str, body: str) -> None:
    """Puts a program of the board's in front of the real one, which is ``$real``."""
    wrapper = server.wrappers / name
    wrapper.write_text(f"#!/bin/sh\nreal={shutil.which(name)}\n{body}\n")
    wrapper.chmod(0o755)


def test_what_the_board_lacks_is_said_before_anything_is_made(
    edgekiln: Deploy, server: Server, models: dict[str, Path], tmp_path: Path
) -> None:
    write_wrapper(server, "uname", '[ "$1" = -m ] && echo armv6l || exec $real "$@"')
    assert one_line(edgekiln(models["mlp"])[2]) == (
        "virtual-pi: nothing can be compiled for its processor; got armv6l; allowed: aarch64, "
        "armv7l, x86_64"
    )
    write_wrapper(server, "uname", "echo sparc")
    assert "edgekiln knows no such architecture; got sparc" in edgekiln(models["mlp"])[2]
    assert not (tmp_path / "build" / NAME).exists()


def test_the_service_is_installed_refreshed_and_removed(
    edgekiln: Deploy, server: Server, home: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    write_wrapper(server, "systemctl", f'echo "$*" >>{calls}')
    write_wrapper(server, "loginctl", "[ $1 != show-user ] || echo no")
    unit = home / ".config/systemd/user/edgekiln-my_model.service"

    def deploy(*arguments: object) -> str:
        calls.write_text("")
        code, _, err = edgekiln("--no-runtimes", *arguments)
        assert code == 0, err
        return err

    deploy(models["mlp"])
    assert not unit.exists() and "restart" not in calls.read_text()
    err = deploy(models["mlp"], "--service")
    assert "edgekiln-my_model.sock in $XDG_RUNTIME_DIR" in err
    assert "sudo loginctl enable-linger" in err
    assert f"edgekiln/{NAME}/current/edgekiln-run --serve" in unit.read_text()
    err = deploy(models["cnn"])
    assert "the service runs the current release" in err
    assert "--user restart edgekiln-my_model.service" in calls.read_text()
    deploy(models["cnn"], "--rollback")
    assert "--user restart edgekiln-my_model.service" in calls.read_text()
    deploy(models["cnn"], "--no-service")
    assert not unit.exists()


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


@pytest.mark.slow
@pytest.mark.timeout(1500)
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


@pytest.mark.slow
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
