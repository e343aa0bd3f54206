"""Runs the generated C on this machine, as a shared library."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.bench.tensors import Tensors, TensorSpec, run_each
from edgekiln.errors import BadInputError, CheckFailedError, ToolMissingError

TEMPLATES = Path(__file__).parent / "templates"

STRICT_FLAGS = (
    *("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow"),
    *("-Wundef", "-Wvla", "-Wcast-align", "-Wcast-qual", "-Wmissing-prototypes"),
    *("-Wdouble-promotion", "-Werror"),
)
HOST_FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared")

_NODE_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_GUARD_BYTES = 64
_GUARD = 0x5A
_POISON = 0xA5


class CompiledRunner:
    """The generated C, compiled for this machine and loaded as a shared library.

    Before each inference the arena is filled with a pattern, so that bytes which the program
    reads before writing show up as wrong outputs; bytes around it tell whether the program
    stays inside the memory that its header asks for.

    Args:
        bundle: The directory that `edgekiln compile` wrote, for the target ``host`` or ``generic``.
        record_nodes: Build with the hook that shows every node's output to `node_outputs`.
        keep_state: What the model remembers is kept from one inference to the next within a
            call of `run`, not reset before each.
        flags: Compiler flags to add, such as `STRICT_FLAGS`.

    Raises:
        ToolMissingError: There is no C compiler.
        BadInputError: The directory is not a bundle.
        CheckFailedError: The C does not compile.
    """

    name = "generated C on host"

    def __init__(
        self,
        bundle: Path,
        *,
        record_nodes: bool = False,
        keep_state: bool = False,
        flags: Sequence[str] = (),
    ) -> None:
        report = read_compile_report(bundle)
        entries = [*report["inputs"], *report["outputs"]]
        specs = tuple(_spec(entry) for entry in entries)
        self.inputs = specs[: len(report["inputs"])]
        self.outputs = specs[len(report["inputs"]) :]
        if report.get("io") == "separate":
            buffers = [_Memory(spec.bytes) for spec in specs]
            arena = _Memory(report["arena_bytes"] - sum(spec.bytes for spec in specs))
            self._spans = [buffer.bytes for buffer in buffers]
            self._memories = (*buffers, arena)
        else:
            arena = _Memory(report["arena_bytes"])
            self._spans = [
                arena.bytes[entry["offset"] : entry["offset"] + entry["bytes"]] for entry in entries
            ]
            self._memories = (arena,)
        self._arena = arena
        self._state = _Memory(report["state_bytes"]) if report.get("state_bytes") else None
        self._keep_state = keep_state
        if self._state is not None:
            self._memories = (*self._memories, self._state)
        self._library = _build_library(bundle, report["name"], record_nodes, flags)
        self._recording = record_nodes
        self._invoke_c = self._library[f"{report['name']}_invoke"]
        self._invoke_c.argtypes = [ctypes.c_void_p] * len(self._memories)
        self._invoke_c.restype = None
        if self._state is not None:
            self._reset_c = self._library[f"{report['name']}_reset"]
            self._reset_c.argtypes = [ctypes.c_void_p]
            self._reset_c.restype = None

    def run(self, inputs: Tensors) -> Tensors:
        """Runs N inferences; see `edgekiln.bench.runners.Runner.run`.

        Raises:
            CheckFailedError: The program wrote outside its memory.
        """
        self._reset()
        outputs = run_each(inputs, self.inputs, self.outputs, self._invoke)
        if not all(memory.guards_are_intact() for memory in self._memories):
            raise CheckFailedError(
                f"the generated C wrote outside its arena{' or its state' if self._state else ''}",
                allowed=f"{self._arena.bytes.size} bytes",
                hint="please report this model",
            )
        return outputs

    def node_outputs(self, inputs: Tensors) -> list[tuple[int, bytes]]:
        """Runs one inference and returns what each node wrote.

        Args:
            inputs: One array ``[1, ...]`` per model input.

        Returns:
            A node's index and its output's bytes, in the order of execution. A node with
            several outputs appears once for each, one that needs no code not at all.

        Raises:
            BadInputError: The runner was made without ``record_nodes``.
            CheckFailedError: The program wrote outside its memory.
        """
        if not self._recording:
            raise BadInputError("this runner records no nodes", hint="pass record_nodes=True")
        seen: list[tuple[int, bytes]] = []

        def record(index: int, data: int, size: int) -> None:
            seen.append((index, ctypes.string_at(data, size)))

        hook = _NODE_HOOK(record)
        setter = self._library.ek_set_node_hook
        setter(hook)
        try:
            self.run(inputs)
        finally:
            setter(None)
        return seen

    def _invoke(self, inputs: Tensors) -> Tensors:
        if not self._keep_state:
            self._reset()
        for memory in self._memories:
            if memory is not self._state:
                memory.bytes[:] = _POISON
        for array, span in zip(inputs, self._spans[: len(inputs)], strict=True):
            span[:] = np.frombuffer(array.tobytes(), dtype=np.uint8)
        self._invoke_c(*(memory.bytes.ctypes.data for memory in self._memories))
        return tuple(
            np.frombuffer(span.tobytes(), spec.dtype)
            for spec, span in zip(self.outputs, self._spans[len(inputs) :], strict=True)
        )

    def _reset(self) -> None:
        """Makes the model forget, whatever its memory held."""
        if self._state is not None:
            self._state.bytes[:] = _POISON
            self._reset_c(self._state.bytes.ctypes.data)


def read_compile_report(bundle: Path) -> dict[str, Any]:
    """Reads the compile_report.json of a bundle.

    Raises:
        BadInputError: There is none, or it is damaged.
    """
    path = bundle / "compile_report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report, dict) and {"name", "inputs", "outputs", "arena_bytes"} <= set(report):
            return report
    except (OSError, ValueError):
        pass
    raise BadInputError(
        "not a directory that edgekiln compile wrote: compile_report.json is missing or damaged",
        where=bundle,
    )


def find_host_compiler() -> list[str]:
    """Returns the command that compiles C for this machine: the variable CC, else ``cc``.

    Raises:
        ToolMissingError: There is no such program.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if shutil.which(compiler[0]) is None:
        raise ToolMissingError(
            f"{compiler[0]}, a C compiler for this machine, is not installed",
            hint="install it with: apt-get install gcc libc6-dev",
        )
    return compiler


