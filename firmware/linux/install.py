"""Python environments on a board, each in a directory of its own, for LiteRT and ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import BadInputError
from edgekiln.files import sha256_bytes, sha256_file
from edgekiln.firmware.linux.facts import Facts
from edgekiln.firmware.linux.releases import DEFAULT_BASE
from edgekiln.firmware.linux.ssh import Connection, check_remote_path

INSTALL_SCRIPT = Path(__file__).parent / "install.sh"
INSTALL_TIMEOUT_S = 900.0

_ID_DIGITS = 20
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*((==|>=|<)[0-9][0-9A-Za-z.]*)?")


@dataclass(frozen=True)
class Environment:
    """A Python environment on a board: its directory there, and whether it was there already."""

    directory: str
    was_there: bool

    @property
    def python(self) -> str:
        """The path of its Python on the board."""
        return f"{self.directory}/bin/python"


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
        BoardError: The board lacks python3-venv, a wheel is missing, or its disk is full.
    """
    for requirement in requirements:
        if not _REQUIREMENT.fullmatch(requirement):
            raise BadInputError("not a requirement", got=repr(requirement), allowed="name==version")
    wheels = sorted(wheelhouse.glob("*.whl")) if wheelhouse else []
    contents = [*requirements, *(f"{path.name} {sha256_file(path)}" for path in wheels)]
    name = sha256_bytes("\n".join([repr(facts.python), *contents]).encode())[:_ID_DIGITS]
    script = INSTALL_SCRIPT.read_text(encoding="utf-8")
    connection.run('mkdir -p -- "$1/envs"', check_remote_path(base))
    directory = f"{base.rstrip('/')}/envs/{name}"
    if connection.run(script, base, name, "look").text.strip() == "there":
        return Environment(directory, was_there=True)
    source = "internet"
    if wheelhouse:
        connection.push(wheelhouse, f"{base.rstrip('/')}/envs/.wheels-{name}")
        source = "wheels"
    connection.run(script, base, name, source, *requirements, timeout_s=INSTALL_TIMEOUT_S)
    return Environment(directory, was_there=False)


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
