"""rp2040js, the emulator of the RP2040: where it lies and how it gets there.

It is a package for Node.js (github.com/wokwi/rp2040js). package-lock.json pins it with its hash;
it is installed beside the Python packages, for this environment alone:
``python -m edgekiln.firmware.rp2040js``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from edgekiln.errors import ToolMissingError
from edgekiln.files import new_directory
from edgekiln.firmware.toolchain import install_hint

#: The script that runs an image.
SCRIPT = Path(__file__).parent / "run.mjs"

_NAME = "rp2040js"
_FILES = ("package.json", "package-lock.json")
_PACKAGES = ("nodejs", "npm")
_FLAGS = ("--ignore-scripts", "--no-audit", "--no-fund")


def wanted_version() -> str:
    """Returns the version of rp2040js that package-lock.json pins."""
    lock = json.loads((Path(__file__).parent / "package-lock.json").read_text(encoding="utf-8"))
    return str(lock["packages"][f"node_modules/{_NAME}"]["version"])


def install_directory() -> Path:
    """Returns where rp2040js belongs: into this Python environment."""
    return Path(sys.prefix) / "share" / "edgekiln" / _NAME


def find_rp2040js() -> Path:
    """Returns the directory of the installed module.

    Raises:
        ToolMissingError: It is not installed, or not in the version that is wanted.
    """
    module = install_directory() / "node_modules" / _NAME
    wanted = wanted_version()
    try:
        found = json.loads((module / "package.json").read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError):
        found = None
    if found != wanted:
        raise ToolMissingError(
            f"{_NAME} {wanted} is not installed",
            got=f"version {found}" if found else "",
            hint=f"install it with: {sys.executable} -m edgekiln.firmware.rp2040js",
        )
    return module


def find_node() -> str:
    """Returns the path of Node.js, under either name that it goes by.

    Raises:
        ToolMissingError: It is not installed.
    """
    path = shutil.which("node") or shutil.which("nodejs")
    if path is None:
        raise ToolMissingError("node is not installed", hint=install_hint(_PACKAGES))
    return path


def install() -> Path:
    """Installs rp2040js with npm, exactly as package-lock.json says; returns where.

    Raises:
        ToolMissingError: npm is not installed, or fails.
        BadInputError: The environment cannot be written.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ToolMissingError("npm is not installed", hint=install_hint(_PACKAGES))
    with new_directory(install_directory()) as directory:
        for name in _FILES:
            shutil.copyfile(Path(__file__).parent / name, directory / name)
        result = subprocess.run(
            [npm, "ci", *_FLAGS],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if result.returncode != 0:
            words = " ".join((result.stderr or result.stdout).split())
            raise ToolMissingError(f"npm could not install {_NAME}", got=words[-300:])
    return install_directory()
