"""From what a board that runs Linux answered to results.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekiln.bench.accuracy import agreement, compare_bytes, top1_accuracy
from edgekiln.bench.compiled import CompiledRunner
from edgekiln.bench.device import DeviceRun
from edgekiln.bench.linux import (
    FLOAT,
    Case,
    Effort,
    LinuxBoard,
    LinuxRun,
    Measured,
    Place,
    measure_on_linux,
)
from edgekiln.bench.measure import (
    BOARD,
    Subject,
    assess,
    bench_result,
    compare_all,
    litert_is_safe,
)
from edgekiln.bench.results import BenchResult, BoardFacts, Results, RuntimeRun
from edgekiln.bench.runners import LiteRTRunner
from edgekiln.bench.tensors import Tensors
from edgekiln.errors import BadModelError, ToolMissingError
from edgekiln.export.passes import run_passes
from edgekiln.export.tflite_reader import read_tflite
from edgekiln.firmware.boards import Board
from edgekiln.firmware.image import Image
from edgekiln.firmware.linux.facts import Facts
from edgekiln.firmware.linux.ssh import Connection


def measure_linux(
    connection: Connection,
    place: Place,
    subject: Subject,
    *,
    program_bytes: int,
    cases: Sequence[Case] = (),
    reals: Tensors = (),
    effort: Effort | None = None,
) -> Results:
    """Measures a release on a board with every runtime, and compares every byte.

    Args:
        connection: The board.
        place: What has been deployed there, and where.
        subject: The model; its image is what `Program.as_image` returns.
        program_bytes: The size of the program in the release.
        cases: The models, and the runtimes that shall run them.
        reals: The inputs as the float model takes them, float32 ``[N, ...]`` each.
        effort: How long to time; by default less where the board is emulated.

    Raises:
        CheckFailedError: A byte differs between the generated C on the board, the generated C
            on the host and TensorFlow Lite Micro, or the generated C does not work there. What
            other runtimes answer is never an error.
        BoardError: The board cannot be reached.
        ToolMissingError: A C compiler is missing.
    """
    run = measure_on_linux(
        connection,
        place,
        codes=subject.inputs.tensors,
        outputs=subject.image.outputs,
        reals=reals,
        cases=refuse_cases(cases, subject, reals),
        effort=effort,
    )
    device = device_run(run.generated, subject.image, place.facts)
    results = assess(subject, device, board_facts(place, subject))
    references = {CompiledRunner.name: run.generated.outputs}
    if any(item.runtime == "litert-reference" and not item.error for item in run.runtimes):
        references |= _host_reference(subject)
    rows = describe_runtimes(
        run,
        labels=subject.inputs.labels,
        references=references,
        image=subject.image,
        program_bytes=program_bytes,
    )
    return dataclasses.replace(results, runtimes=rows, system=run.system)


def bench_linux(
    there: LinuxBoard, board: Board, bundle: Path, host_bundle: Path, codes: Tensors
) -> BenchResult:
    """Runs generated C on a board over a few inputs, for its numbers; nothing is deployed.

    Args:
        there: The board.
        board: What its file says.
        bundle: The generated C for it.
        host_bundle: The generated C for this machine.
        codes: One array ``[N, ...]`` per model input.

    Raises:
        CheckFailedError: A byte differs between the board and the generated C on the host, or
            the generated C does not work there.
        BoardError: The board cannot be reached.
        ToolMissingError: A C compiler is missing.
    """
    program, measured = there.run(bundle, codes)
    host_c = CompiledRunner(host_bundle)
    name, image = program.bundle.name, program.as_image(board.slug)
    runs = {BOARD: measured.outputs, host_c.name: host_c.run(codes)}
    compare_all(runs, f"{name} on {board.slug}")
    return bench_result(name, image, board, device_run(measured, image, there.facts))


def refuse_cases(cases: Sequence[Case], subject: Subject, reals: Tensors) -> tuple[Case, ...]:
    """Returns the cases; those that would damage their process or compute nonsense say why not."""
    is_safe = litert_is_safe(run_passes(read_tflite(subject.tflite, subject.name)))

    def refuse(case: Case) -> Case:
        why_not = ""
        if case.is_real and len(reals) != 1:
            why_not = "its inputs may be in another order than the quantized model's"
        elif not case.is_real and case.format == "TFLite" and not is_safe:
            why_not = "LiteRT writes beyond the state of an SVDF that is not int16"
        return dataclasses.replace(case, why_not=why_not)

    return tuple(map(refuse, cases))


def device_run(generated: Measured, image: Image, facts: Facts) -> DeviceRun:
    """Returns what the generated C answered as of any board."""
    emulated = facts.is_emulated
    return DeviceRun(
        outputs=generated.outputs,
        counts=None,
        counted=None,
        cycles_model="",
        emulated=emulated,
        latency_us=None if emulated else generated.latencies[0].median,
        stack_bytes=None,
        ram_bytes=image.ram_bytes(0),
        retries=0,
    )


def board_facts(place: Place, subject: Subject) -> BoardFacts:
    """Returns what the report says about the board: what it says of itself."""
    facts = place.facts
    return BoardFacts(
        display_name=facts.model or subject.board.display_name,
        core=f"{facts.architecture}, {facts.cores} core{'s' * (facts.cores != 1)}",
        flash_bytes=None,
        ram_bytes=None,
        emulator="QEMU" if facts.is_emulated else None,
    )


def describe_runtimes(
    run: LinuxRun,
    *,
    labels: np.ndarray | None,
    references: Mapping[str, Tensors],
    image: Image,
    program_bytes: int,
) -> tuple[RuntimeRun, ...]:
    """Returns the rows of results.json: the generated C first, then the runtimes.

    Args:
        run: What was measured.
        labels: The right class of each input, or None.
        references: Engine on the host to its outputs; the generated C's are among them.
        image: The generated C.
        program_bytes: The size of the whole program with it.
    """
    model_bytes = image.flash_bytes - image.flash_app_bytes
    own = _describe(run.generated, run, labels, references)
    own = dataclasses.replace(own, model_bytes=model_bytes, size_bytes=program_bytes)
    return (own, *(_describe(item, run, labels, references) for item in run.runtimes))


def _describe(
    item: Measured,
    run: LinuxRun,
    labels: np.ndarray | None,
    references: Mapping[str, Tensors],
) -> RuntimeRun:
    """Returns the row of one runtime; its accuracy is that of its first output."""
    outputs = item.outputs
    # A float model may have several outputs in another order than the quantized one.
    scores = outputs[0] if outputs and (len(outputs) == 1 or item.model != FLOAT) else None
    name, compared, equal = _compare(item, references)
    model_bytes = item.file.stat().st_size if item.file else None
    size_bytes = None
    if model_bytes is not None and item.runtime_bytes is not None:
        size_bytes = model_bytes + item.runtime_bytes
    return RuntimeRun(
        name=item.name,
        version=item.version,
        model=item.model,
        format=item.format,
        samples=len(outputs[0]) if outputs else 0,
        accuracy=None if scores is None or labels is None else top1_accuracy(scores, labels),
        agreement=None if scores is None else agreement(scores, run.generated.outputs[0]),
        reference=name,
        bytes=compared,
        equal_bytes=equal,
        latency_us=next((time for time in item.latencies if time.threads == 1), None),
        latency_us_by_threads=item.latencies,
        peak_memory_bytes=item.peak_memory_bytes,
        model_bytes=model_bytes,
        size_bytes=size_bytes,
        conditions=item.conditions,
        error=item.error,
    )


def _compare(item: Measured, references: Mapping[str, Tensors]) -> tuple[str | None, int, int]:
    """Returns what on the host a runtime's bytes are held against, how many, how many equal."""
    name = CompiledRunner.name
    if item.runtime == "litert-reference":
        name = next((other for other in references if other != name), name)
    want = references[name]
    kinds = [[(array.shape, array.dtype) for array in run] for run in (item.outputs, want)]
    is_real = item.model == FLOAT and item.runtime is not None
    if is_real or not item.outputs or kinds[0] != kinds[1]:
        return None, 0, 0
    found = compare_bytes(item.outputs, want)
    return name, found.total_bytes, found.total_bytes - found.mismatched_bytes


def _host_reference(subject: Subject) -> dict[str, Tensors]:
    """Returns what LiteRT's reference kernels answer on the host, where there is LiteRT."""
    try:
        runner = LiteRTRunner(subject.tflite)
    except (ToolMissingError, BadModelError):
        return {}
    return {f"{runner.name} on host": runner.run(subject.inputs.tensors)}
