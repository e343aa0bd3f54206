"""A systemd unit of the user that serves the current release on a Unix socket."""

from __future__ import annotations

import re
from pathlib import Path

from edgekiln.errors import BadInputError
from edgekiln.firmware.linux.releases import DEFAULT_BASE, check_name
from edgekiln.firmware.linux.ssh import Connection, check_remote_path

SERVICE_SCRIPT = Path(__file__).parent / "service.sh"

_SOCKET = "edgekiln-{name}.sock"
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")


def unit_name(name: str) -> str:
    """Returns the name of an application's unit."""
    return f"edgekiln-{check_name(name)}.service"


def emit_unit(name: str, *, base: str = DEFAULT_BASE) -> str:
    """Returns the text of an application's unit. Its socket is edgekiln-<name>.sock in %t.

    Args:
        name: The application's name.
        base: The directory of the releases on the board.

    Raises:
        BadInputError: The directory has a name that a unit would have to quote.
    """
    check_remote_path(base)
    if not _PLAIN_PATH.fullmatch(base):
        raise BadInputError(
            "a service needs a plain directory", got=repr(base), allowed="letters, digits, _ . - /"
        )
    home = base if base.startswith("/") else f"%h/{base}"
    program = f"{home.rstrip('/')}/{check_name(name)}/current/edgekiln-run"
    return "\n".join(
        (
            "[Unit]",
            f"Description=edgekiln model {name}",
            "StartLimitIntervalSec=60",
            "StartLimitBurst=5",
            "",
            "[Service]",
            f"ExecStartPre={program} --selftest",
            f"ExecStart={program} --serve unix:%t/{_SOCKET.format(name=name)}",
            "Restart=on-failure",
            "RestartSec=2",
            "NoNewPrivileges=yes",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        )
    )


def install_service(
    connection: Connection, name: str, *, base: str = DEFAULT_BASE
) -> tuple[str, ...]:
    """Installs the unit of an application, and starts it anew.

    Returns:
        What there is to say of it: where its socket is, and what to do so that it runs while the
        user is not logged in, where that is not so.

    Raises:
        BadInputError: As `emit_unit` does.
        BoardError: systemd is not there, or the service does not start.
    """
    unit = emit_unit(name, base=base).encode()
    script = SERVICE_SCRIPT.read_text(encoding="utf-8")
    said = connection.run(script, "install", unit_name(name), stdin=unit).text
    socket = f"serves on {_SOCKET.format(name=name)} in $XDG_RUNTIME_DIR"
    linger = ("it ends when the user logs out; there: sudo loginctl enable-linger $USER",)
    return (socket, *(linger if "linger=no" in said else ()))


def refresh_service(connection: Connection, name: str) -> bool:
    """Starts an application's service anew, so that it runs the current release.

    Returns:
        Whether there is such a service and it runs.

    Raises:
        BoardError: It does not start with the current release.
    """
    script = SERVICE_SCRIPT.read_text(encoding="utf-8")
    return "refreshed" in connection.run(script, "refresh", unit_name(name)).text


def remove_service(connection: Connection, name: str) -> None:
    """Stops an application's service and removes its unit.

    Raises:
        BoardError: systemd is not there.
    """
    script = SERVICE_SCRIPT.read_text(encoding="utf-8")
    connection.run(script, "remove", unit_name(name))
