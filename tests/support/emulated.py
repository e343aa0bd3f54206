"""Runs generated C for aarch64 under qemu-user, between pages that may not be touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.bench.runners import STRICT_FLAGS
from edgekiln.export.compiler import CompiledModel, write_bundle

GCC = ("aarch64-linux-gnu-gcc",)
CLANG = ("clang", "--target=aarch64-linux-gnu")
EMULATOR = ("qemu-aarch64", "-cpu", "max")
ARCHITECTURES = {
    "aarch64": "-march=armv8-a",
    "aarch64-dotprod": "-march=armv8.2-a+dotprod",
}

_RECORD = """
#include <stddef.h>
#include <stdint.h>
void ek_record(const int8_t *data, size_t bytes);
#define EK_AFTER_NODE(index, data, bytes) ek_record((data), (bytes))
"""

# The arena ends before a page that may not be touched, then begins behind one.
_MAIN = """
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "m.h"

void ek_record(const int8_t *data, size_t bytes)
{
    (void)fwrite(data, 1, bytes, stdout);
}

int main(void)
{
    enum { PAGE = 4096, SIZE = (M_ARENA_BYTES + PAGE - 1) / PAGE * PAGE };
    static int8_t input[M_INPUT_BYTES];
    int8_t *pages = (int8_t *)mmap(NULL, SIZE + 2 * PAGE, PROT_NONE,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int at_end = 1;
    if (pages == (int8_t *)MAP_FAILED
        || mprotect(pages + PAGE, SIZE, PROT_READ | PROT_WRITE) != 0) {
        return 1;
    }
    while (fread(input, 1, sizeof(input), stdin) == sizeof(input)) {
        int8_t *arena = pages + PAGE;
        if (at_end) {
            arena += (SIZE - M_ARENA_BYTES) / M_ARENA_ALIGNMENT * M_ARENA_ALIGNMENT;
        }
        at_end = !at_end;
        memset(pages + PAGE, 0xA5, SIZE);
        memcpy(m_input(arena), input, sizeof(input));
        m_invoke(arena);
    }
    return fflush(stdout) == 0 ? 0 : 1;
}
"""


def require_aarch64(*programs: str) -> None:
    """Skips the test where the compiler or the emulator is missing; in CI it fails."""
    names = (GCC[0], EMULATOR[0], *programs)
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (CI=true make setup installs them)"
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        (pytest.fail if in_ci else pytest.skip)(reason)


def compile_aarch64(
    sources: Sequence[Path], program: Path, *flags: str, compiler: Sequence[str] = GCC
) -> None:
    """Compiles C for aarch64 into a program without shared libraries."""
    command = [*compiler, "-std=gnu99", *STRICT_FLAGS, *flags, "-static", "-o", str(program)]
    done = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def emulate(program: Path, data: bytes = b"") -> bytes:
    """Runs a program and returns what it writes."""
    done = subprocess.run([*EMULATOR, str(program)], input=data, capture_output=True)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr.decode()}"
    return done.stdout


def node_outputs(
    compiled: CompiledModel,
    inputs: NDArray[Any],
    directory: Path,
    *,
    compiler: Sequence[str] = GCC,
    optimization: str = "-O2",
    architecture: str = "",
) -> list[bytes]:
    """Runs a model named "m" with one input under the emulator.

    Args:
        compiled: The model.
        inputs: One inference a row, of the input's type.
        directory: An empty one, for the program.
        compiler: The C compiler's command.
        optimization: Its flag.
        architecture: Its flag, where it is not the target's.

    Returns:
        For every inference the outputs of all nodes that have code, one after the other.
    """
    bundle = directory / "c"
    write_bundle(compiled, bundle)
    (directory / "record.h").write_text(_RECORD)
    (directory / "main.c").write_text(_MAIN)
    flags = ("-include", str(directory / "record.h"), f"-I{bundle}", optimization)
    compile_aarch64(
        [directory / "main.c", bundle / "m.c", bundle / "m_weights.c"],
        directory / "program",
        *flags,
        architecture or ARCHITECTURES[compiled.report["target"]],
        compiler=compiler,
    )
    found = emulate(directory / "program", np.ascontiguousarray(inputs).tobytes())
    assert len(found) % len(inputs) == 0
    size = len(found) // len(inputs)
    return [found[i * size : (i + 1) * size] for i in range(len(inputs))]
