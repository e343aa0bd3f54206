"""Compiles damaged models: whatever a file holds, only an `EdgekilnError` may come out.

``make fuzz`` runs it; the number of a case says all about it::

    python tests/support/fuzz_reader.py --cases 200000
    python tests/support/fuzz_reader.py --case 4711 --save damaged.tflite

Each case runs in a child process whose memory is limited. More than `CPU_LIMIT_S` seconds of
processor time, or more than `memory_limit` bytes, is a finding like an exception is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from tflite_mutations import Seed, make_seed, mutate

from edgekiln import console
from edgekiln.errors import EdgekilnError
from edgekiln.export.compiler import IO, OPTIMIZE, compile_model
from edgekiln.export.ir import Graph
from edgekiln.export.lower import lower_graph
from edgekiln.export.ops.base import KernelCall
from edgekiln.export.passes import run_passes
from edgekiln.export.plan import alias_roots, plan_memory
from edgekiln.export.targets import TARGETS, Target
from edgekiln.export.tflite_reader import read_tflite

CPU_LIMIT_S = 2.0
WALL_LIMIT_S = 60.0
ADDRESS_SPACE_BYTES = 3 << 30

# Kernels for 64-bit accumulators, whose shift is the whole shift to the right.
WIDE_KERNELS = frozenset(
    f"ek_{name}_s16"
    for name in (
        "batch_matmul",
        "conv_2d",
        "depthwise_conv_2d",
        "fully_connected",
        "lstm",
        "transpose_conv",
    )
)

# Models up to this size are compiled to C, golden pair and all.
_SMALL_MACS = 200_000
_SMALL_ELEMENTS = 100_000

GOLDEN = Path(__file__).parent.parent / "golden"


@dataclass(frozen=True)
class Finding:
    """A case that did not end as it has to.

    Attributes:
        case: Its number.
        model: The file that was damaged.
        what: The exception with its place, "time" or "memory".
        detail: The traceback, or figures.
    """

    case: int
    model: str
    what: str
    detail: str


class _TooLong(BaseException):
    """The case has used up its processor time; nothing but the harness may catch it."""


def memory_limit(file_bytes: int) -> int:
    """Returns how many bytes the compilation of a damaged file may take."""
    return (64 << 20) + 64 * file_bytes


def load_seeds(directories: Sequence[Path], largest_bytes: int) -> list[Seed]:
    """Reads the models to damage, smallest first.

    Args:
        directories: Where .tflite files are, and tar archives of them.
        largest_bytes: Larger ones are left out.
    """
    files: dict[str, bytes] = {}
    for directory in directories:
        for path in directory.rglob("*.tflite"):
            files[path.name] = path.read_bytes()
        for path in directory.glob("*.tar.xz"):
            with tarfile.open(path) as archive:
                for entry in archive:
                    stored = archive.extractfile(entry)
                    if stored is not None:
                        files[entry.name] = stored.read()
    chosen = {name: data for name, data in files.items() if len(data) <= largest_bytes}
    order = sorted(chosen, key=lambda name: (len(chosen[name]), name))
    return [make_seed(name, chosen[name]) for name in order]


def damaged_file(seeds: Sequence[Seed], case: int, run: int = 0) -> tuple[Seed, bytes]:
    """Returns the file of a case, and what it was made from.

    Args:
        seeds: The models to damage.
        case: Its number.
        run: Another number for other cases.
    """
    generator = random.Random(f"{run}:{case}")
    # Small files are the quickest and, byte by byte, the richest: they are drawn more often.
    seed = seeds[int(len(seeds) * generator.random() ** 2)]
    return seed, mutate(seed, seeds, generator)


def compile_damaged(data: bytes, case: int) -> None:
    """Takes a file through the whole compiler, with options drawn by the case's number."""
    generator = random.Random(case)
    target = generator.choice(list(TARGETS.values()))
    graph = run_passes(read_tflite(data, "m.tflite"))
    _plan(graph, target)
    if _is_small(graph):
        optimize, io = generator.choice(OPTIMIZE), generator.choice(IO)
        compile_model(data, name="m", target=target.name, optimize=optimize, io=io)


def _plan(graph: Graph, target: Target) -> None:
    root = alias_roots(graph)
    nodes = lower_graph(graph, target, root)
    for node in nodes:
        for call in node.calls:
            _check_call(call)
    plan_memory(graph, root, nodes)


def _check_call(call: KernelCall) -> None:
    """Checks what a C compiler or processor could stumble over."""
    most = 62 if call.kernel in WIDE_KERNELS else 31
    for key, value in call.scalars.items():
        assert math.isfinite(value), f"{call.kernel}: {key} is {value}"
        if isinstance(value, int):
            assert -(2**31) <= value < 2**31, f"{call.kernel}: {key} is {value}"
        if key.endswith("shift") and key.replace("shift", "multiplier") in call.scalars:
            assert -31 <= value <= most, f"{call.kernel}: {key} is {value}"
    for key, array in call.arrays.items():
        if key.endswith("shift"):
            assert ((array >= -31) & (array <= most)).all(), f"{call.kernel}: {key} is {array}"


def _is_small(graph: Graph) -> bool:
    elements = sum(graph.tensor(t).elements for t in graph.activations())
    return elements <= _SMALL_ELEMENTS and sum(op.macs(graph) for op in graph.ops) <= _SMALL_MACS


