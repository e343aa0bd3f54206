"""Python environments on a board, each in a directory of its own, for LiteRT and ONNX Runtime."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekiln.console import say
from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.files import new_directory, sha256_bytes
from edgekiln.firmware.linux.facts import Facts
from edgekiln.firmware.linux.lock import hold_lock
from edgekiln.firmware.linux.releases import DEFAULT_BASE
from edgekiln.firmware.linux.ssh import Connection, check_remote_path, last_line
from edgekiln.firmware.virtual_pi.rootfs import cache_directory, locked

INSTALL_SCRIPT = Path(__file__).parent / "install.sh"
INSTALL_TIMEOUT_S = 1800.0
LOCK_WAIT_S = 1800

_ID_DIGITS = 20
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*((==|>=|<)[0-9][0-9A-Za-z.]*)?")
#: Sent along with the wheels, so that the board needs no pip of its own.
_PIP = "pip>=23"


@dataclass(frozen=True)
class Environment:
    """A Python environment on a board: its directory there, and whether it was there already."""

    directory: str
    was_there: bool

    @property
    def python(self) -> str:
        """The path of its Python on the board."""
        return f"{self.directory}/bin/python"


def prepare_environment(
    connection: Connection,
    requirements: Sequence[str],
    *,
    facts: Facts,
    base: str = DEFAULT_BASE,
    cache: Path | None = None,
) -> Environment:
    """Makes a Python environment on a board, unless it is there, whoever has internet.

    Wheels are fetched by this machine, once for all boards of a kind, and sent. Where it cannot
    get them, the board's pip tries.

    Args:
        connection: The board.
        requirements: What it shall hold, such as `RuntimeChoice.requirements`.
        facts: What is known of the board.
        base: The directory on the board that the environments are below.
        cache: Where wheels are kept here; `cache_directory` by default.

    Raises:
        BadInputError: As `install_environment` does.
        BoardError: As `install_environment` does.
    """
    found = find_environment(connection, requirements, facts=facts, base=base)
    if found is not None:
        return found
    try:
        wheels: Path | None = fetch_wheels(facts, requirements, cache)
    except ToolMissingError as error:
        say(f"{connection.host}: its own pip has to get the packages, as {error}")
        wheels = None
    return install_environment(connection, requirements, facts=facts, wheelhouse=wheels, base=base)


def find_environment(
    connection: Connection, requirements: Sequence[str], *, facts: Facts, base: str = DEFAULT_BASE
) -> Environment | None:
    """Returns the environment that holds this, or None where it has to be made.

    Args as for `install_environment`.

    Raises:
        BadInputError: A requirement is not of the form ``name`` or ``name==version``.
        BoardError: The board cannot be reached.
    """
    name = _environment_id(requirements, facts)
    script = INSTALL_SCRIPT.read_text(encoding="utf-8")
    said = connection.run(script, check_remote_path(base), name, "look").text.strip()
    return Environment(f"{_envs(base)}/{name}", was_there=True) if said == "there" else None


def install_environment(
    connection: Connection,
    requirements: Sequence[str],
    *,
    facts: Facts,
    wheelhouse: Path | None = None,
    base: str = DEFAULT_BASE,
) -> Environment:
    """Makes a Python environment on a board, unless the same one is there.

    Args:
        connection: The board.
        requirements: What it shall hold, such as `RuntimeChoice.requirements`.
        facts: What is known of the board; its Python's version is a part of the environment.
        wheelhouse: A directory with all wheels, which are sent along; None lets the board's pip
            get them from the internet.
        base: The directory on the board that the environments are below.

    Raises:
        BadInputError: A requirement is not of the form ``name`` or ``name==version``.
        BoardError: The board lacks python3-venv, a wheel is missing, or its disk is full. Nothing
            is left of the environment then.
    """
    name = _environment_id(requirements, facts)
    # Deploys of different models may want the same environment at the same time.
    with hold_lock(connection, f"{_envs(base)}/lock", wait_s=LOCK_WAIT_S):
        found = find_environment(connection, requirements, facts=facts, base=base)
        if found is not None:
            return found
        source = "internet"
        if wheelhouse:
            size_bytes = sum(path.stat().st_size for path in wheelhouse.iterdir())
            say(f"{connection.host}: sending {size_bytes >> 20} MiB of Python wheels, once")
            connection.push(wheelhouse, f"{_envs(base)}/.wheels-{name}")
            source = "wheels"
        script = INSTALL_SCRIPT.read_text(encoding="utf-8")
        connection.run(script, base, name, source, *requirements, timeout_s=INSTALL_TIMEOUT_S)
    return Environment(f"{_envs(base)}/{name}", was_there=False)


def fetch_wheels(facts: Facts, requirements: Sequence[str], cache: Path | None = None) -> Path:
    """Returns a directory with the wheels that a board needs, fetched if not in the cache.

    Args:
        facts: What is known of the board.
        requirements: What is wanted; what it depends on comes along, and pip.
        cache: Where they are kept; `cache_directory` by default.

    Raises:
        BadInputError: The cache cannot be written, or there are no wheels for such a board.
        ToolMissingError: pip cannot get them here.
    """
    key = repr((facts.architecture, facts.glibc, facts.python, sorted(requirements)))
    place = (cache or cache_directory()) / f"wheels-{sha256_bytes(key.encode())[:16]}"
    with locked(place):
        if not place.is_dir():
            with new_directory(place) as directory:
                say(f"fetching Python wheels for {facts.architecture}")
                _download(download_command(facts, [*requirements, _PIP], directory))
    return place


def download_command(facts: Facts, requirements: Sequence[str], directory: Path) -> list[str]:
    """Returns pip's arguments that fetch the wheels of a board onto this machine.

    Args:
        facts: What is known of the board.
        requirements: What is wanted, with all that it depends on.
        directory: Where the wheels go.

    Raises:
        BadInputError: The board has no Python, or not the GNU C library.
    """
    if facts.python is None or facts.glibc is None:
        raise BadInputError("there are no wheels for a board without Python and the GNU C library")
    major, minor = facts.glibc
    platforms = [f"manylinux_{major}_{n}_{facts.architecture}" for n in range(minor, 16, -1)]
    argv = ["download", "--only-binary", ":all:", "--dest", str(directory)]
    argv += ["--implementation", "cp", "--python-version", ".".join(map(str, facts.python[:2]))]
    for platform in platforms:
        argv += ["--platform", platform]
    argv += ["--platform", f"manylinux2014_{facts.architecture}"]
    return [*argv, "--", *requirements]


def _download(argv: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ToolMissingError(
            "the Python wheels for the board cannot be fetched here",
            got=last_line("\n".join(errors) or done.stderr),
        )


def _environment_id(requirements: Sequence[str], facts: Facts) -> str:
    for requirement in requirements:
        if not _REQUIREMENT.fullmatch(requirement):
            raise BadInputError("not a requirement", got=repr(requirement), allowed="name==version")
    contents = [repr(facts.python), *requirements]
    return sha256_bytes("\n".join(contents).encode())[:_ID_DIGITS]


def _envs(base: str) -> str:
    return f"{base.rstrip('/')}/envs"
