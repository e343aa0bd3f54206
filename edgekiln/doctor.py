"""What edgekiln needs on this machine, what of it is there, and how to get the rest."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement

from edgekiln.errors import ToolMissingError

#: The extras that the default path, `make deploy BOARD=mps2-an386`, uses.
EXTRAS = ("train", "onnx", "litert", "oracle", "board", "report")


@dataclass(frozen=True)
class Finding:
    """One thing that edgekiln uses.

    Attributes:
        name: A package or a program.
        kind: ``python``, ``package`` or ``program``.
        group: What it is for: ``core``, an extra's name, ``tools``, or ``flash``, of which
            nobody needs all.
        version: What is installed; empty when nothing is.
        wanted: The versions that will do; empty for any.
        state: ``ok``, ``missing``, ``wrong version``, ``without its library`` (a compiler), or
            ``not on this platform``, which counts as fine: nothing can be done about it. So
            does ``not installed``, which is said of what only some boards need.
        fix: The command that gets it; empty when nothing is to be done.
    """

    name: str
    kind: str
    group: str
    version: str
    wanted: str
    state: str
    fix: str

    @property
    def fine(self) -> bool:
        """Whether nothing is to be done."""
        return self.state in ("ok", "not on this platform", "not installed")


@dataclass(frozen=True)
class Program:
    """A program outside Python.

    Attributes:
        command: Its name on the PATH.
        packages: The Debian packages it comes in, with what it needs to be of use.
        header: For a compiler, a header of the library that belongs to it.
        language: For a compiler, what ``header`` is written in, as for its option ``-x``.
    """

    command: str
    packages: tuple[str, ...]
    header: str = ""
    language: str = "c"


#: The same as in scripts/setup, which installs them before there is a Python to ask.
PROGRAMS = (
    Program("gcc", ("gcc", "libc6-dev"), header="stdlib.h"),
    Program("g++", ("g++",), header="cstdlib", language="c++"),
    Program(
        "arm-none-eabi-gcc",
        ("gcc-arm-none-eabi", "libnewlib-arm-none-eabi"),
        header="string.h",
    ),
    Program("qemu-system-arm", ("qemu-system-arm",)),
)

#: What writes to boards: the programs of edgekiln.firmware.flash. A board needs one of them.
FLASH_PROGRAMS = (
    Program("stm32flash", ("stm32flash",)),
    Program("openocd", ("openocd",)),
    Program("st-flash", ("stlink-tools",)),
    Program("dfu-util", ("dfu-util",)),
    Program("avrdude", ("avrdude",)),
    Program("gdb-multiarch", ("gdb-multiarch",)),
    Program("pyocd", ()),
)


def examine() -> list[Finding]:
    """Looks at this machine; runs each program's ``--version`` and imports nothing."""
    return [
        _examine_python(),
        *_examine_packages(),
        *map(_examine_program, PROGRAMS),
        *map(_examine_flash_program, FLASH_PROGRAMS),
    ]


def to_json(findings: list[Finding]) -> dict[str, object]:
    """Returns the findings as JSON values, with ``"ok"`` for all of them together."""
    return {
        "ok": all(finding.fine for finding in findings),
        "platform": platform.platform(),
        "findings": [asdict(finding) for finding in findings],
    }


def check(findings: list[Finding]) -> None:
    """Passes when everything is fine.

    Raises:
        ToolMissingError: Something is missing; the message holds the commands that get it.
    """
    bad = [finding for finding in findings if not finding.fine]
    if bad:
        raise ToolMissingError(
            "missing or of a wrong version: " + ", ".join(finding.name for finding in bad),
            hint="run: " + " && ".join(commands(findings)),
        )


def commands(findings: list[Finding]) -> list[str]:
    """Returns the commands that get everything that is missing, each once."""
    bad = [finding for finding in findings if not finding.fine]
    checkout = _checkout()
    if bad and checkout is not None:
        return [f"make -C {shlex.quote(str(checkout))} setup"]
    missing = {finding.name for finding in bad if finding.kind == "program"}
    packages = [name for each in PROGRAMS if each.command in missing for name in each.packages]
    fixes = [finding.fix for finding in bad if finding.kind != "program"]
    if packages:
        fixes.append(_install_command(packages))
    return list(dict.fromkeys(fixes))


