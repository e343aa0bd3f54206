"""Runs a data set through a board, or through the emulator that stands for it."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln import console
from edgekiln.bench.protocol import Device
from edgekiln.bench.tensors import Tensors
from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.bundle import TensorInfo
from edgekiln.firmware.counting import InferenceCount
from edgekiln.firmware.emulators import Counts, RunningEmulator, start_emulator
from edgekiln.firmware.image import Image

Answer = tuple[bytes, int]
"""An inference's output, and how long it took in µs by the board's clock."""


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

    Raises:
        BadInputError: The inputs do not have the model's shapes and dtypes.
        BoardError: The board does not answer, holds another model, its stack overflowed, or
            a transfer fails repeatedly.
        ToolMissingError: The emulator is not installed.
    """
    rows = _pack_inputs(image, inputs)
    if port is not None:
        with Device(port, baud=board.uart.baud if board.uart else 115_200) as device:
            return _run_all(image, board, device, rows, None, progress, stream)
    with (
        start_emulator(board, image, count=count) as emulator,
        _emulator_to_blame(emulator),
        Device(emulator.port) as device,
    ):
        return _run_all(image, board, device, rows, emulator, progress, stream)


@contextlib.contextmanager
def _emulator_to_blame(emulator: RunningEmulator) -> Iterator[None]:
    """Where the emulator has died, its last words explain more than a silent port."""
    try:
        yield
    except BoardError:
        emulator.check_alive(within_s=1.0)
        raise


def _run_all(
    image: Image,
    board: Board,
    device: Device,
    rows: Sequence[bytes],
    emulator: RunningEmulator | None,
    progress: bool,
    stream: bool,
) -> DeviceRun:
    device.hello()
    _check_model(image, device)
    counter = emulator if emulator is not None and emulator.counts else None
    what = f"inferences on {board.slug}"
    if stream and image.state_bytes:
        answers, counts = _run_stream(device, rows, counter, what if progress else None)
    else:
        if image.state_bytes:
            device.end_stream()
        shown = console.track(rows, what, len(rows)) if progress else rows
        answers, counts = _run_each(device, shown, counter)
    stack_bytes = _read_stack(image, device)
    return DeviceRun(
        outputs=_unpack_outputs(image, [output for output, _ in answers]),
        counts=tuple(counts) or None,
        counted=counter.counts if counter else None,
        cycles_model=counter.cycles_model if counter else "",
        emulated=board.is_emulated and emulator is not None,
        latency_us=None
        if board.is_emulated and emulator
        else statistics.median(elapsed_us for _, elapsed_us in answers),
        stack_bytes=stack_bytes,
        ram_bytes=image.ram_bytes(stack_bytes or 0),
        retries=device.retries,
    )


def _run_each(
    device: Device, rows: Iterable[bytes], counter: RunningEmulator | None
) -> tuple[list[Answer], list[InferenceCount]]:
    answers: list[Answer] = []
    counts: list[InferenceCount] = []
    for row in rows:
        answers.append(device.run_timed(row))
        if counter is not None:
            counts += _last_counts(counter, 1)
    return answers, counts


def _run_stream(
    device: Device, rows: Sequence[bytes], counter: RunningEmulator | None, what: str | None
) -> tuple[list[Answer], list[InferenceCount]]:
    """Runs a stream, with a progress bar named ``what``."""
    if what is None:
        answers = device.run_stream(rows)
    else:
        with console.progress() as bar:
            task = bar.add_task(what, total=len(rows), note="")
            answers = device.run_stream(rows, lambda done: bar.update(task, completed=done))
    return answers, [] if counter is None else _last_counts(counter, len(rows))


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
