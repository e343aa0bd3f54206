"""Runs generated C on simavr: several models in one image, inputs in flash, outputs by UART."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.bench.runners import STRICT_FLAGS
from edgekiln.export.compiler import CompiledModel, write_bundle
from edgekiln.export.emit.program import numbered
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.emulators.simavr import build_runner

FLAGS = ("-std=gnu99", "-O2", *STRICT_FLAGS, "-Werror", "-Waddr-space-convert")
_SECONDS = 120.0

_HEAD = """
#include <avr/io.h>

static int8_t memory[{arena_bytes}] __attribute__((aligned(8)));

static void send(const void *from, uint16_t bytes)
{{
    const uint8_t *byte = (const uint8_t *)from;
    while (bytes-- != 0u) {{
        while ((UCSR0A & (1u << UDRE0)) == 0u) {{
        }}
        UDR0 = *byte++;
    }}
}}
"""

_MAIN = """
int main(void)
{{
    UBRR0 = 0;
    UCSR0A = (uint8_t)(1u << U2X0);
    UCSR0B = (uint8_t)(1u << TXEN0 | 1u << RXEN0);
    {calls}
    for (;;) {{
        (void)UCSR0A;
    }}
}}
"""


@dataclass(frozen=True)
class Case:
    """A model to run: compiled under a name of its own, with inputs ``[samples, ...]`` each."""

    name: str
    compiled: CompiledModel
    inputs: tuple[NDArray[Any], ...]

    @property
    def samples(self) -> int:
        """The number of inferences."""
        return len(self.inputs[0])

    @property
    def output_bytes(self) -> int:
        """Bytes of all outputs of one inference."""
        return sum(int(entry["bytes"]) for entry in self.compiled.report["outputs"])


def require_avr(*programs: str) -> None:
    """Skips the test where the compiler or the emulator is missing; in CI it fails."""
    missing = [p for p in ("avr-gcc", "simavr", *programs) if shutil.which(p) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (CI=true make setup installs them)"
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        (pytest.fail if in_ci else pytest.skip)(reason)


def run_cases(cases: Sequence[Case], directory: Path, *flags: str) -> list[bytes]:
    """Runs models on an ATmega2560; returns the outputs of each, one inference after the other."""
    source = directory / "cases.c"
    arena_bytes = max(int(case.compiled.report["arena_bytes"]) for case in cases)
    parts = [_HEAD.format(arena_bytes=max(arena_bytes, 1))]
    for case in cases:
        bundle = directory / case.name
        write_bundle(case.compiled, bundle)
        for name in (f"{case.name}_weights.c", f"{case.name}.c"):
            parts.append(f'#include "{case.name}/{name}"')
        parts.append(_function(case))
    parts.append(_MAIN.format(calls=" ".join(f"run_{case.name}();" for case in cases)))
    source.write_text("\n".join(parts), encoding="ascii")
    elf, image = directory / "cases.elf", directory / "cases.bin"
    headers = [f"-I{directory / case.name}" for case in cases]
    command = ["avr-gcc", "-mmcu=atmega2560", *FLAGS, *headers, *flags, str(source), "-o", str(elf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr[:3000]
    assert _end_of_tables(elf) <= 1 << 16, "16-bit pointers do not reach all tables: fewer cases"
    subprocess.run(["avr-objcopy", "-O", "binary", elf, image], check=True)
    stream = _run(image, sum(case.samples * case.output_bytes for case in cases))
    found, at = [], 0
    for case in cases:
        found.append(stream[at : at + case.samples * case.output_bytes])
        at += case.samples * case.output_bytes
    return found


def _end_of_tables(elf: Path) -> int:
    """Returns where constants in flash end; the start-up code follows."""
    command = ["avr-nm", str(elf)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(symbols.split(" __dtors_end")[0].split()[-2], 16)


def _run(image: Path, expected_bytes: int) -> bytes:
    emulator = load_board("mega").emulator
    assert emulator is not None
    ours, theirs = socket.socketpair()
    command = [build_runner(emulator), emulator.machine, "16000000", image, str(theirs.fileno())]
    received = b""
    with ours, theirs:
        ours.settimeout(_SECONDS)
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
            try:
                while len(received) < expected_bytes:
                    received += ours.recv(1 << 16)
            finally:
                process.kill()
    return received


def _function(case: Case) -> str:
    """Returns the C function that runs all samples of a case."""
    name, report = case.name, case.compiled.report
    inputs = numbered("input", len(report["inputs"]))
    outputs = numbered("output", len(report["outputs"]))
    state = f"static {name}_state state; {name}_reset(&state);" if report["state_bytes"] else ""
    lines = [
        f"static const EK_FLASH uint8_t {name}_data_{n}[] = {{{_bytes_of(values)}}};"
        for n, values in zip(inputs, case.inputs, strict=True)
    ]
    lines += [
        f"static void run_{name}(void)",
        "{",
        f"for (uint16_t sample = 0; sample < {case.samples}u; ++sample) {{",
        state,
        *(
            f"ek_copy_table({name}_{n}(memory), {name}_data_{n} + sample * {entry['bytes']}u, "
            f"{entry['bytes']}u);"
            for n, entry in zip(inputs, report["inputs"], strict=True)
        ),
        f"{name}_invoke(memory{', &state' if report['state_bytes'] else ''});",
        *(
            f"send({name}_{n}(memory), {entry['bytes']}u);"
            for n, entry in zip(outputs, report["outputs"], strict=True)
        ),
        "}",
        "}",
    ]
    return "\n".join(lines)


def _bytes_of(values: NDArray[Any]) -> str:
    return ", ".join(map(str, np.ascontiguousarray(values).tobytes()))
