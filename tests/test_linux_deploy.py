"""The whole deploy to boards that run Linux, by the command, to SSH servers of the tests' own.

The server is this machine, so what is compiled is its own code and everything takes a second or
two; tests/test_virtual_pi_deploy.py does the same to boards of another architecture.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

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
from ssh_server import Server, run_server, server

from edgekiln.bench.results import read_results
from edgekiln.files import sha256_file

__all__ = ["edgekiln", "home", "models", "server"]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the server stands for a board"
)


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
    assert [run.name for run in results.runtimes] == ["generated C"], "--no-runtimes"
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


def test_a_model_that_would_lie_where_the_environments_do_is_refused(
    edgekiln: Deploy, home: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / "envs.tflite"
    shutil.copy(models["mlp"], model)
    code, _, err = edgekiln(model)
    assert code == 2 and "not a name for an application; got 'envs'" in one_line(err)
    assert not (tmp_path / "build").exists() and not list(home.iterdir())


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
    write_wrapper(
        server, "systemctl", f'echo "$*" >>{calls}; case $* in *ActiveState*) echo active ;; esac'
    )
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


def test_a_board_without_python_gets_the_c_program(
    edgekiln: Deploy, server: Server, home: Path, models: dict[str, Path]
) -> None:
    write_wrapper(server, "python3", "exit 127")
    code, out, err = edgekiln(models["cnn"])
    assert code == 0, err
    assert "Python none" in err and "left out: python3 is not installed" in err
    results = read_results(Path(out.strip()))
    own, *others = results.runtimes
    assert results.all_equal and own.error is None
    assert {run.error for run in others} <= {"python3 is not installed"}
    command = [home / "edgekiln" / NAME / "current/edgekiln-model", "--selftest"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    write_wrapper(server, "systemctl", "exit 0")
    code, _, err = edgekiln(models["cnn"], "--service")
    assert code == 3 and "the service needs python3" in one_line(err)


def test_a_service_is_refused_where_there_is_none_before_anything_is_made(
    edgekiln: Deploy, server: Server, models: dict[str, Path], tmp_path: Path
) -> None:
    write_wrapper(server, "systemctl", "exit 1")
    code, _, err = edgekiln(models["mlp"], "--service")
    assert code == 3 and "no systemd of the user runs there" in one_line(err)
    code, _, err = edgekiln(models["mlp"], "--http-port", "8080")
    assert (code, one_line(err)) == (2, "--http-port goes with --service")
    assert not (tmp_path / "build" / NAME).exists()


def test_a_service_that_does_not_start_brings_the_release_before_back(
    edgekiln: Deploy, server: Server, home: Path, models: dict[str, Path]
) -> None:
    # It starts while the release of the mlp is current.
    mlp = sha256_file(models["mlp"])
    write_wrapper(
        server,
        "systemctl",
        'case $* in *ActiveState*) echo active ;; *" restart "*) '
        f"grep -q {mlp} edgekiln/{NAME}/current/model.json ;; esac",
    )
    assert edgekiln(models["mlp"], "--no-runtimes", "--service", "--http-port", "8080")[0] == 0
    unit = home / f".config/systemd/user/edgekiln-{NAME}.service"
    assert "--serve 127.0.0.1:8080" in unit.read_text()
    code, _, err = edgekiln(models["cnn"], "--no-runtimes")
    line = one_line(err)
    assert code == 1 and "the service does not start" in line
    assert re.search(r"; release [0-9a-f]{20} is current again$", line), line
    assert answering_model(home) == mlp


def test_going_back_leaves_alone_what_somebody_else_deployed_meanwhile(
    edgekiln: Deploy, server: Server, home: Path, models: dict[str, Path]
) -> None:
    assert edgekiln(models["mlp"], "--no-runtimes")[0] == 0
    application = home / "edgekiln" / NAME
    shutil.copytree((application / "current").resolve(), application / "releases" / "abc")
    switch = f"ln -sfn releases/abc {application}/current"
    write_wrapper(
        server, "timeout", f'case "$*" in *--measure*) {switch}; exit 139;; esac; exec "$real" "$@"'
    )
    code, _, err = edgekiln(models["cnn"], "--no-runtimes")
    line = one_line(err)
    assert code == 1 and "it crashed (SIGSEGV); going back to release" in line
    assert line.endswith("another release is current; got abc")
    assert (application / "current").readlink() == Path("releases/abc")


MEASUREMENTS_THAT_FAIL = {
    "wrong bytes": '"$real" "$@" | tr "\\200" "\\201"; exit',
    "a crash": '"$real" "$@"; exit 139',
    "nonsense": "echo nonsense; exit",
}


@pytest.mark.parametrize("what", MEASUREMENTS_THAT_FAIL)
def test_a_measurement_that_fails_brings_the_release_before_back(
    edgekiln: Deploy,
    server: Server,
    home: Path,
    models: dict[str, Path],
    tmp_path: Path,
    what: str,
) -> None:
    assert edgekiln(models["mlp"], "--no-runtimes")[0] == 0
    # The self-test passes; what is measured later is not what the program said.
    harm = MEASUREMENTS_THAT_FAIL[what]
    write_wrapper(
        server, "timeout", f'case "$*" in *--measure*) {harm};; *) exec "$real" "$@";; esac'
    )
    code, _, err = edgekiln(models["cnn"], "--no-runtimes")
    line = one_line(err)
    assert code == 1 and re.search(r"; release [0-9a-f]{20} is current again$", line), line
    assert answering_model(home) == sha256_file(models["mlp"])
    assert not (tmp_path / "build" / NAME / "rpi" / "report.html").exists()
    (server.wrappers / "timeout").unlink()
    assert edgekiln(models["cnn"], "--no-runtimes")[0] == 0
    assert answering_model(home) == sha256_file(models["cnn"])