def run_case(seeds: Sequence[Seed], case: int, run: int = 0) -> Finding | None:
    """Runs one case in this process."""
    seed, data = damaged_file(seeds, case, run)
    before = _reset_peak_bytes()
    try:
        with (
            _processor_time(CPU_LIMIT_S),
            warnings.catch_warnings(action="error"),
            contextlib.suppress(EdgekilnError),
        ):
            compile_damaged(data, case)
    except _TooLong:
        return Finding(case, seed.name, f"time at {_place()}", traceback.format_exc())
    except BaseException as error:
        what = f"{type(error).__name__} at {_place()}"
        return Finding(case, seed.name, what, traceback.format_exc())
    used = _peak_bytes() - before
    if used > memory_limit(len(data)):
        return Finding(case, seed.name, "memory", f"{used:,} bytes for a file of {len(data):,}")
    return None


def _place() -> str:
    """Names the innermost line of edgekiln in the exception being handled."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [f for f in frames if "edgekiln" in f.filename or "export" in f.filename]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


@contextlib.contextmanager
def _processor_time(limit_s: float) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _reset_peak_bytes() -> int:
    """Makes the kernel forget the peak of resident memory; returns what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024


class _Child:
    """A process that runs some of the cases, and says which one it is at.

    It shares a file with its parent: where it is and since when, then a line for each finding.
    """

    def __init__(self, directory: Path, options: Sequence[str]) -> None:
        self._file = directory / "child"
        self._file.write_bytes(_HEADER.pack(-1, 0.0))
        command = [sys.executable, __file__, "--child", str(self._file), *options]
        self._process = subprocess.Popen(command)

    def wait(self, wall_limit_s: float) -> Iterator[int]:
        """Yields the place of the running case now and then until the process has ended."""
        while self._process.poll() is None:
            position, began_s = self.position()
            if position >= 0 and time.monotonic() - began_s > wall_limit_s:
                self._process.kill()
            yield position
            time.sleep(0.02)

    @property
    def died(self) -> bool:
        """Tells whether it ended before its last case."""
        return self._process.returncode != 0

    def position(self) -> tuple[int, float]:
        """Returns the place of the running case in the list, and when it began."""
        position, began_s = _HEADER.unpack(self._file.read_bytes()[: _HEADER.size])
        return position, began_s

    def findings(self) -> list[Finding]:
        """Returns what it found, after its end."""
        lines = self._file.read_bytes()[_HEADER.size :].splitlines()
        return [Finding(**json.loads(line)) for line in lines]


_HEADER = struct.Struct("<qd")


def run_child(shared: Path, seeds: Sequence[Seed], cases: Sequence[int], run: int) -> None:
    """Runs cases in this process, with its memory limited."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with shared.open("r+b", buffering=0) as file:
        for position, case in enumerate(cases):
            file.seek(0)
            file.write(_HEADER.pack(position, time.monotonic()))
            finding = run_case(seeds, case, run)
            if finding is not None:
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(asdict(finding)).encode() + b"\n")


def run_cases(
    seeds: Sequence[Seed], first: int, cases: int, run: int, largest_bytes: int
) -> Iterator[int | Finding]:
    """Runs cases in a child process, and in a new one after each that killed it.

    Yields:
        How many cases are done, now and then, and the findings.
    """
    done = 0
    with tempfile.TemporaryDirectory(prefix="edgekiln-fuzz-") as directory:
        while done < cases:
            options = {"first": first + done, "cases": cases - done, "run": run}
            options["largest"] = largest_bytes
            child = _Child(
                Path(directory), [f"--{name}={value}" for name, value in options.items()]
            )
            for position in child.wait(WALL_LIMIT_S):
                yield done + max(position, 0)
            yield from child.findings()
            if not child.died:
                break
            position, _ = child.position()
            if position < 0:
                raise SystemExit("the child process did not start")
            done += position
            name = damaged_file(seeds, first + done, run)[0].name
            what = "the process was killed, or ran too long"
            yield Finding(first + done, name, "death", what)
            done += 1
    yield cases


def main() -> int:
    """Runs the cases that the command line asks for; 1 when there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--run", type=int, default=0, help="other numbers give other cases")
    parser.add_argument("--case", type=int, help="run this case alone, and show its traceback")
    parser.add_argument("--save", type=Path, help="with --case: write its file")
    parser.add_argument("--largest", type=int, default=100_000, help="size of models, in bytes")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    directories = [GOLDEN]
    if "EDGEKILN_SHARED" in os.environ:
        directories.append(Path(os.environ["EDGEKILN_SHARED"]) / "models")
    seeds = load_seeds(directories, arguments.largest)
    if arguments.case is not None:
        return _one_case(seeds, arguments.case, arguments.run, arguments.save)
    if arguments.child is not None:
        cases = range(arguments.first, arguments.first + arguments.cases)
        run_child(arguments.child, seeds, cases, arguments.run)
        return 0
    found: dict[str, list[Finding]] = {}
    with console.progress() as bar:
        description = f"damaged files of {len(seeds)} models"
        task = bar.add_task(description, total=arguments.cases, note="")
        for each in run_cases(
            seeds, arguments.first, arguments.cases, arguments.run, arguments.largest
        ):
            if isinstance(each, Finding):
                found.setdefault(each.what, []).append(each)
            else:
                bar.update(task, completed=each)
    for what, findings in sorted(found.items(), key=lambda item: -len(item[1])):
        numbers = ", ".join(str(f.case) for f in findings[:5])
        print(f"{len(findings):6d}  {what}  ({findings[0].model}; cases {numbers})")
    print(f"{arguments.cases:,} cases, {sum(map(len, found.values())):,} findings")
    return int(bool(found))


def _one_case(seeds: Sequence[Seed], case: int, run: int, save: Path | None) -> int:
    if save is not None:
        save.write_bytes(damaged_file(seeds, case, run)[1])
    finding = run_case(seeds, case, run)
    print(finding.detail if finding else f"case {case}: no finding")
    return int(finding is not None)


if __name__ == "__main__":
    sys.exit(main())
