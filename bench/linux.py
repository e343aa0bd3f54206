"""Measures a model on a board that runs Linux, with every runtime that is there.

What is measured lies in a directory of its own on the board, beside the releases: the held-out
inputs, the models, and the program that runs them. Each runtime is a process of its own. One that
is missing, crashes or takes too long becomes a row with the reason; the generated C is the
release's own program and has to work.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekiln.bench.results import Conditions, Latency, System
from edgekiln.bench.tensors import Tensors, TensorSpec
from edgekiln.errors import BoardError, CheckFailedError
from edgekiln.firmware.boards import LinuxCore
from edgekiln.firmware.bundle import TensorInfo
from edgekiln.firmware.linux.facts import Facts, RuntimeChoice, read_throttled
from edgekiln.firmware.linux.lock import hold_lock
from edgekiln.firmware.linux.releases import check_name
from edgekiln.firmware.linux.runner.program import PROGRAM_NAME, Program, build_program
from edgekiln.firmware.linux.ssh import Completed, Connection, last_line

BOARD = Path(__file__).parent / "board"
TIMEOUT_S = 900.0
MEASURING_WAIT_S = 3600
GENERATED_C = "generated C"
FLOAT = "float"

_CODES, _REALS, _PROGRAM = "codes.bin", "reals.bin.gz", "measure.py"
_GRACE_S = 60.0
_OUT_OF_TIME = 124
_KILLED, _MOST_SIGNALS = 128, 64

Runtime = Literal["litert", "litert-reference", "onnxruntime"]
_FORMATS: dict[Runtime, str] = {
    "litert": "TFLite",
    "litert-reference": "TFLite",
    "onnxruntime": "ONNX",
}
_KERNELS: dict[Runtime, str] = {"litert": " (XNNPACK)", "litert-reference": " (BUILTIN_REF)"}
_NAMES = {"ai-edge-litert": "LiteRT", "tflite-runtime": "TensorFlow Lite"}


@dataclass(frozen=True)
class Case:
    """A model file and the runtime that shall run it.

    Attributes:
        runtime: The runtime; ``litert`` stands for its predecessor too.
        file: The model's file, here.
        is_real: Whether the model takes real numbers instead of codes.
        why_not: Why it shall not be run; empty when it shall.
    """

    runtime: Runtime
    file: Path
    is_real: bool
    why_not: str = ""

    @property
    def format(self) -> str:
        """The format of its file."""
        return _FORMATS[self.runtime]


@dataclass(frozen=True)
class Effort:
    """How long inferences are timed.

    Attributes:
        warmup: Inferences before the first one that counts.
        runs: Inferences that count.
        seconds: After so long no more are begun, once there are 20.
    """

    warmup: int = 10
    runs: int = 200
    seconds: int = 5


#: What an emulator's times say is not worth more.
EMULATED_EFFORT = Effort(warmup=2, runs=20, seconds=1)
#: For those who want the outputs alone.
LEAST_EFFORT = Effort(warmup=1, runs=1, seconds=1)
_NO_CHOICE = RuntimeChoice(None, None, (), ())


@dataclass(frozen=True)
class Place:
    """A board to which a model has been deployed.

    Attributes:
        facts: What is known of it.
        base: The directory of the releases there.
        release: The release's directory there.
        name: The application's name.
        choice: Which runtimes there are for it.
        python: The Python of the environment that holds them, or None.
        why_no_python: Where there is none, why.
    """

    facts: Facts
    base: str
    release: str
    name: str
    choice: RuntimeChoice
    python: str | None
    why_no_python: str = ""

    @property
    def directory(self) -> str:
        """Where on the board lies what is measured."""
        return f"{self.base.rstrip('/')}/.measure-{self.name}"

    @property
    def threads(self) -> tuple[int, ...]:
        """The numbers of threads to measure with: each up to 4, then doubled, and all cores."""
        cores = self.facts.cores
        return tuple(sorted({1, cores, *(n for n in (2, 3, 4, 8, 16, 32, 64) if n < cores)}))


@dataclass(frozen=True)
class LinuxBoard:
    """A board that runs Linux, to run models on that are not deployed there.

    Attributes:
        connection: The board.
        facts: What is known of it.
        core: What is compiled for it.
        base: The directory of the releases there.
    """

    connection: Connection
    facts: Facts
    core: LinuxCore
    base: str

    def run(
        self, bundle: Path, codes: Tensors, *, effort: Effort | None = None
    ) -> tuple[Program, Measured]:
        """Compiles generated C, runs it there over all inputs, and leaves nothing behind.

        Args:
            bundle: The generated C, for the target of `core`.
            codes: One array ``[N, ...]`` per model input.
            effort: How long to time; by default as for `measure_on_linux`.

        Raises:
            ToolMissingError: The C compiler for the board is not installed.
            BoardError: The board cannot be reached.
            CheckFailedError: The generated C does not work there.
        """
        with tempfile.TemporaryDirectory(prefix="edgekiln-") as temporary:
            work = Path(temporary)
            core = self.core
            program = build_program(
                bundle, core.architecture, work / PROGRAM_NAME, toolchain=core.toolchain
            )
            (work / _CODES).write_bytes(pack(codes))
            there = f"{self.base.rstrip('/')}/.try-{check_name(program.bundle.name)}"
            place = Place(self.facts, self.base, there, program.bundle.name, _NO_CHOICE, None)
            with measure_alone(self.connection, self.base):
                try:
                    self.connection.push(work, there)
                    board = _Board(self.connection, place, effort, TIMEOUT_S, codes, there)
                    return program, board.run_program(program.bundle.outputs)
                finally:
                    with contextlib.suppress(BoardError):
                        self.connection.run('rm -rf -- "$1"', there)


@dataclass(frozen=True)
class Measured:
    """What a runtime did with a model, or why it did nothing.

    Attributes:
        name: The runtime, for people.
        version: Its version, or None.
        model: What the model takes: ``float``, ``int8``, ``int16``, ….
        format: ``C``, ``TFLite`` or ``ONNX``.
        runtime: What ran it, or None for the generated C.
        outputs: One array ``[N, ...]`` per output of the model; empty where it failed.
        latencies: With one thread and with more.
        peak_memory_bytes: The most memory of its process.
        runtime_bytes: What the runtime and what it needs take on the disk.
        conditions: The processor's state right after.
        error: Why there is nothing, or None.
    """

    name: str
    version: str | None
    model: str
    format: str
    runtime: Runtime | None
    outputs: Tensors = ()
    latencies: tuple[Latency, ...] = ()
    peak_memory_bytes: int | None = None
    runtime_bytes: int | None = None
    conditions: Conditions | None = None
    error: str | None = None
    file: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class LinuxRun:
    """All that was measured on a board.

    Attributes:
        system: The Linux there.
        generated: The generated C, in the program of the release.
        runtimes: The runtimes, in the order of the cases.
    """

    system: System
    generated: Measured
    runtimes: tuple[Measured, ...]


class _UnusableError(Exception):
    """What a measurement answered cannot be used; the message is for people.

    Args:
        message: Why.
        is_crash: Whether what was measured has itself to blame.
    """

    def __init__(self, message: str, *, is_crash: bool = True) -> None:
        self.is_crash = is_crash
        super().__init__(message)


def measure_on_linux(
    connection: Connection,
    place: Place,
    *,
    codes: Tensors,
    outputs: Sequence[TensorInfo],
    reals: Tensors = (),
    cases: Sequence[Case] = (),
    effort: Effort | None = None,
    timeout_s: float = TIMEOUT_S,
) -> LinuxRun:
    """Runs a release's program and every runtime over all inputs, and times them.

    Args:
        connection: The board.
        place: What has been deployed there, and where.
        codes: The inputs as the quantized model takes them, one array ``[N, ...]`` per input.
        outputs: The outputs of the generated C.
        reals: The same inputs as the float model takes them, float32 ``[N, ...]`` each.
        cases: The models, and the runtimes that shall run them.
        effort: How long to time; by default less where the board is emulated.
        timeout_s: For how long each of them may run.

    Raises:
        BoardError: The board cannot be reached, or its disk is full.
        CheckFailedError: The generated C crashes there, takes too long or answers nonsense.
    """
    with measure_alone(connection, place.base):
        _send(connection, place, codes, reals, cases)
        before = read_conditions(connection)
        board = _Board(connection, place, effort, timeout_s, codes)
        generated = board.run_program(outputs)
        measured = tuple(board.run_case(case) for case in cases)
        after = read_conditions(connection)
    return LinuxRun(_describe_system(place.facts, before, after), generated, measured)


@contextlib.contextmanager
def measure_alone(connection: Connection, base: str) -> Iterator[None]:
    """Keeps other measurements of the board from running meanwhile, and waits for them before.

    Raises:
        BoardError: The board cannot be reached, or another measurement does not end.
    """
    with hold_lock(connection, f"{base.rstrip('/')}/.measuring", wait_s=MEASURING_WAIT_S):
        yield


def read_conditions(connection: Connection) -> Conditions:
    """Returns the state of a board's processor now.

    Raises:
        BoardError: It cannot be reached.
    """
    said = connection.run(_script("conditions.sh")).text
    values = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    governor = values.get("governor", "")
    return Conditions(
        governor=governor if governor.isprintable() and governor else None,
        frequency_mhz=_scaled(values, "frequency_khz", 1000),
        temperature_c=_scaled(values, "temperature_mc", 1000.0),
        throttled=read_throttled(values.get("throttled", "")),
    )


class _Board:
    """Runs one measurement after the other on a board."""

    def __init__(
        self,
        connection: Connection,
        place: Place,
        effort: Effort | None,
        timeout_s: float,
        codes: Tensors,
        directory: str = "",
    ) -> None:
        self._connection = connection
        self._place = place
        self._directory = directory or place.directory
        self._effort = effort or (EMULATED_EFFORT if place.facts.is_emulated else Effort())
        self._timeout_s = timeout_s
        self._samples = len(codes[0])
        self._model = codes[0].dtype.name.replace("float32", FLOAT)

    def run_program(self, outputs: Sequence[TensorInfo]) -> Measured:
        """Measures the generated C in the program of the release."""
        effort = self._effort
        numbers = (effort.warmup, effort.runs, effort.seconds)
        program = f"{self._place.release}/{PROGRAM_NAME}"
        specs = [TensorSpec(o.name, o.shape, np.dtype(o.dtype)) for o in outputs]
        try:
            raw, about = self._run([program, "--measure", *map(str, numbers)], _CODES)
            tensors = unpack(raw, specs, self._samples)
            latencies = self._latencies({"1": about.get("times_ns")})
        except _UnusableError as error:
            kind = CheckFailedError if error.is_crash else BoardError
            raise kind(f"{GENERATED_C}: {error}", where=self._connection.host) from None
        return Measured(
            name=GENERATED_C,
            version=None,
            model=self._model,
            format="C",
            runtime=None,
            outputs=tensors,
            latencies=latencies,
            peak_memory_bytes=_kib(about.get("peak_memory_kib")),
            conditions=read_conditions(self._connection),
        )

    def run_case(self, case: Case) -> Measured:
        """Measures a model with a runtime; whatever goes wrong there is told in the result."""
        model = FLOAT if case.is_real else self._model
        package = self._place.choice.onnx if case.format == "ONNX" else self._place.choice.tflite
        try:
            raw, about = self._run(self._case_command(case, package), "/dev/null")
            specs = [_read_spec(entry) for entry in about["outputs"]]
            package = str(about["package"])
            return Measured(
                name=display_name(case.runtime, package),
                version=str(about["version"])[:40],
                model=model,
                format=case.format,
                runtime=case.runtime,
                outputs=unpack(raw, specs, self._samples),
                latencies=self._latencies(about["times_ns"]),
                peak_memory_bytes=_kib(about["peak_memory_kib"]),
                runtime_bytes=int(about["runtime_bytes"]),
                conditions=read_conditions(self._connection),
                file=case.file,
            )
        except _UnusableError as error:
            reason = str(error)
        except (KeyError, TypeError, ValueError):
            reason = "its answer makes no sense"
        return Measured(
            name=display_name(case.runtime, package),
            version=None,
            model=model,
            format=case.format,
            runtime=case.runtime,
            error=reason,
            file=case.file,
        )

    def _case_command(self, case: Case, package: str | None) -> list[str]:
        place, effort = self._place, self._effort
        if case.why_not:
            raise _UnusableError(case.why_not)
        if package is None:
            kind = "onnxruntime" if case.format == "ONNX" else "TensorFlow Lite"
            names = ("onnxruntime",) if case.format == "ONNX" else tuple(_NAMES)
            why = [text for text in place.choice.why_not if text.startswith((*names, "python3"))]
            raise _UnusableError("; ".join(why) or f"there is no {kind} for this board")
        if place.python is None:
            raise _UnusableError(place.why_no_python or "there is no Python environment")
        threads = (1,) if case.runtime == "litert-reference" else place.threads
        return [
            *(place.python, "-I", f"{place.directory}/{_PROGRAM}", case.runtime),
            f"{place.directory}/{_name_on_board(case)}",
            f"{place.directory}/{_REALS if case.is_real else _CODES}",
            *("--samples", str(self._samples), "--threads", ",".join(map(str, threads))),
            *("--warmup", str(effort.warmup), "--runs", str(effort.runs)),
            *("--seconds", str(effort.seconds)),
        ]

    def _run(self, command: Sequence[str], stdin: str) -> tuple[bytes, dict[str, Any]]:
        """Runs a command on the board; returns the outputs' bytes, and what it said of them."""
        directory, seconds = self._directory, f"{self._timeout_s:.0f}"
        stdin = stdin if stdin.startswith("/") else f"{directory}/{stdin}"
        done = self._connection.run(
            *(_script("run.sh"), directory, seconds, stdin, *command),
            check=False,
            timeout_s=self._timeout_s + _GRACE_S,
        )
        if done.returncode != 0:
            crashed = done.returncode == _OUT_OF_TIME or done.returncode > _KILLED
            raise _UnusableError(explain(done, self._timeout_s), is_crash=crashed)
        return split_answer(done.stdout)

    def _latencies(self, times_ns: Any) -> tuple[Latency, ...]:
        if not isinstance(times_ns, dict) or not times_ns:
            raise _UnusableError("its answer makes no sense")
        return tuple(
            summarize(times, int(threads), self._effort.warmup, self._place.facts.is_emulated)
            for threads, times in sorted(times_ns.items(), key=lambda item: int(item[0]))
        )


