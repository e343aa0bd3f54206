"""Measures one model on one board, and holds every byte against the engines on the host."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln import __version__
from edgekiln.bench.accuracy import (
    agreement,
    compare_bytes,
    confusion_matrix,
    measure_host_latency,
    top1_accuracy,
)
from edgekiln.bench.device import DeviceRun, run_on_board
from edgekiln.bench.divergence import differs, find_first_mismatch
from edgekiln.bench.inputs import ModelInputs
from edgekiln.bench.results import (
    Accuracy,
    Artifact,
    BenchResult,
    BoardFacts,
    Buffer,
    Comparison,
    Confusion,
    HostRun,
    MemoryPlan,
    NodeCost,
    Results,
)
from edgekiln.bench.runners import (
    CompiledRunner,
    LiteRTRunner,
    NumpyRunner,
    OnnxRunner,
    Runner,
    TflmRunner,
)
from edgekiln.bench.tensors import Tensors
from edgekiln.console import say, track
from edgekiln.errors import (
    BadModelError,
    CheckFailedError,
    ToolMissingError,
    UnsupportedOpError,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Tolerance, accumulated_tolerance
from edgekiln.export.passes import run_passes
from edgekiln.export.tflite_reader import read_tflite
from edgekiln.files import sha256_bytes
from edgekiln.firmware.boards import Board
from edgekiln.firmware.image import Image

BOARD = "board"
EXACT = Tolerance(0.0, 0.0)
PACKAGES = (
    *("numpy", "tensorflow", "keras", "scikit-learn", "ai-edge-litert", "tflite-micro"),
    *("onnx", "onnxruntime", "tf2onnx"),
)

_LATENCY_WARMUP = 3
_LATENCY_REPEATS = 30


@dataclass(frozen=True)
class Background:
    """What is known of a model from the stages before, all of it absent for one from outside.

    Attributes:
        float_accuracy: The Keras model's accuracy before pruning.
        pruned_accuracy: Its accuracy after pruning.
        training: Metric to its value after each epoch.
        seeds: What each seed is for, and its value.
    """

    float_accuracy: float | None
    pruned_accuracy: float | None
    training: Mapping[str, tuple[float, ...]]
    seeds: Mapping[str, int]


@dataclass(frozen=True)
class Subject:
    """A model, ready to be measured.

    Attributes:
        name: Its name.
        tflite: The .tflite file's bytes.
        onnx_int8: The int8 .onnx file, or None.
        compile_report: What the compiler said of what is in the image.
        host_bundle: The same model compiled for this machine.
        image: The image.
        board: The board.
        inputs: What to run it on.
        background: What the stages before knew.
        artifacts: The files that led here.
        port: Serial port of the real board that holds the image; None runs the emulator.
        journal: File that keeps the answers of a run that is broken off, or None.
    """

    name: str
    tflite: bytes
    onnx_int8: Path | None
    compile_report: Mapping[str, Any]
    host_bundle: Path
    image: Image
    board: Board
    inputs: ModelInputs
    background: Background
    artifacts: tuple[Artifact, ...]
    port: str | None = None
    journal: Path | None = None


def measure(subject: Subject) -> Results:
    """Runs a model on the board and on the host over all inputs, and compares every byte.

    Raises:
        CheckFailedError: A byte differs between the board, the generated C on the host and
            TensorFlow Lite Micro.
        BoardError: The board does not answer.
        ToolMissingError: The emulator or a C compiler is missing.
    """
    inputs = subject.inputs.tensors
    device = run_on_board(
        subject.image, subject.board, inputs, port=subject.port, journal=subject.journal
    )
    return assess(subject, device)


def assess(subject: Subject, device: DeviceRun, facts: BoardFacts | None = None) -> Results:
    """Holds what a board answered against the engines on the host, byte by byte.

    Args:
        subject: The model and its inputs.
        device: What the board answered to all of them.
        facts: What the report says about the board; by default what its file says.

    Raises:
        CheckFailedError: A byte differs, as for `measure`.
        ToolMissingError: A C compiler is missing.
    """
    inputs = subject.inputs
    host_c = CompiledRunner(subject.host_bundle)
    reference, oracle = choose_reference(subject.tflite, subject.name)
    runs: dict[str, Tensors] = {BOARD: device.outputs}
    for runner in track((host_c, reference), "inferences on the host", 2):
        runs[runner.name] = runner.run(inputs.tensors)
    graph = run_passes(read_tflite(subject.tflite, subject.name))
    comparisons = compare_all(
        runs, f"{subject.name} on {subject.board.slug}", accumulated_tolerance(graph.ops)
    )
    nodes = 0 if oracle is None else compare_nodes(subject.tflite, subject.host_bundle, inputs)
    engines: list[Runner] = [host_c, reference, *_other_engines(subject)]
    bench = bench_result(subject.name, subject.image, subject.board, device)
    return Results(
        **{name: getattr(bench, name) for name in BenchResult.__dataclass_fields__},
        instructions_min=device.instructions_min,
        instructions_max=device.instructions_max,
        flash_app_bytes=subject.image.flash_app_bytes,
        accuracy=Accuracy(
            float_model=subject.background.float_accuracy,
            pruned=subject.background.pruned_accuracy,
            int8_host=_accuracy(runs[reference.name], inputs),
            int8_device=_accuracy(device.outputs, inputs),
            samples=inputs.samples,
            device_equals_host_bytes=True,
            int8_host_runtime=reference.name,
        ),
        oracle=oracle,
        inputs=inputs.description,
        comparisons=comparisons,
        nodes_compared=nodes,
        host=tuple(
            _run_on_host(engine, inputs, device.outputs)
            for engine in track(engines, "engines on the host", len(engines))
        ),
        confusion=_confusion(device.outputs, inputs),
        training=subject.background.training,
        memory_plan=read_memory_plan(subject.compile_report),
        board_facts=facts or _board_facts(subject.board, emulated=device.emulated),
        artifacts=subject.artifacts,
        versions=installed_versions(),
        seeds=subject.background.seeds,
        model_sha256=sha256_bytes(subject.tflite),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def compare_all(
    runs: Mapping[str, Tensors], where: str, tolerance: Tolerance = EXACT
) -> tuple[Comparison, ...]:
    """Holds every run against every later one, byte by byte.

    The comparison between the engines on the host comes first: where they differ, the compiler
    is wrong; where only the board differs, its C compiler or its kernels are.

    The generated C has to compute the same real numbers on the board and on the host; the
    reference may lie within a tolerance of them.

    Args:
        runs: Engine to its outputs; the board's under the name `BOARD`.
        where: The model and the board, for messages.
        tolerance: How far float32 outputs may lie from the reference's.

    Raises:
        CheckFailedError: A byte is wrong; the message says where, and how many are.
    """
    names = list(runs)
    pairs = [(a, b) for number, a in enumerate(names) for b in names[number + 1 :]]
    found = {}
    for left, right in sorted(pairs, key=lambda pair: BOARD in pair):
        allowed = EXACT if {left, right} == {BOARD, CompiledRunner.name} else tolerance
        forgiven = _forgive(runs[left], runs[right], allowed)
        result = compare_bytes(forgiven, runs[right])
        if not result.equal:
            raise CheckFailedError(
                f"{left} and {right} differ in {result.mismatched_bytes} of "
                f"{result.total_bytes} output bytes, first in sample {result.first.sample}, "
                f"output {result.first.output}, byte {result.first.index}"
                if result.first
                else f"there was nothing to compare between {left} and {right}",
                where=where,
                got=result.first.got if result.first else "",
                allowed=result.first.want if result.first else "",
                hint="edgekiln verify names the node" if result.first else "",
            )
        found[left, right] = Comparison(
            left,
            right,
            samples=result.samples,
            bytes=result.total_bytes,
            mismatched_bytes=0,
            tolerated_bytes=compare_bytes(runs[left], forgiven).mismatched_bytes,
        )
    return tuple(found[pair] for pair in pairs)


def _forgive(got: Tensors, want: Tensors, tolerance: Tolerance) -> Tensors:
    """Returns ``got`` with every real number that is near enough to the wanted one replaced."""
    return tuple(
        np.where(np.stack([differs(*rows, tolerance) for rows in zip(a, b, strict=True)]), a, b)
        if a.dtype == b.dtype == np.float32 and a.shape == b.shape and a.size
        else a
        for a, b in zip(got, want, strict=True)
    )


def compare_nodes(model: bytes, host_bundle: Path, inputs: ModelInputs) -> int:
    """Holds every node of one inference against TensorFlow Lite Micro's.

    The final bytes alone prove little where they saturate, as softmax does on random inputs.

    Args:
        model: The .tflite file's bytes.
        host_bundle: The generated C for this machine.
        inputs: The first of them is run.

    Returns:
        The number of nodes.

    Raises:
        CheckFailedError: A byte of a node's output differs; the message names the first node.
    """
    graph = run_passes(read_tflite(model, "model"))
    found = find_first_mismatch(model, graph, host_bundle, inputs.head(1).tensors)
    if found is not None:
        raise CheckFailedError(
            f"node {found.node} ({found.op}), by {found.engine}, differs from "
            f"TensorFlow Lite Micro's in value {found.index}",
            where=host_bundle,
            got=found.got,
            allowed=found.want,
        )
    return len(graph.ops)


def choose_reference(model: bytes, name: str) -> tuple[Runner, str | None]:
    """Returns what the generated C is held against, and the oracle's name in results.

    TensorFlow Lite Micro where it can be run, else the numpy definition of the operators, which
    has no name as an oracle.
    """
    try:
        return TflmRunner(model), "tflm"
    except (ToolMissingError, UnsupportedOpError) as error:
        say(f"The oracle is absent: {error}")
        return NumpyRunner(model, name), None


def measure_few(
    name: str,
    image: Image,
    board: Board,
    host_bundle: Path,
    inputs: ModelInputs,
    port: str | None = None,
) -> BenchResult:
    """Runs a model on the board over a few inputs, for its numbers.

    Args:
        name: The model's name.
        image: The image.
        board: The board.
        host_bundle: The same model compiled for this machine.
        inputs: What to run it on.
        port: Serial port of the real board that holds the image; None runs the emulator.

    Raises:
        CheckFailedError: A byte differs between the board and the generated C on the host.
        BoardError: The board does not answer.
        ToolMissingError: The emulator or a C compiler is missing.
    """
    device = run_on_board(image, board, inputs.tensors, port=port)
    host_c = CompiledRunner(host_bundle)
    runs = {BOARD: device.outputs, host_c.name: host_c.run(inputs.tensors)}
    compare_all(runs, f"{name} on {board.slug}")
    return bench_result(name, image, board, device)


def bench_result(name: str, image: Image, board: Board, device: DeviceRun) -> BenchResult:
    """Returns the numbers of one model on one board."""
    nothing = (None,) * len(image.nodes)
    instructions = device.per_node_instructions or nothing
    cycles = device.per_node_cycles or nothing
    return BenchResult(
        board=board.slug,
        emulated=device.emulated,
        model=name,
        macs=image.macs,
        instructions=device.instructions,
        cycles=device.cycles,
        cycles_model=device.cycles_model or None,
        latency_us=device.latency_us,
        flash_bytes=image.flash_bytes,
        flash_constants_bytes=image.flash_constants_bytes,
        flash_code_bytes=image.flash_code_bytes,
        ram_bytes=device.ram_bytes,
        arena_bytes=image.arena_bytes,
        stack_bytes=device.stack_bytes,
        per_node=tuple(
            NodeCost(node.index, node.op, node.name, node.macs, *costs)
            for node, *costs in zip(image.nodes, instructions, cycles, strict=True)
        ),
        toolchain=image.toolchain,
        flags=image.flags,
    )


def read_memory_plan(compile_report: Mapping[str, Any]) -> MemoryPlan:
    """Reads the memory plan from what the compiler reported."""
    nodes, peak = compile_report["nodes"], compile_report["peak_node"]
    names = {output["tensor"]: node["name"] for node in nodes for output in node["outputs"]}
    return MemoryPlan(
        arena_bytes=compile_report["arena_bytes"],
        bound_bytes=compile_report["arena_bound_bytes"],
        peak_node=f"Node {peak['index']} {peak['op']}" if peak else "The input",
        steps=("in", *(str(node["index"]) for node in nodes), "out"),
        buffers=tuple(
            Buffer(
                name=", ".join(names.get(t, f"input {t}") for t in buffer["tensors"]),
                offset=buffer["offset"],
                bytes=buffer["bytes"],
                first=buffer["first"] + 1,
                last=buffer["last"] + 1,
            )
            for buffer in compile_report["buffers"]
        ),
    )


def installed_versions() -> dict[str, str]:
    """Returns the versions of edgekiln, Python and the packages that took part."""
    versions = {"edgekiln": __version__, "Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _other_engines(subject: Subject) -> list[Runner]:
    """Returns the engines that users have on a PC, those of them that can run the model."""
    makers: list[Callable[[], Runner]] = []
    if litert_is_safe(run_passes(read_tflite(subject.tflite, subject.name))):
        makers += [
            lambda: LiteRTRunner(subject.tflite),
            lambda: LiteRTRunner(subject.tflite, reference=False),
        ]
    else:
        say("left out: LiteRT writes beyond the state of an SVDF that is not int16")
    if subject.onnx_int8 is not None:
        onnx_int8 = subject.onnx_int8
        makers.append(lambda: OnnxRunner(onnx_int8, label="int8"))
    engines = []
    for make in makers:
        try:
            engines.append(make())
        except (ToolMissingError, BadModelError) as error:
            say(f"left out: {error}")
    return engines


def litert_is_safe(graph: Graph) -> bool:
    """Tells whether LiteRT can run a model without damage to this process.

    Its quantized SVDF takes the state to be int16, and writes beyond one that is int8.
    """
    return not any(
        op.name == "SVDF" and any(graph.tensor(t).dtype is DType.INT8 for t in op.states(graph))
        for op in graph.ops
    )


def _run_on_host(engine: Runner, inputs: ModelInputs, device: Tensors) -> HostRun:
    outputs = engine.run(inputs.tensors)
    latency = measure_host_latency(
        engine, inputs.tensors, warmup=_LATENCY_WARMUP, repeats=_LATENCY_REPEATS
    )
    return HostRun(
        runner=engine.name,
        accuracy=_accuracy(outputs, inputs),
        agreement=agreement(outputs[0], device[0]),
        median_us=latency.median_us,
        p90_us=latency.p90_us,
    )


def _accuracy(outputs: Tensors, inputs: ModelInputs) -> float | None:
    return None if inputs.labels is None else top1_accuracy(outputs[0], inputs.labels)


def _confusion(outputs: Tensors, inputs: ModelInputs) -> Confusion | None:
    if inputs.labels is None:
        return None
    matrix = confusion_matrix(outputs[0], inputs.labels, len(inputs.class_names))
    return Confusion(inputs.class_names, tuple(tuple(row) for row in matrix.tolist()))


def _board_facts(board: Board, *, emulated: bool) -> BoardFacts:
    return BoardFacts(
        display_name=board.display_name,
        core=board.core,
        flash_bytes=board.flash_bytes,
        ram_bytes=board.ram_bytes,
        emulator=_version_of(board.emulator.program) if emulated and board.emulator else None,
    )


def _version_of(program: str) -> str:
    """Returns the name and version that a program tells, else its own name."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"([A-Za-z]+) emulator version (\S+)", done.stdout)
    return f"{found[1]} {found[2]}" if found else program