def _examine_python() -> Finding:
    requires = importlib.metadata.metadata("edgekiln")["Requires-Python"] or ""
    version = platform.python_version()
    right = Requirement(f"python{requires}").specifier.contains(version)
    return Finding(
        name="python",
        kind="python",
        group="core",
        version=version,
        wanted=requires,
        state="ok" if right else "wrong version",
        fix="" if right else "install Python 3.12",
    )


def _examine_packages() -> Iterator[Finding]:
    requirements = [Requirement(line) for line in importlib.metadata.requires("edgekiln") or ()]
    for group in ("core", *EXTRAS):
        for requirement in requirements:
            if requirement.name != "edgekiln" and _group_of(requirement) == group:
                yield _examine_package(requirement, group)


def _group_of(requirement: Requirement) -> str:
    match = re.search(r'extra == "([^"]+)"', str(requirement.marker or ""))
    return match.group(1) if match else "core"


def _examine_package(requirement: Requirement, group: str) -> Finding:
    version = _installed_version(requirement.name)
    marker = requirement.marker
    if marker is not None and not marker.evaluate({"extra": group}):
        state = "not on this platform"
    elif not version:
        state = "missing"
    elif not requirement.specifier.contains(version, prereleases=True):
        state = "wrong version"
    else:
        state = "ok"
    name = "edgekiln" if group == "core" else f"edgekiln[{group}]"
    bad = state in ("missing", "wrong version")
    return Finding(
        name=requirement.name,
        kind="package",
        group=group,
        version=version,
        wanted=str(requirement.specifier),
        state=state,
        fix=f"{sys.executable} -m pip install '{name}'" if bad else "",
    )


def _installed_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _examine_program(program: Program) -> Finding:
    path = shutil.which(program.command)
    version = _program_version(path) if path else ""
    if not path or not version:
        state = "missing"
    elif program.header and not _compiles(path, program):
        state = "without its library"
    else:
        state = "ok"
    return Finding(
        name=program.command,
        kind="program",
        group="tools",
        version=version,
        wanted="",
        state=state,
        fix="" if state == "ok" else _install_command(program.packages),
    )


def _examine_flash_program(program: Program) -> Finding:
    beside_python = str(Path(sys.executable).parent)
    path = shutil.which(program.command) or shutil.which(program.command, path=beside_python)
    fix = _install_command(program.packages)
    if not program.packages:
        fix = f"{sys.executable} -m pip install 'edgekiln[probe]'"
    return Finding(
        name=program.command,
        kind="program",
        group="flash",
        version=_find_version(path) if path else "",
        wanted="",
        state="ok" if path else "not installed",
        fix="" if path else fix,
    )


def _find_version(path: str) -> str:
    """Returns the first version number that a program prints, wherever and however it ends."""
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    match = re.search(r"\d+\.\d+(\.\d+)?", result.stdout + result.stderr)
    return match.group() if match else "unknown"


def _program_version(path: str) -> str:
    """Returns the version number in the first line that a program prints."""
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    if result.returncode != 0:
        return ""
    first_line = re.sub(r"\(.*?\)", "", result.stdout.partition("\n")[0])
    match = re.search(r"\d+\.\d+(\.\d+)?", first_line)
    return match.group() if match else "unknown"


def _compiles(path: str, program: Program) -> bool:
    try:
        result = subprocess.run(
            [path, "-fsyntax-only", "-x", program.language, "-"],
            input=f"#include <{program.header}>\n",
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return result.returncode == 0


def _install_command(packages: Sequence[str]) -> str:
    names = " ".join(packages)
    if shutil.which("apt-get"):
        return f"sudo apt-get install --no-install-recommends {names}"
    return f"install {names} (Debian's names) with this system's package manager"


def _checkout() -> Path | None:
    """Returns the directory whose Makefile sets everything up, where edgekiln runs from it."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "scripts" / "setup").is_file() else None
