"""Programs for this machine that come as C: compiled on first use into the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.firmware.toolchain import first_error, install_hint


def build_native(source: Path, flags: Sequence[str], name: str, libraries: Sequence[str]) -> Path:
    """Returns what the system's C compiler makes of a source, made if it is not in the cache.

    Args:
        source: The C file.
        flags: The compiler's flags.
        name: The result's name, with ``{}`` for a digest of all that it is made from.
        libraries: Flags that come after the source.

    Raises:
        ToolMissingError: The system has no C compiler.
        BadInputError: The source does not compile, or the cache cannot be written.
    """
    text = source.read_bytes() + f"{platform.machine()} {flags} {libraries}".encode()
    result = _cache_directory() / name.format(hashlib.sha256(text).hexdigest()[:16])
    if result.is_file():
        return result
    compiler = shutil.which("cc")
    if compiler is None:
        raise ToolMissingError("cc is not installed", hint=install_hint(["gcc", "libc6-dev"]))
    try:
        result.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(suffix=result.suffix, dir=result.parent)
        os.close(handle)
        command = [compiler, *flags, str(source), "-o", temporary, *libraries]
        _compile(command, source, Path(temporary), result)
    except OSError as error:
        raise BadInputError(
            f"cannot be written: {error.strerror}",
            where=result.parent,
            hint="set EDGEKILN_CACHE to a directory that can",
        ) from None
    return result


def _compile(command: Sequence[str], source: Path, temporary: Path, result: Path) -> None:
    ran = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        temporary.unlink(missing_ok=True)
        raise BadInputError(f"does not compile: {first_error(ran.stderr)}", where=source)
    os.replace(temporary, result)


def _cache_directory() -> Path:
    if "EDGEKILN_CACHE" in os.environ:
        return Path(os.environ["EDGEKILN_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edgekiln"
