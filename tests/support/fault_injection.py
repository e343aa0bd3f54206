"""Injects faults into the line between host and board: no wrong result, and nothing hangs.

``make faults`` runs it::

    python tests/support/fault_injection.py --faults 10000
    python tests/support/fault_injection.py --faults 300 --board mps2-an386 --workers 4

Host and board are the real ones: `Device`, and the application, as a program on this machine or
in an emulator. Between their pseudo-terminals a proxy loses, changes and doubles bytes, adds some,
restarts the board, and every now and then the host goes away in the middle of a command and comes
back. Every output is compared with one from an undisturbed line. A fault that the host does not
get over is told as an error, which is counted; a wrong output, or a call that takes longer than
all of its time-outs together, is a finding.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import sys
import tempfile
import threading
import time
import tty
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln import console
from edgekiln.bench.protocol import Device
from edgekiln.errors import BoardError
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.firmware.boards import Board, load_board
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image

GOLDEN = Path(__file__).parent.parent / "golden"

# What becomes of a byte, and how often one of so many. The last two concern the whole board and
# the host; they take longer than the others.
KINDS = {"lost": 30, "flipped": 30, "doubled": 30, "added": 10, "many lost": 5, "many doubled": 5}
RESET, HOST_GONE = "board restarted", "host gone"
BYTES_PER_FAULT = 250
RESET_SHARE = 0.04
HOST_GONE_SHARE = 0.04

ATTEMPTS = 8

# Short, for a lost byte costs as much. A program answers sooner than an emulator.
HOST_TIMEOUT_S = 0.08
EMULATOR_TIMEOUT_S = 0.4

# Far beyond all time-outs of a call together, on a machine that does much else.
HANG_S = 120.0


@dataclass
class Report:
    """What happened.

    Attributes:
        faults: How many were injected, by kind.
        incidents: What the host noticed and got over, by kind.
        answered: Outputs that arrived, all of them equal to the undisturbed ones but `wrong`.
        given_up: Calls that ended in an error.
        wrong: Findings: outputs that are not what they should be.
        hung: Findings: calls that took too long, and workers that did not end.
    """

    faults: Counter[str] = field(default_factory=Counter)
    incidents: Counter[str] = field(default_factory=Counter)
    answered: int = 0
    given_up: int = 0
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Adds what happened elsewhere."""
        self.faults += other.faults
        self.incidents += other.incidents
        self.answered += other.answered
        self.given_up += other.given_up
        self.wrong += other.wrong
        self.hung += other.hung


class Injector:
    """Decides, from a seed, what becomes of bytes on their way."""

    def __init__(self, seed: int, budget: int) -> None:
        self._random = random.Random(seed)
        self._budget = budget
        self.faults: Counter[str] = Counter()
        self.enabled = False

    @property
    def done(self) -> bool:
        """Whether all faults have been injected."""
        return self.faults.total() >= self._budget

    def spoil(self, data: bytes) -> bytes:
        """Returns what arrives of these bytes."""
        if not self.enabled:
            return data
        out = bytearray()
        place = 0
        while place < len(data):
            if self.done or self._random.random() >= 1 / BYTES_PER_FAULT:
                out.append(data[place])
                place += 1
                continue
            (kind,) = self._random.choices(list(KINDS), list(KINDS.values()))
            self.faults[kind] += 1
            place = self._apply(kind, data, place, out)
        return bytes(out)

    def _apply(self, kind: str, data: bytes, place: int, out: bytearray) -> int:
        """Adds what a fault makes of the bytes at a place; returns the next place."""
        byte, several = data[place], self._random.randint(2, 20)
        match kind:
            case "lost":
                return place + 1
            case "flipped":
                out.append(byte ^ (1 << self._random.randrange(8)))
            case "doubled":
                out += bytes([byte, byte])
            case "added":
                out += bytes([self._random.randrange(256), byte])
            case "many lost":
                return place + several
            case _:
                out += data[place : place + several] * 2
                return place + several
        return place + 1

    def chance(self, kind: str, share: float) -> bool:
        """Tells whether the board restarts, or the host goes away, now."""
        if not self.enabled or self.done or self._random.random() >= share:
            return False
        self.faults[kind] += 1
        return True

    def cut(self, length: int) -> int:
        """Returns where in so many bytes the host goes away."""
        return self._random.randrange(length)


