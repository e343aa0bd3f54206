"""Deploys by the command to an SSH server that stands for a board, for tests."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ssh_server import Server

from edgekiln import cli

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


def one_line(err: str) -> str:
    """Returns the last line, the error, after making sure that it is the only one."""
    lines = err.splitlines()
    assert [line.startswith("edgekiln: error: ") for line in lines].count(True) == 1, err
    assert lines[-1].startswith("edgekiln: error: "), err
    assert "Traceback" not in err
    return lines[-1].removeprefix("edgekiln: error: ")


def write_wrapper(server: Server, name: str, body: str) -> None:
    """Puts a program of the board's in front of the real one, which is ``$real``."""
    wrapper = server.wrappers / name
    wrapper.write_text(f"#!/bin/sh\nreal={shutil.which(name)}\n{body}\n")
    wrapper.chmod(0o755)