class _Memory:
    """Memory that tells whether anything was written right before or after it.

    Attributes:
        bytes: The memory, ``uint8 [size]``, aligned to 16 bytes.
    """

    def __init__(self, size: int) -> None:
        self._whole = np.full(size + 2 * _GUARD_BYTES + 16, _GUARD, dtype=np.uint8)
        self._start = _GUARD_BYTES + -(self._whole.ctypes.data + _GUARD_BYTES) % 16
        self.bytes = self._whole[self._start : self._start + size]

    def guards_are_intact(self) -> bool:
        before, after = self._whole[: self._start], self._whole[self._start + self.bytes.size :]
        return bool(np.all(before == _GUARD) and np.all(after == _GUARD))


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(entry["name"], tuple(entry["shape"]), np.dtype(entry["dtype"]))


def _build_library(
    bundle: Path, name: str, record_nodes: bool, flags: Sequence[str]
) -> ctypes.CDLL:
    """Compiles a bundle and loads it. The library's file is gone once it is loaded."""
    compiler = find_host_compiler()
    sources = sorted(str(path) for path in bundle.glob("*.c"))
    recorder = []
    if record_nodes:
        recorder = ["-include", str(TEMPLATES / "node_hook.h")]
        sources.append(str(TEMPLATES / "node_hook.c"))
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as temporary:
        library = Path(temporary) / f"lib{name}.so"
        command = [*compiler, *HOST_FLAGS, *flags, *recorder, f"-I{bundle}", "-o", str(library)]
        done = subprocess.run([*command, *sources], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
            raise CheckFailedError(
                f"the generated C does not compile: {lines[0]}", where=f"{compiler[0]} in {bundle}"
            )
        return ctypes.CDLL(str(library))