class Line:
    """A serial port with a board behind it, and faults in between.

    Attributes:
        port: The path of the host's end.
    """

    def __init__(self, board: Board, image: Image, injector: Injector) -> None:
        self._board, self._image, self._injector = board, image, injector
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._theirs)
        os.set_blocking(self._ours, False)
        self.port = os.ttyname(self._theirs)
        self._emulator = contextlib.ExitStack()
        self._far = -1
        self._ended = False
        self._start_board()
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the relay and the board."""
        self._ended = True
        self._thread.join(HANG_S)
        self._stop_board()
        for handle in (self._ours, self._theirs):
            os.close(handle)

    def _start_board(self) -> None:
        running = self._emulator.enter_context(
            start_emulator(self._board, self._image, count=False)
        )
        self._far = os.open(running.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)

    def _stop_board(self) -> None:
        os.close(self._far)
        self._emulator.close()

    def _relay(self) -> None:
        while not self._ended:
            for source in select.select([self._ours, self._far], [], [], 0.02)[0]:
                target = self._far if source == self._ours else self._ours
                data = self._injector.spoil(os.read(source, 4096))
                with contextlib.suppress(BlockingIOError):  # nobody reads: bytes are lost
                    os.write(target, data)
                if target == self._far and self._injector.chance(RESET, RESET_SHARE):
                    self._stop_board()
                    self._start_board()
                    break


@dataclass(frozen=True)
class Subject:
    """An image, inputs, and the outputs that they have to lead to.

    Attributes:
        board: The board.
        image: Its image.
        rows: Inputs of one call each, or of one stream.
        wanted: Their outputs.
        is_stream: Whether the model remembers, and the inputs belong together.
    """

    board: Board
    image: Image
    rows: Sequence[bytes]
    wanted: Sequence[bytes]
    is_stream: bool


def remembering_model() -> bytes:
    """A small model with a state: its outputs depend on all inputs before."""
    generator = np.random.default_rng(0)
    shapes = [(1, 16), (8, 16), (8, 5), (8,), (1, 40), (1, 8)]
    tensors = [
        BuiltTensor(shapes[0], "INT8", (0.1,), (0,)),
        BuiltTensor(shapes[1], "INT8", (0.02,), (0,)),
        BuiltTensor(shapes[2], "INT8", (0.01,), (0,)),
        BuiltTensor(shapes[3], "INT32", (0.002,), (0,)),
        BuiltTensor(shapes[4], "INT8", (0.2,), (0,)),
        BuiltTensor(shapes[5], "INT8", (0.05,), (0,)),
    ]
    for index in (1, 2):
        tensors[index].data = generator.integers(-127, 128, shapes[index]).astype(np.int8)
    tensors[3].data = np.zeros(shapes[3], np.int32)
    tensors[4].is_variable = True
    op = BuiltOp("SVDF", [0, 1, 2, 3, 4], [5], "SVDFOptions", {"Rank": 1})
    return build_model(tensors, [op], [0], [5])


def make_subjects(slug: str, directory: Path) -> list[Subject]:
    """Returns a model whose inferences are independent, and a stream."""
    board = load_board(slug)
    generator = random.Random(0)
    digits = (GOLDEN / "digits_mlp_int8.tflite").read_bytes()
    some = [generator.randbytes(64) for _ in range(8)]
    step = generator.randbytes(16)
    # Equal inputs in a row lead to different outputs: an answer that comes late shows.
    steps = [step, step, generator.randbytes(16), step, step]
    subjects = []
    for name, data, rows in (("digits", digits, some), ("stream", remembering_model(), steps)):
        bundle = directory / f"{name}_c"
        write_bundle(compile_model(data, name=name, target=board.target), bundle)
        image = build_image(bundle, board, directory / name)
        is_stream = image.state_bytes > 0
        with (
            start_emulator(board, image, count=False) as emulator,
            Device(emulator.port) as device,
        ):
            device.hello()
            answers = device.run_stream(rows) if is_stream else [(device.run(r), 0) for r in rows]
        subjects.append(Subject(board, image, rows, [output for output, _ in answers], is_stream))
    assert len(set(subjects[1].wanted)) == len(steps)
    return subjects


def work(subject: Subject, seed: int, budget: int, report: Report) -> None:
    """Runs inferences on a bad line until that many faults have been injected."""
    injector = Injector(seed, budget)
    line = Line(subject.board, subject.image, injector)
    try:
        while not injector.done:
            with open_device(line.port, subject.board) as device:
                injector.enabled = False
                device.hello(within_s=HANG_S / 4)
                injector.enabled = True
                _work_with(subject, device, injector, report)
                report.incidents += device.incidents
    finally:
        line.close()
        report.faults = injector.faults


@contextlib.contextmanager
def open_device(port: str, board: Board) -> Iterator[Device]:
    """Opens the host's end with short time-outs; what it says is counted, not shown."""
    timeout_s = HOST_TIMEOUT_S if board.is_host else EMULATOR_TIMEOUT_S
    with Device(
        port,
        timeout_s=timeout_s,
        infer_timeout_s=timeout_s,
        attempts=ATTEMPTS,
        chunk_bytes=40,
        on_retry=lambda _told: None,
    ) as device:
        yield device


