"""A systemd unit of the user that serves the current release on a Unix socket."""

from __future__ import annotations

import re
from pathlib import Path

from edgekiln.errors import BadInputError, BoardError, CheckFailedError
from edgekiln.firmware.linux.releases import DEFAULT_BASE, check_name
from edgekiln.firmware.linux.ssh import Connection, check_remote_path, explain_script

SERVICE_SCRIPT = Path(__file__).parent / "service.sh"

_SOCKET = "edgekiln-{name}.sock"
_DOES_NOT_START = 70  # of service.sh
#: What the service has no need of. Only what a systemd of the user can do without root.
_HARDENING = (
    "NoNewPrivileges=yes",
    "UMask=0077",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
)
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")


def unit_name(name: str) -> str:
    """Returns the name of an application's unit."""
    return f"edgekiln-{check_name(name)}.service"


def emit_unit(name: str, *, base: str = DEFAULT_BASE, http_port: int | None = None) -> str:
    """Returns the text of an application's unit.

    Args:
        name: The application's name.
        base: The directory of the releases on the board.
        http_port: A port of the loopback interface to serve on; None for the Unix socket
            edgekiln-<name>.sock in %t.

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
    address = f"127.0.0.1:{http_port}" if http_port else f"unix:%t/{_SOCKET.format(name=name)}"
    return "\n".join(
        (
            "[Unit]",
            f"Description=edgekiln model {name}",
            "StartLimitIntervalSec=60",
            "StartLimitBurst=5",
            "",
            "[Service]",
            "Type=notify",
            f"ExecStartPre={program} --selftest",
            f"ExecStart={program} --serve {address}",
            "Restart=on-failure",
            "RestartSec=2",
            *_HARDENING,
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        )
    )


def install_service(
    connection: Connection, name: str, *, base: str = DEFAULT_BASE, http_port: int | None = None
) -> tuple[str, ...]:
    """Installs the unit of an application, and starts it anew.

    Args:
        connection: The board.
        name: The application's name.
        base: As for `emit_unit`.
        http_port: As for `emit_unit`.

    Returns:
        What there is to say of it: where its socket is, and what to do so that it runs while the
        user is not logged in, where that is not so.

    Raises:
        BadInputError: As `emit_unit` does.
        BoardError: systemd is not there.
        CheckFailedError: The service does not start.
    """
    unit = emit_unit(name, base=base, http_port=http_port).encode()
    said = _run(connection, "install", name, unit)
    place = f"{_SOCKET.format(name=name)} in $XDG_RUNTIME_DIR"
    serves = f"serves on {f'http://127.0.0.1:{http_port} there' if http_port else place}"
    linger = ("it ends when the user logs out; there: sudo loginctl enable-linger $USER",)
    return (serves, *(() if "linger=yes" in said else linger))


def refresh_service(connection: Connection, name: str) -> bool:
    """Starts an application's service anew, so that it runs the current release.

    Returns:
        Whether there is such a service and it runs.

    Raises:
        CheckFailedError: It does not start with the current release.
        BoardError: systemd does not answer there.
    """
    return "refreshed" in _run(connection, "refresh", name)


def remove_service(connection: Connection, name: str) -> None:
    """Stops an application's service and removes its unit.

    Raises:
        BoardError: systemd is not there.
    """
    _run(connection, "remove", name)


def _run(connection: Connection, action: str, name: str, unit: bytes = b"") -> str:
    script = SERVICE_SCRIPT.read_text(encoding="utf-8")
    done = connection.run(script, action, unit_name(name), stdin=unit, check=False)
    if done.returncode:
        kind = CheckFailedError if done.returncode == _DOES_NOT_START else BoardError
        raise kind(explain_script(done), where=connection.host)
    return done.text
