"""Runs a data set through a board, or through the emulator that stands for it."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln import console
from edgekiln.bench.journal import Entry, Journal, journal_key
from edgekiln.bench.protocol import Device
from edgekiln.bench.tensors import Tensors
from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.bundle import TensorInfo
from edgekiln.firmware.counting import InferenceCount
from edgekiln.firmware.emulators import Counts, RunningEmulator, start_emulator
from edgekiln.firmware.image import Image


@dataclass(frozen=True)
class DeviceRun:
    """What a board answered, and what it took.

    Attributes:
        outputs: One array ``[N, ...]`` per output of the model, in its order and of its dtype.
        counts: What each inference took, or None where nothing counts it.
        counted: What ``counts`` are: instructions or cycles; None where nothing is counted.
        cycles_model: How the cycles are modelled, in words; empty without.
        emulated: Whether an emulator answered, and not a board.
        latency_us: Median time of an inference by the board's clock, or None under an emulator,
            whose clock says nothing about the board.
        stack_bytes: Measured peak of the stack, or None where it is not measured.
        ram_bytes: Arena, variables and that peak; without the stack where it is None.
        retries: How often something had to be sent again.
    """

    outputs: Tensors
    counts: tuple[InferenceCount, ...] | None
    counted: Counts | None
    cycles_model: str
    emulated: bool
    latency_us: float | None
    stack_bytes: int | None
    ram_bytes: int
    retries: int

    @property
    def instructions(self) -> int | None:
        """Instructions of the first inference, from the entry of invoke to its return."""
        return self._first("instructions")

    @property
    def cycles(self) -> int | None:
        """Clock cycles of the first inference, from the entry of invoke to its return."""
        return self._first("cycles")

    @property
    def instructions_min(self) -> int | None:
        """The fewest instructions that an inference took."""
        return min(self._totals("instructions"), default=None)

    @property
    def instructions_max(self) -> int | None:
        """The most instructions that an inference took."""
        return max(self._totals("instructions"), default=None)

    @property
    def per_node_instructions(self) -> tuple[int, ...] | None:
        """Instructions of each node in the first inference, in the order of ``Image.nodes``."""
        return self._first_per_node("instructions")

    @property
    def per_node_cycles(self) -> tuple[int, ...] | None:
        """Clock cycles of each node in the first inference, in the order of ``Image.nodes``."""
        return self._first_per_node("cycles")

    def _totals(self, unit: Counts) -> list[int]:
        return [count.total for count in self.counts or ()] if self.counted == unit else []

    def _first(self, unit: Counts) -> int | None:
        return next(iter(self._totals(unit)), None)

    def _first_per_node(self, unit: Counts) -> tuple[int, ...] | None:
        return self.counts[0].per_node if self.counts and self.counted == unit else None


def run_on_board(
    image: Image,
    board: Board,
    inputs: NDArray[Any] | Sequence[NDArray[Any]],
    *,
    port: str | None = None,
    count: bool = True,
    progress: bool = True,
    stream: bool = False,
    journal: Path | None = None,
) -> DeviceRun:
    """Runs one inference per input and collects the outputs' bytes.

    A model that remembers forgets before each of them, unless they are a stream.

    Args:
        image: What is on the board, or will be run by its emulator.
        board: The board.
        inputs: One array ``[N, ...]`` of the input's dtype, or one per input of the model.
        port: Serial port of a real board that holds the image; None starts the emulator.
        count: Count instructions or cycles where the emulator can.
        progress: Show a progress bar.
        stream: Let the model remember, from a fresh start, across all inferences.
        journal: File that keeps the answers until all are there: where an earlier run with the
            same image and inputs was broken off, this one goes on. Streams begin anew.

    Raises:
        BadInputError: The inputs do not have the model's shapes and dtypes.
        BoardError: The board does not answer, holds another model, its stack overflowed, or
            a transfer fails repeatedly.
        ToolMissingError: The emulator is not installed.
    """
    rows = _pack_inputs(image, inputs)
    if port is not None:
        with Device(port, baud=board.uart.baud if board.uart else 115_200) as device:
            return _run_all(_Run(image, board, rows, device, None, progress, journal, port), stream)
    with (
        start_emulator(board, image, count=count) as emulator,
        _emulator_to_blame(emulator),
        Device(emulator.port) as device,
    ):
        return _run_all(_Run(image, board, rows, device, emulator, progress, journal), stream)


@dataclass(frozen=True)
class _Run:
    """All that a run has to do with; as the arguments of `run_on_board`."""

    image: Image
    board: Board
    rows: Sequence[bytes]
    device: Device
    emulator: RunningEmulator | None
    progress: bool
    journal: Path | None
    port: str | None = None

    @property
    def counter(self) -> RunningEmulator | None:
        """The emulator, where it counts."""
        return self.emulator if self.emulator is not None and self.emulator.counts else None

    @contextlib.contextmanager
    def show(self, done: int = 0) -> Iterator[Callable[[int], None]]:
        """Yields what is to be called with the number of inferences that are done."""
        if not self.progress:
            yield lambda _done: None
            return
        with console.progress() as bar:
            task = bar.add_task(f"inferences on {self.board.slug}", total=len(self.rows), note="")
            bar.update(task, completed=done)
            yield lambda done: bar.update(task, completed=done)

    def open_journal(self) -> Journal | None:
        """Opens the journal, if there is to be one."""
        if self.journal is None:
            return None
        counted = self.counter.counts if self.counter else None
        key = journal_key(self.image, self.rows, port=self.port, counted=counted)
        return Journal(self.journal, key)


@contextlib.contextmanager
def _emulator_to_blame(emulator: RunningEmulator) -> Iterator[None]:
    """Where the emulator has died, its last words explain more than a silent port."""
    try:
        yield
    except BoardError:
        emulator.check_alive(within_s=1.0)
        raise


def _run_all(run: _Run, stream: bool) -> DeviceRun:
    image, device, counter = run.image, run.device, run.counter
    device.hello()
    _check_model(image, device)
    if stream and image.state_bytes:
        entries = _run_stream(run)
        stack_bytes = _read_stack(image, device)
    else:
        if image.state_bytes:
            device.end_stream()
        with contextlib.ExitStack() as stack:
            journal = run.open_journal()
            if journal is not None:
                stack.enter_context(journal)
            entries = _run_each(run, journal)
            stack_bytes = _read_stack(image, device)
            if journal is not None:
                journal.remove()
    _tell_incidents(run)
    return DeviceRun(
        outputs=_unpack_outputs(image, [entry.output for entry in entries]),
        counts=tuple(entry.count for entry in entries if entry.count is not None) or None,
        counted=counter.counts if counter else None,
        cycles_model=counter.cycles_model if counter else "",
        emulated=run.board.is_emulated and run.emulator is not None,
        latency_us=None
        if run.board.is_emulated and run.emulator
        else statistics.median(entry.elapsed_us for entry in entries),
        stack_bytes=stack_bytes,
        ram_bytes=image.ram_bytes(stack_bytes or 0),
        retries=device.retries,
    )


def _run_each(run: _Run, journal: Journal | None) -> list[Entry]:
    """Runs what the journal does not have, and the last that it has once more."""
    entries = _take_up(run, journal) if journal is not None else []
    with run.show(len(entries)) as show:
        for row in run.rows[len(entries) :]:
            entry = _run_one(run, row)
            if journal is not None:
                journal.add(entry)
            entries.append(entry)
            show(len(entries))
    return entries


def _take_up(run: _Run, journal: Journal) -> list[Entry]:
    """Returns what was answered before, unless the board does not answer so any more.

    The board is asked again for the last of it, which also shows how deep its stack gets.
    """
    entries = journal.entries
    if not entries:
        return []
    again = _run_one(run, run.rows[len(entries) - 1])
    if again.output != entries[-1].output:
        console.say("The board answers otherwise than before it was interrupted: all runs anew")
        journal.begin_anew()
        return []
    console.say(f"{len(entries):,} of {len(run.rows):,} inferences were done before")
    return list(entries)


def _run_one(run: _Run, row: bytes) -> Entry:
    output, elapsed_us = run.device.run_timed(row)
    count = None if run.counter is None else _last_counts(run.counter, 1)[0]
    return Entry(output, elapsed_us, count)


def _run_stream(run: _Run) -> list[Entry]:
    with run.show() as show:
        answers = run.device.run_stream(run.rows, show)
    counts: Sequence[InferenceCount | None] = [None] * len(answers)
    if run.counter is not None:
        counts = _last_counts(run.counter, len(answers))
    return [Entry(*answer, count) for answer, count in zip(answers, counts, strict=True)]


def _tell_incidents(run: _Run) -> None:
    """Sums up what had to be sent again."""
    if run.device.retries:
        kinds = ", ".join(f"{n} x {what}" for what, n in run.device.incidents.most_common(5))
        console.say(f"{run.board.slug}: {run.device.retries} times something was repeated: {kinds}")


def _check_model(image: Image, device: Device) -> None:
    about = device.about()
    if about.model_sha256 != image.model_sha256:
        raise BoardError(
            "the board holds another model",
            got=f"{about.model} (sha256 {about.model_sha256[:12]}…)",
            allowed=f"{image.name} (sha256 {image.model_sha256[:12]}…)",
            hint="flash it first",
        )


def _read_stack(image: Image, device: Device) -> int | None:
    stack_bytes = device.counters().stack_bytes
    if stack_bytes is not None and stack_bytes >= image.stack_reserve_bytes:
        raise BoardError(
            "the stack overflowed",
            where=f"{image.name} on {image.board}",
            got=f"all of its {image.stack_reserve_bytes} bytes in use",
            hint="raise stack_bytes in the board's file",
        )
    return stack_bytes


def _last_counts(emulator: RunningEmulator, inferences: int) -> list[InferenceCount]:
    """The counts of the inferences just answered; where some were repeated, of the last."""
    counts = emulator.take_counts()
    if len(counts) < inferences:
        raise BoardError(
            "the emulator counted too few inferences", got=len(counts), allowed=inferences
        )
    return list(counts[-inferences:])


def _pack_inputs(image: Image, inputs: NDArray[Any] | Sequence[NDArray[Any]]) -> list[bytes]:
    arrays = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
    if len(arrays) != len(image.inputs):
        raise BadInputError(
            "wrong number of inputs", where=image.name, got=len(arrays), allowed=len(image.inputs)
        )
    samples = len(arrays[0])
    if samples == 0:
        raise BadInputError("no inputs to run", where=image.name)
    for array, tensor in zip(arrays, image.inputs, strict=True):
        _check_input(image, array, tensor, samples)
    return [b"".join(array[i].tobytes() for array in arrays) for i in range(samples)]


def _check_input(image: Image, array: NDArray[Any], tensor: TensorInfo, samples: int) -> None:
    where = f"{image.name}, input {tensor.name}"
    if array.dtype != np.dtype(tensor.dtype):
        raise BadInputError(f"inputs have to be {tensor.dtype}", where=where, got=array.dtype)
    if len(array) != samples or math.prod(array.shape[1:]) != math.prod(tensor.shape):
        raise BadInputError(
            "inputs have the wrong shape",
            where=where,
            got=list(array.shape),
            allowed=[samples, *_row_shape(tensor)],
        )


def _unpack_outputs(image: Image, outputs: Sequence[bytes]) -> Tensors:
    table = np.frombuffer(b"".join(outputs), dtype=np.uint8).reshape(len(outputs), -1)
    ends = np.cumsum([tensor.bytes for tensor in image.outputs])
    parts = np.split(table, ends[:-1], axis=1)
    return tuple(
        np.frombuffer(part.tobytes(), tensor.dtype).reshape(len(outputs), *_row_shape(tensor))
        for part, tensor in zip(parts, image.outputs, strict=True)
    )


def _row_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """The shape of one inference's values in an array of N: without a leading 1."""
    return tensor.shape[1:] if tensor.shape[:1] == (1,) else tensor.shape