def _work_with(subject: Subject, device: Device, injector: Injector, report: Report) -> None:
    """Runs inferences until the host goes away."""
    number = 0
    while not injector.done:
        number = (number + 1) % len(subject.rows)
        if injector.chance(HOST_GONE, HOST_GONE_SHARE):
            command = b"db load 64%data " + subject.rows[number].replace(b"%", b"x") + b"%run%"
            with contextlib.suppress(BoardError):
                device._port.write(command[: injector.cut(len(command))])
            return
        begin = time.monotonic()
        try:
            if subject.is_stream:
                got = [output for output, _ in device.run_stream(subject.rows)]
                wanted = list(subject.wanted)
            else:
                got, wanted = [device.run(subject.rows[number])], [subject.wanted[number]]
        except BoardError:
            report.given_up += 1
        else:
            report.answered += len(got)
            report.wrong += [
                f"{subject.image.name}: got {g.hex()}, not {w.hex()}"
                for g, w in zip(got, wanted, strict=True)
                if g != w
            ]
        took_s = time.monotonic() - begin
        if took_s > HANG_S:
            report.hung.append(f"{subject.image.name}: a call took {took_s:.0f} s")


def inject(subjects: Sequence[Subject], faults: int, *, workers: int, seed: int) -> Report:
    """Injects so many faults, into as many lines at once as there are workers."""
    reports = [Report() for _ in range(workers)]
    shares = [len(range(number, faults, workers)) for number in range(workers)]
    threads = [
        threading.Thread(
            target=work,
            args=(subjects[number % len(subjects)], seed + number, shares[number], reports[number]),
            daemon=True,
        )
        for number in range(workers)
    ]
    for thread in threads:
        thread.start()
    total = Report()
    with console.progress() as bar:
        task = bar.add_task("faults", total=faults, note="")
        last = (time.monotonic(), 0)
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            so_far = sum(r.answered + r.given_up for r in reports)
            if so_far != last[1]:
                last = (time.monotonic(), so_far)
            done = sum(not thread.is_alive() for thread in threads)
            bar.update(task, completed=faults * done // workers, note=f"{so_far:,} inferences")
            if time.monotonic() - last[0] > 2 * HANG_S:
                total.hung.append("no worker has got anywhere for a long time")
                break
    for report in reports:
        total.add(report)
    return total


def main() -> int:
    """Injects the faults that the command line asks for; 1 when there are findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=10_000, help="how many")
    parser.add_argument("--board", default="host", help="`host`, or a board with an emulator")
    parser.add_argument("--workers", type=int, default=16, help="lines at once")
    parser.add_argument("--seed", type=int, default=0, help="other numbers give other faults")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekiln-faults-") as name:
        subjects = make_subjects(arguments.board, Path(name))
        report = inject(subjects, arguments.faults, workers=arguments.workers, seed=arguments.seed)
    print(f"{report.faults.total():,} faults on {arguments.board}: {dict(report.faults)}")
    print(f"the host noticed: {dict(report.incidents.most_common())}")
    print(
        f"{report.answered:,} outputs, {len(report.wrong)} wrong; {report.given_up} calls ended in "
        f"an error; {len(report.hung)} hung"
    )
    for finding in report.wrong + report.hung:
        print(finding)
    return 1 if report.wrong or report.hung else 0


if __name__ == "__main__":
    sys.exit(main())
