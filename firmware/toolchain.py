"""Runs a board's C compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgekiln import console
from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.firmware.boards import Board, Toolchain

STRICT_FLAGS = (
    *("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow"),
    *("-Wundef", "-Wvla", "-Wcast-align", "-Wcast-qual", "-Wmissing-prototypes"),
    "-Wdouble-promotion",
)

_JOBS = min(4, os.cpu_count() or 1)
_ERROR_LINE = re.compile(r"^(.*(?:error|undefined reference|multiple definition).*)$", re.MULTILINE)


@dataclass(frozen=True)
class CompileJob:
    """One object file to make: ``gcc flags -c source -o object``."""

    source: Path
    object: Path
    flags: tuple[str, ...]


def install_hint(packages: Sequence[str]) -> str:
    """Returns the clause that tells how to install Debian packages."""
    return f"install it with: apt-get install {' '.join(packages)}"


def find_tool(toolchain: Toolchain, tool: str) -> str:
    """Returns the path of a tool such as ``gcc`` or ``objcopy``.

    Raises:
        ToolMissingError: It is not installed.
    """
    name = f"{toolchain.prefix}{tool}" if toolchain.prefix else {"gcc": "cc"}.get(tool, tool)
    path = shutil.which(name)
    if path is None:
        raise ToolMissingError(f"{name} is not installed", hint=install_hint(toolchain.packages))
    return path


def compiler_version(toolchain: Toolchain) -> str:
    """Returns the first line of the C compiler's ``--version``.

    Raises:
        ToolMissingError: It is not installed.
    """
    result = _run([find_tool(toolchain, "gcc"), "--version"])
    return result.stdout.partition("\n")[0].strip()


def compile_objects(board: Board, jobs: Sequence[CompileJob]) -> None:
    """Compiles all jobs, a few at a time. Warnings go to stderr.

    Raises:
        ToolMissingError: The compiler, or the C library's headers, are not installed.
        BadInputError: A file does not compile.
    """
    compiler = find_tool(board.toolchain, "gcc")

    def compile_one(job: CompileJob) -> None:
        command = [compiler, *board.cpu_flags, *job.flags]
        result = _run([*command, "-c", str(job.source), "-o", str(job.object)])
        if result.returncode != 0:
            _fail_to_compile(board, job.source, result.stderr)
        if result.stderr.strip():
            console.say(result.stderr.strip())

    with ThreadPoolExecutor(_JOBS) as pool:
        list(pool.map(compile_one, jobs))


def link(board: Board, objects: Sequence[Path], flags: Sequence[str], elf: Path) -> str:
    """Links objects; returns what the linker said when it failed, else an empty text.

    Raises:
        ToolMissingError: The compiler is not installed.
    """
    compiler = find_tool(board.toolchain, "gcc")
    command = [compiler, *board.cpu_flags, *map(str, objects), *flags, "-o", str(elf)]
    result = _run(command)
    return "" if result.returncode == 0 else result.stderr or f"exit code {result.returncode}"


def copy_image(board: Board, elf: Path, output: Path, output_format: str) -> None:
    """Writes an ELF's contents as ``binary`` or ``ihex``.

    Raises:
        ToolMissingError: objcopy is not installed.
        BadInputError: It fails.
    """
    objcopy = find_tool(board.toolchain, "objcopy")
    result = _run([objcopy, "-O", output_format, str(elf), str(output)])
    if result.returncode != 0:
        raise BadInputError(f"objcopy failed: {first_error(result.stderr)}", where=elf)


def first_error(text: str) -> str:
    """Returns the line of a tool's output that tells most: the first error, else the last."""
    match = _ERROR_LINE.search(text)
    if match:
        return match.group(1).strip()
    return text.strip().rpartition("\n")[2]


def _fail_to_compile(board: Board, source: Path, stderr: str) -> None:
    if "string.h: No such file" in stderr or "stdint.h: No such file" in stderr:
        raise ToolMissingError(
            f"the C library's headers for {board.core} are not installed",
            hint=install_hint(board.toolchain.packages),
        )
    raise BadInputError(f"does not compile: {first_error(stderr)}", where=source)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
