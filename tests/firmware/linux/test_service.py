from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekiln.errors import BadInputError, BoardError, CheckFailedError
from edgekiln.firmware.linux.service import (
    emit_unit,
    install_service,
    refresh_service,
    remove_service,
)
from edgekiln.firmware.linux.ssh import Connection


@pytest.fixture
def systemctl(server: Any, tmp_path: Path) -> Iterator[Path]:
    """Takes the place of systemctl on the board and writes down how it is called."""
    calls = tmp_path / "calls"
    program = server.wrappers / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n')
    program.chmod(0o755)
    yield calls
    program.unlink()


def test_unit_runs_the_current_release_and_restarts_it() -> None:
    lines = emit_unit("digits").splitlines()
    program = "%h/edgekiln/digits/current/edgekiln-run"
    assert f"ExecStart={program} --serve unix:%t/edgekiln-digits.sock" in lines
    assert f"ExecStartPre={program} --selftest" in lines
    assert {"Type=notify", "Restart=on-failure", "NoNewPrivileges=yes"} <= set(lines)
    served = emit_unit("digits", http_port=8080)
    assert f"ExecStart={program} --serve 127.0.0.1:8080" in served.splitlines()
    assert "ExecStart=/opt/x/m/current/edgekiln-run" in emit_unit("m", base="/opt/x/")


@pytest.mark.parametrize("base", ["a b", "$(id)", "a;b", "a%b", "a\nExecStart=/bin/sh", "../x"])
def test_bases_that_a_unit_would_read_are_refused(base: str) -> None:
    with pytest.raises(BadInputError):
        emit_unit("digits", base=base)


def test_service_is_installed_and_removed(
    server: Any, connection: Connection, systemctl: Path
) -> None:
    install_service(connection, "digits")
    unit = server.directory / "home/.config/systemd/user/edgekiln-digits.service"
    assert unit.read_text() == emit_unit("digits")
    remove_service(connection, "digits")
    assert not unit.exists()
    assert systemctl.read_text().splitlines() == [
        "--user daemon-reload",
        "--user enable --quiet edgekiln-digits.service",
        "--user reset-failed edgekiln-digits.service",
        "--user restart edgekiln-digits.service",
        "--user disable --quiet --now edgekiln-digits.service",
        "--user daemon-reload",
    ]


def test_a_service_that_does_not_start_fails_a_check(
    server: Any, connection: Connection, systemctl: Path
) -> None:
    program = server.wrappers / "systemctl"
    program.write_text("#!/bin/sh\ncase $* in *restart*) exit 1 ;; *State*) echo failed ;; esac\n")
    for call in (install_service, refresh_service):
        with pytest.raises(CheckFailedError, match="virtual-pi: the service does not start"):
            call(connection, "digits")


@pytest.mark.parametrize(
    ("state", "refreshed"),
    [("active", True), ("activating", True), ("failed", True), ("inactive", False)],
)
def test_what_runs_or_should_is_started_anew(
    server: Any, connection: Connection, systemctl: Path, state: str, refreshed: bool
) -> None:
    install_service(connection, "digits")
    (server.wrappers / "systemctl").write_text(
        f'#!/bin/sh\necho "$*" >>{systemctl}\ncase $* in *State*) echo {state} ;; esac\n'
    )
    systemctl.unlink()
    assert refresh_service(connection, "digits") == refreshed
    assert ("restart" in systemctl.read_text()) == refreshed


def test_a_systemd_that_does_not_answer_is_an_error(
    server: Any, connection: Connection, systemctl: Path
) -> None:
    install_service(connection, "digits")
    (server.wrappers / "systemctl").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(BoardError, match="may be that of the release before"):
        refresh_service(connection, "digits")
