"""`edgekiln bench` and `edgekiln verify` on a board that runs Linux: they deploy nothing.

The board is this machine, reached by an SSH server of the tests' own.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ssh_server import Server, server

from edgekiln import cli
from edgekiln.bench import linux
from edgekiln.bench.runners import tflm_available

__all__ = ["server"]

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the server stands for a board"
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command: ``(*arguments) -> (code, out, err)``; the board's home is empty."""
    monkeypatch.setenv("EDGEKILN_SSH_CONFIG", str(server.config))
    shutil.rmtree(server.home)
    server.home.mkdir()

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(list(map(str, arguments)))
        return (code, *capfd.readouterr())

    return call


@pytest.fixture
def model(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "my model.tflite"
    shutil.copy(root / "tests/golden/digits_mlp_int8.tflite", path)
    return path


def left_on(server: Server) -> list[str]:
    return sorted(str(path.relative_to(server.home)) for path in server.home.rglob("*"))


def test_bench_measures_and_leaves_nothing(
    run: Run, server: Server, model: Path, tmp_path: Path
) -> None:
    arguments = ("bench", model, "--board", "rpi", "--build-dir", tmp_path / "build")
    code, out, err = run(*arguments, "--host", server.alias, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["board"], found["emulated"], found["model"]) == ("rpi", False, "my_model")
    assert found["latency_us"] > 0 and found["instructions"] is None
    assert found["flash_bytes"] == found["flash_constants_bytes"] + found["flash_code_bytes"]
    assert found["ram_bytes"] >= found["arena_bytes"] > 0 and found["stack_bytes"] is None
    assert left_on(server) == ["edgekiln", "edgekiln/.measuring"]
    code, out, err = run(*arguments, "--host", server.alias)
    assert code == 0 and "latency" in out and "peak stack" not in out


def test_one_host_at_a_time(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("bench", model, "--board", "rpi", "--build-dir", tmp_path / "build")
    monkeypatch.setenv("RPI_HOST", "one two")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "rpi: this is for one host at a time; got one, two" in err
    monkeypatch.delenv("RPI_HOST")
    code, out, err = run(*arguments)
    assert code == 2 and "rpi: no host to deploy to" in err


@pytest.mark.skipif(not tflm_available(), reason="no tflite-micro wheel for this machine")
def test_verify_compares_every_byte_on_the_board(run: Run, server: Server, model: Path) -> None:
    options = ("verify", model, "--target", "rpi", "--host", server.alias, "--random", 7)
    code, out, err = run(*options, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["match"] and (found["samples"], found["target"]) == (7, "rpi")
    assert found["bytes"] == 70
    assert left_on(server) == ["edgekiln", "edgekiln/.measuring"]


@pytest.mark.skipif(not tflm_available(), reason="no tflite-micro wheel for this machine")
def test_verify_finds_the_node_that_a_board_computes_wrongly(
    run: Run, server: Server, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack = linux.unpack

    def falsify(*arguments: object) -> object:
        return tuple(array ^ 1 for array in unpack(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(linux, "unpack", falsify)
    options = ("verify", model, "--target", "rpi", "--host", server.alias, "--random", 2)
    code, out, err = run(*options, "--json")
    assert code == 1
    first = json.loads(out)["first_mismatch"]
    assert (first["engine"], first["node"]) == ("rpi", 0)
    assert "output bytes differ" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "--host", "pi"), "host: --host is for boards that run Linux"),
        (("verify", "--target", "mps2-an386", "--host", "pi"), "mps2-an386: --host is for boards"),
        (("bench", "--board", "host", "--host", "pi"), "host: --host is for boards that run Linux"),
        (
            ("bench", "--board", "rpi", "--port", "/dev/x"),
            "--port, --runner and --to are for boards",
        ),
        (("bench", "--board", "rpi", "--host", "-oProxyCommand=x"), "not a host"),
    ],
)
def test_options_that_do_not_go_with_the_board(
    run: Run, model: Path, arguments: tuple[str, ...], message: str
) -> None:
    command, *options = arguments
    code, out, err = run(command, model, *options)
    assert (code, out) == (2, "") and message in err
