"""Runs generated C with NEON on other machines, between pages that may not be touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
PLAIN_NEON = Path(__file__).parent / "plain_neon"


@dataclass(frozen=True)
class Machine:
    """What generated C with NEON is compiled for and runs on.

    Attributes:
        compiler: The C compiler's command.
        flags: Its flags.
        emulator: What runs the program; nothing on this machine.
    """

    compiler: tuple[str, ...]
    flags: tuple[str, ...]
    emulator: tuple[str, ...] = ()

    def require(self) -> None:
        """Skips the test where a program is missing; in CI it fails."""
        require(self.compiler[0], *self.emulator[:1])


_SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_PLAIN = Machine(("gcc",), (*_SANITIZED, "-isystem", str(PLAIN_NEON)))

MACHINES = {
    "aarch64": Machine(GCC, ("-O2", "-march=armv8-a", "-static"), EMULATOR),
    "aarch64-dotprod": Machine(GCC, ("-O2", "-march=armv8.2-a+dotprod", "-static"), EMULATOR),
    "armv7-neon": Machine(
        ("arm-linux-gnueabihf-gcc",),
        ("-O2", "-march=armv7-a", "-mfpu=neon", "-mfloat-abi=hard", "-static"),
        ("qemu-arm", "-cpu", "max"),
    ),
}
SANITIZED = {
    "aarch64": _PLAIN,
    "aarch64-dotprod": replace(_PLAIN, flags=(*_PLAIN.flags, "-D__ARM_FEATURE_DOTPROD")),
}
"""The same kernels in plain C on this machine, under AddressSanitizer and UBSan."""

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


def require(*programs: str) -> None:
    """Skips the test where a program is missing; in CI it fails."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (CI=true make setup installs them)"
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        (pytest.fail if in_ci else pytest.skip)(reason)


def require_aarch64(*programs: str) -> None:
    """The same for what compiles and runs programs for aarch64, and further programs."""
    require(GCC[0], EMULATOR[0], *programs)


def compile_for(machine: Machine, sources: Sequence[Path], program: Path, *flags: str) -> None:
    """Compiles C for a machine."""
    command = [*machine.compiler, "-std=gnu99", *STRICT_FLAGS, *machine.flags, *flags]
    done = subprocess.run(
        [*command, "-o", str(program), *map(str, sources)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def emulate(machine: Machine, program: Path, data: bytes = b"") -> bytes:
    """Runs a program and returns what it writes."""
    done = subprocess.run([*machine.emulator, str(program)], input=data, capture_output=True)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr.decode()}"
    return done.stdout


def node_outputs(
    compiled: CompiledModel, inputs: NDArray[Any], directory: Path, machine: Machine | None = None
) -> list[bytes]:
    """Runs a model named "m" with one input on a machine.

    Args:
        compiled: The model.
        inputs: One inference a row, of the input's type.
        directory: An empty one, for the program.
        machine: What it runs on; by default that of `MACHINES` for the target.

    Returns:
        For every inference the outputs of all nodes that have code, one after the other.
    """
    machine = machine or MACHINES[compiled.report["target"]]
    bundle = directory / "c"
    write_bundle(compiled, bundle)
    (directory / "record.h").write_text(_RECORD)
    (directory / "main.c").write_text(_MAIN)
    sources = [directory / "main.c", bundle / "m.c", bundle / "m_weights.c"]
    flags = ("-include", str(directory / "record.h"), f"-I{bundle}")
    compile_for(machine, sources, directory / "program", *flags)
    found = emulate(machine, directory / "program", np.ascontiguousarray(inputs).tobytes())
    assert len(found) % len(inputs) == 0
    size = len(found) // len(inputs)
    return [found[i * size : (i + 1) * size] for i in range(len(inputs))]
