"""The make targets and the set-up script, with recorders in place of the real programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

NASTY = [
    "plain",
    "with space",
    "it's",
    'a "quoted" one',
    "$(touch pwned)",
    "$$(touch pwned)",
    "`touch pwned`",
    "$(shell touch pwned)",
    "x; touch pwned",
    "--help",
    "../up",
    "line\ntouch pwned",
]


def run_make(
    root: Path, arguments: list[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    clean = {name: value for name, value in clean.items() if name != "MFLAGS"}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=root,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def tree(tmp_path: Path, root: Path) -> Path:
    """A directory with the Makefile, a set-up that does nothing and a recorder as edgekiln."""
    shutil.copy(root / "Makefile", tmp_path)
    (tmp_path / "scripts").mkdir()
    write_program(tmp_path / "scripts" / "setup", "exit 0")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    write_program(tmp_path / ".venv" / "bin" / "edgekiln", 'printf "%s\\0" "$@" >arguments')
    return tmp_path


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def recorded(tree: Path) -> list[str]:
    return (tree / "arguments").read_text().split("\0")[:-1]


def test_help_is_the_default_and_lists_every_target(root: Path, tree: Path) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    result = run_make(tree, [], {})
    assert result.returncode == 0
    listed = re.findall(r"^  ([a-z-]+) +\S", result.stdout, re.MULTILINE)
    assert listed == phony.group(1).split()
    assert result.stdout == run_make(tree, ["help"], {}).stdout


@pytest.mark.parametrize("target", ["deploy", "flash", "bench", "report"])
def test_targets_are_one_call_with_the_defaults(tree: Path, target: str) -> None:
    result = run_make(tree, [target], {})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert recorded(tree) == [target, "--board", "mps2-an386", "--", "digits_cnn"]


@pytest.mark.parametrize("value", NASTY)
@pytest.mark.parametrize("way", ["command line", "environment"])
def test_what_the_user_typed_arrives_unread(tree: Path, value: str, way: str) -> None:
    if way == "environment":
        result = run_make(tree, ["deploy"], {"BOARD": value, "MODEL": value})
    else:
        result = run_make(tree, ["deploy", f"BOARD={value}", f"MODEL={value}"], {})
    assert result.returncode == 0, result.stderr
    assert recorded(tree) == ["deploy", "--board", value, "--", value]
    assert not (tree / "pwned").exists()


@pytest.mark.parametrize("target", ["deploy", "flash", "bench"])
def test_data_for_a_keras_model(tree: Path, target: str) -> None:
    result = run_make(tree, [target, "MODEL=m.keras", "DATA=x.npz"], {})
    assert (result.returncode, result.stderr) == (0, "")
    assert recorded(tree) == [
        *(target, "--board", "mps2-an386", "--data", "x.npz", "--", "m.keras")
    ]


def test_data_of_the_environment_mean_something_else(tree: Path) -> None:
    assert run_make(tree, ["deploy"], {"DATA": "/data"}).returncode == 0
    assert "--data" not in recorded(tree)


@pytest.mark.parametrize("value", NASTY)
def test_data_arrive_unread(tree: Path, value: str) -> None:
    result = run_make(tree, ["deploy", f"DATA={value}"], {})
    assert result.returncode == 0, result.stderr
    assert recorded(tree)[3:5] == ["--data", value]
    assert not (tree / "pwned").exists()


@pytest.mark.parametrize("value", ["digits_cnn", *NASTY])
def test_boards_tries_the_model_and_one_that_fits_everywhere(tree: Path, value: str) -> None:
    result = run_make(tree, ["boards", f"MODEL={value}"], {})
    assert (result.returncode, result.stderr) == (0, "")
    assert recorded(tree) == ["boards", f"--try={value}", "--try=digits_mlp"]
    assert not (tree / "pwned").exists()


@pytest.mark.parametrize("target", ["deploy", "flash", "bench"])
def test_a_real_board(tree: Path, target: str) -> None:
    result = run_make(tree, [target, "BOARD=uno", "PORT=auto", "RUNNER=avrdude"], {})
    assert (result.returncode, result.stderr) == (0, "")
    words = (target, "--board", "uno", "--port", "auto", "--runner", "avrdude", "--", "digits_cnn")
    assert recorded(tree) == [*words]
    result = run_make(tree, [target], {"PORT": "8080", "RUNNER": "ubuntu"})
    assert recorded(tree) == [target, "--board", "mps2-an386", "--", "digits_cnn"]


@pytest.mark.parametrize("value", NASTY)
def test_ports_and_runners_arrive_unread(tree: Path, value: str) -> None:
    result = run_make(tree, ["flash", f"PORT={value}", f"RUNNER={value}"], {})
    assert result.returncode == 0, result.stderr
    assert recorded(tree)[3:7] == ["--port", value, "--runner", value]
    assert not (tree / "pwned").exists()


@pytest.mark.parametrize("value", [*NASTY, "virtual", "pi@one pi@two:22"])
@pytest.mark.parametrize("way", ["HOST", "RPI_HOST", "RPI_HOST of the environment"])
def test_hosts_arrive_unread(tree: Path, value: str, way: str) -> None:
    show = 'printf %s "$RPI_HOST" >host\nprintf %s "$EDGEKILN_HOST" >host-for-setup'
    write_program(tree / ".venv" / "bin" / "edgekiln", show)
    variable, _, environment = way.partition(" ")
    if environment:
        result = run_make(tree, ["deploy", "BOARD=rpi"], {variable: value})
    else:
        result = run_make(tree, ["deploy", "BOARD=rpi", f"{variable}={value}"], {})
    assert result.returncode == 0, result.stderr
    assert [(tree / name).read_text() for name in ("host", "host-for-setup")] == [value, value]
    assert not (tree / "pwned").exists()


def test_the_host_of_the_environment_is_another(tree: Path) -> None:
    write_program(tree / ".venv" / "bin" / "edgekiln", 'printf %s "$RPI_HOST" >host')
    assert run_make(tree, ["deploy"], {"HOST": "x86_64-linux", "RPI_HOST": "pi@a"}).returncode == 0
    assert (tree / "host").read_text() == "pi@a"


def test_a_failing_set_up_stops_the_target(tree: Path) -> None:
    write_program(tree / "scripts" / "setup", "exit 3")
    assert run_make(tree, ["deploy"], {}).returncode != 0
    assert not (tree / "arguments").exists()