def display_name(runtime: Runtime, package: str | None) -> str:
    """Returns what to call a runtime: with its kernels, where there are several."""
    if runtime == "onnxruntime":
        return "ONNX Runtime"
    return f"{_NAMES.get(package or '', 'LiteRT')}{_KERNELS[runtime]}"


def summarize(times_ns: object, threads: int, warmup: int, emulated: bool) -> Latency:
    """Returns what is told of the times of single inferences.

    Args:
        times_ns: A list of times in nanoseconds.
        threads: How many threads were allowed.
        warmup: How many inferences came before.
        emulated: Whether an emulator ran them.
    """
    good = (
        isinstance(times_ns, list)
        and times_ns
        and all(isinstance(t, int | float) and math.isfinite(t) and t >= 0 for t in times_ns)
    )
    if not good:
        raise _UnusableError("its times make no sense")
    times_us = np.asarray(times_ns, np.float64) / 1000
    median, p90, p99 = (round(float(p), 2) for p in np.percentile(times_us, [50, 90, 99]))
    return Latency(median, p90, p99, warmup, len(times_us), threads, emulated)


def split_answer(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Takes an answer apart: the outputs' bytes, a line feed, a line of JSON."""
    raw, newline, line = data.removesuffix(b"\n").rpartition(b"\n")
    try:
        about = json.loads(line)
    except ValueError:
        about = None
    if not data.endswith(b"\n") or not newline or not isinstance(about, dict):
        raise _UnusableError("its answer is cut short")
    return raw, about


def unpack(raw: bytes, specs: Sequence[TensorSpec], samples: int) -> Tensors:
    """Returns the outputs of all inferences, one array ``[N, ...]`` per output."""
    row_bytes = sum(spec.bytes for spec in specs)
    if row_bytes == 0 or len(raw) != samples * row_bytes:
        raise _UnusableError(f"its outputs have {len(raw)} bytes, not {samples} times {row_bytes}")
    rows = np.frombuffer(raw, np.uint8).reshape(samples, row_bytes)
    arrays, at = [], 0
    for spec in specs:
        column = np.ascontiguousarray(rows[:, at : at + spec.bytes])
        arrays.append(column.view(spec.dtype).reshape(samples, *spec.batch_shape))
        at += spec.bytes
    return tuple(arrays)


def explain(done: Completed, timeout_s: float) -> str:
    """Returns in a few words why a measurement failed."""
    if "No space left on device" in done.stderr:
        return "the board's disk is full"
    if done.returncode == _OUT_OF_TIME:
        return f"it did not end within {timeout_s:.0f} s"
    if _KILLED < done.returncode <= _KILLED + _MOST_SIGNALS:
        number = done.returncode - _KILLED
        names = {item.value: item.name for item in signal.Signals}
        name = names.get(number, f"signal {number}")
        hint = "; was the memory full?" if number == signal.SIGKILL else ""
        return f"it crashed ({name}){hint}"
    return last_line(done.stderr) or f"it failed with code {done.returncode}"


def _send(
    connection: Connection,
    place: Place,
    codes: Tensors,
    reals: Tensors,
    cases: Sequence[Case],
) -> None:
    """Makes the measuring directory on the board; sends only what is not there."""
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as temporary:
        directory = Path(temporary)
        shutil.copyfile(BOARD / "measure.py", directory / _PROGRAM)
        (directory / _CODES).write_bytes(pack(codes))
        if reals and any(case.is_real for case in cases):
            (directory / _REALS).write_bytes(gzip.compress(pack(reals), 1, mtime=0))
        for case in cases:
            shutil.copyfile(case.file, directory / _name_on_board(case))
        connection.push(directory, place.directory)


def pack(tensors: Tensors) -> bytes:
    """Returns the inputs of all inferences, one inference after the other."""
    rows = [np.ascontiguousarray(array).reshape(len(array), -1) for array in tensors]
    return np.concatenate([row.view(np.uint8) for row in rows], axis=1).tobytes()


def _name_on_board(case: Case) -> str:
    kind = "real" if case.is_real else "codes"
    return f"{kind}{'.onnx' if case.format == 'ONNX' else '.tflite'}"


def _read_spec(entry: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec("", tuple(int(n) for n in entry["shape"]), np.dtype(str(entry["dtype"])))


def _describe_system(facts: Facts, before: Conditions, after: Conditions) -> System:
    return System(
        model=facts.model,
        os=facts.os,
        kernel=facts.kernel,
        architecture=facts.architecture,
        cores=facts.cores,
        memory_bytes=facts.memory_bytes,
        python=".".join(map(str, facts.python)) if facts.python else None,
        before=before,
        after=after,
    )


def _scaled(values: Mapping[str, str], key: str, factor: float) -> Any:
    text = values.get(key, "").strip()
    if not re.fullmatch(r"-?[0-9]{1,12}", text):
        return None
    return int(text) // factor if isinstance(factor, int) else round(int(text) / factor, 1)


def _kib(value: object) -> int | None:
    return value * 1024 if isinstance(value, int) and value > 0 else None


def _script(name: str) -> str:
    return (BOARD / name).read_text(encoding="utf-8")
