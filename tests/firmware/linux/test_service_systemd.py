"""The service of a model under a real systemd: it starts, is started again, follows releases."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ssh_server import Server, run_server
from user_systemd import run_user_systemd

from edgekiln.errors import CheckFailedError
from edgekiln.firmware.linux.facts import find_facts
from edgekiln.firmware.linux.releases import Release, deploy_release, make_release, rollback
from edgekiln.firmware.linux.runner.assemble import assemble_release
from edgekiln.firmware.linux.runner.example_client import UnixConnection
from edgekiln.firmware.linux.runner.program import build_program
from edgekiln.firmware.linux.service import install_service, refresh_service, remove_service
from edgekiln.firmware.linux.ssh import Connection

NAME = "digits_cnn"

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="programs are built for x86_64 here"),
]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server on which a systemd of the user runs, and that one's XDG_RUNTIME_DIR."""
    directory = tmp_path_factory.mktemp("sshd")
    home = directory / "home"
    home.mkdir()
    with (
        run_user_systemd(home) as runtime,
        run_server(
            directory, environment=f"XDG_RUNTIME_DIR={runtime} SYSTEMD_IGNORE_CHROOT=1"
        ) as server,
    ):
        yield server, runtime


@pytest.fixture
def connection(board: tuple[Server, Path]) -> Iterator[Connection]:
    with board[0].connect() as opened:
        yield opened


@pytest.fixture
def releases(
    digits_bundle: Callable[[str, str], Path], tmp_path: Path
) -> tuple[Release, Release, Release]:
    """Two releases that work, and one whose self-test passes but whose server does not start."""
    program = build_program(digits_bundle("cnn", "generic"), "x86_64", tmp_path / "program")
    one = assemble_release(program, tmp_path / "one")
    two = assemble_release(program, tmp_path / "two", class_names=[f"c{i}" for i in range(10)])
    assemble_release(program, tmp_path / "broken")
    runner = tmp_path / "broken/edgekiln-run"
    text = runner.read_text(encoding="utf-8")
    runner.write_text(text.replace("def make_server(", "def make_no_server("), encoding="utf-8")
    return one, two, make_release(tmp_path / "broken", NAME, architecture="x86_64")


def get(runtime: Path, url: str) -> dict[str, str]:
    connection = UnixConnection(str(runtime / f"edgekiln-{NAME}.sock"))
    connection.request("GET", url)
    answer: dict[str, str] = json.load(connection.getresponse())
    connection.close()
    return answer


def show(board: tuple[Server, Path], what: str) -> str:
    command = ["systemctl", "--user", "show", "--value", f"--property={what}", f"edgekiln-{NAME}"]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(board[1]), "SYSTEMD_IGNORE_CHROOT": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_the_service_follows_the_releases(
    board: tuple[Server, Path], connection: Connection, releases: tuple[Release, ...]
) -> None:
    runtime = board[1]
    one, two, broken = releases
    assert find_facts(connection).has_systemd
    deploy_release(connection, one)
    install_service(connection, NAME)
    # It answers as soon as that has returned: nothing here waits.
    assert get(runtime, "/health") == {"status": "ok", "model": NAME}
    assert get(runtime, "/version")["release"] == one.id

    deploy_release(connection, two)
    assert refresh_service(connection, NAME)
    assert get(runtime, "/version")["release"] == two.id

    deploy_release(connection, broken)
    with pytest.raises(CheckFailedError, match="the service does not start"):
        refresh_service(connection, NAME)
    rollback(connection, NAME, only_from=broken.id)
    assert refresh_service(connection, NAME), "however often the broken one has failed"
    assert get(runtime, "/version")["release"] == two.id

    rollback(connection, NAME)
    assert refresh_service(connection, NAME)
    assert get(runtime, "/version")["release"] == one.id

    remove_service(connection, NAME)
    assert show(board, "LoadState") == "not-found"
    assert not refresh_service(connection, NAME)


def test_the_service_is_started_again_when_it_was_killed(
    board: tuple[Server, Path], connection: Connection, releases: tuple[Release, ...]
) -> None:
    deploy_release(connection, releases[0])
    install_service(connection, NAME)
    command = ["pgrep", "-f", f"edgekiln-run --serve unix:{board[1]}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(found[0]), signal.SIGKILL)
    connection.run(
        "until [ $(systemctl --user show --value --property=NRestarts $1) = 1 ] && "
        "systemctl --user --quiet is-active $1; do sleep 0.1; done",
        f"edgekiln-{NAME}",
    )
    assert get(board[1], "/health")["status"] == "ok"
    remove_service(connection, NAME)


def test_it_serves_on_loopback_where_that_is_wanted(
    board: tuple[Server, Path], connection: Connection, releases: tuple[Release, ...]
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    from ssh_server import free_port

    deploy_release(connection, releases[0])
    port = free_port()
    (said, *_) = install_service(connection, NAME, http_port=port)
    assert said == f"serves on http://127.0.0.1:{port} there"
    done = connection.run('curl -s "$1"', f"http://127.0.0.1:{port}/version")
    assert json.loads(done.text)["release"] == releases[0].id
    remove_service(connection, NAME)
