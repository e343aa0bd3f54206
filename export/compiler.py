"""The compiler: a .tflite file becomes C that needs no interpreter.

::

    read_tflite -> passes -> plan memory -> select kernels -> emit C
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln import __version__
from edgekiln.errors import BadInputError
from edgekiln.export.emit import emit_files
from edgekiln.export.emit.program import Program
from edgekiln.export.emit.tables import Tables
from edgekiln.export.interpret import run_graph
from edgekiln.export.ir import Graph, Tensor
from edgekiln.export.lower import Node, lower_graph, reverse
from edgekiln.export.passes import run_passes
from edgekiln.export.passes.widen_int4 import widen_int4
from edgekiln.export.plan import MemoryPlan, alias_roots, plan_memory
from edgekiln.export.targets import Target, find_target
from edgekiln.export.tflite_reader import read_tflite
from edgekiln.files import new_directory, sha256_bytes, write_json, write_text

Array = NDArray[Any]

OPTIMIZE = ("balanced", "time", "ram", "flash")
IO = ("arena", "separate")
REPORT_NAME = "compile_report.json"

# C and C++ alike, for the generated files compile as both.
# fmt: off
_C_KEYWORDS = frozenset({
    "auto", "bool", "break", "case", "catch", "char", "class", "const", "continue", "default",
    "delete", "do", "double", "else", "enum", "extern", "float", "for", "friend", "goto", "if",
    "inline", "int", "long", "namespace", "new", "operator", "private", "protected", "public",
    "register", "restrict", "return", "short", "signed", "sizeof", "static", "struct", "switch",
    "template", "this", "throw", "try", "typedef", "union", "unsigned", "using", "virtual",
    "void", "volatile", "while",
})
# fmt: on


@dataclass(frozen=True)
class CompiledModel:
    """The result of a compilation.

    Attributes:
        files: Text of each file of the bundle, by name.
        report: What ``compile_report.json`` holds.
        graph: The graph after all passes.
    """

    files: dict[str, str]
    report: dict[str, Any]
    graph: Graph


def c_name_of(path: Path) -> str:
    """Derives a C identifier from a file's name."""
    name = re.sub(r"\W+", "_", path.name.split(".")[0], flags=re.ASCII).strip("_").lower()
    name = name or "model"
    return f"model_{name}" if name[0].isdigit() or name in _C_KEYWORDS else name


def compile_model(
    data: bytes,
    *,
    name: str,
    target: str = "generic",
    optimize: str = "balanced",
    io: str = "arena",
    golden_input: Sequence[Array] | Array | None = None,
    where: str = "",
) -> CompiledModel:
    """Compiles a model.

    Args:
        data: The .tflite file.
        name: Prefix of all C names: a lower-case C identifier.
        target: One of `edgekiln.export.targets.TARGETS`.
        optimize: One of `OPTIMIZE`.
        io: "arena" when inputs and outputs lie in the arena, "separate" when the caller
            passes buffers for them.
        golden_input: int8 values of the model's input (or one per input) for the golden
            pair; random codes by default.
        where: The file's name, for messages.

    Raises:
        BadInputError: An option is wrong.
        BadModelError: The model is damaged or contradicts itself.
        UnsupportedOpError: The model holds what the compiler lacks.
    """
    program = plan_model(data, name=name, target=target, optimize=optimize, io=io, where=where)
    files = emit_files(program, _golden_pair(program, golden_input))
    return CompiledModel(files, _report(program, files, len(data), io), program.graph)


def plan_model(
    data: bytes,
    *,
    name: str,
    target: str = "generic",
    optimize: str = "balanced",
    io: str = "arena",
    where: str = "",
) -> Program:
    """Does all of a compilation but the writing of C. Arguments and errors as `compile_model`."""
    _check_options(name, optimize, io)
    chosen = find_target(target)
    graph = run_passes(read_tflite(data, where or name))
    if chosen.has_room:
        graph = widen_int4(graph)
    outside = (*graph.inputs, *graph.outputs) if io == "separate" else ()
    root = alias_roots(graph, outside)
    nodes, plan = _lower_and_plan(graph, chosen, root, outside, optimize)
    return Program(
        name=name,
        graph=graph,
        nodes=tuple(reverse(n) if i in plan.backwards else n for i, n in enumerate(nodes)),
        plan=plan,
        root=root,
        target=target,
        optimize=optimize,
        separate_io=io == "separate",
        sha256=sha256_bytes(data),
        macs=sum(op.macs(graph) for op in graph.ops),
    )


def _lower_and_plan(
    graph: Graph,
    target: Target,
    root: Mapping[int, int],
    outside: Sequence[int],
    optimize: str,
) -> tuple[tuple[Node, ...], MemoryPlan]:
    """Selects kernels and plans memory.

    For the least RAM the node that decides the arena's size takes the kernel that needs the
    least memory, whatever it costs, as long as that makes the arena smaller.
    """
    nodes = lower_graph(graph, target, root, optimize)
    plan = plan_memory(graph, root, nodes, outside)
    frugal = {plan.peak}
    while optimize == "ram":
        other_nodes = lower_graph(graph, target, root, optimize, frugal)
        other = plan_memory(graph, root, other_nodes, outside)
        if other.arena_bytes < plan.arena_bytes:
            nodes, plan = other_nodes, other
        elif other.peak in frugal:
            break
        frugal.add(other.peak)
    return nodes, plan


def write_bundle(compiled: CompiledModel, directory: Path) -> None:
    """Writes the bundle and its report; the directory is replaced whole.

    Raises:
        BadInputError: The directory holds something else than a bundle, or cannot be written.
    """
    with bundle_directory(directory) as new:
        for file_name, text in compiled.files.items():
            write_text(new / file_name, text)
        write_json(new / REPORT_NAME, compiled.report)


@contextlib.contextmanager
def bundle_directory(directory: Path) -> Iterator[Path]:
    """Yields an empty directory for a bundle and its report, which replaces an older one.

    Raises:
        BadInputError: The directory holds something else than a bundle, or cannot be written.
    """
    if directory.exists() and not (directory / REPORT_NAME).exists():
        if not directory.is_dir():
            raise BadInputError("is a file, a directory is needed", where=directory)
        if any(directory.iterdir()):
            raise BadInputError(
                "the directory holds other files",
                where=directory,
                hint="name a new or empty directory",
            )
    with new_directory(directory) as new:
        yield new


def _check_options(name: str, optimize: str, io: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in _C_KEYWORDS:
        raise BadInputError(
            "not a name for C code",
            where="--name",
            got=repr(name),
            allowed="lower-case letters, digits and _, a letter first",
        )
    if optimize not in OPTIMIZE:
        raise BadInputError(
            "unknown goal", where="--optimize", got=optimize, allowed=", ".join(OPTIMIZE)
        )
    if io not in IO:
        raise BadInputError("unknown form", where="--io", got=io, allowed=", ".join(IO))


def _golden_pair(
    program: Program, golden_input: Sequence[Array] | Array | None
) -> dict[str, Array]:
    graph = program.graph
    tensors = [graph.tensor(index) for index in graph.inputs]
    if golden_input is None:
        generator = np.random.default_rng(0)
        inputs = [_random_value(generator, tensor) for tensor in tensors]
    else:
        given = [golden_input] if isinstance(golden_input, np.ndarray) else list(golden_input)
        inputs = [_shaped(value, tensor) for value, tensor in zip(given, tensors, strict=False)]
    outputs = run_graph(graph, inputs)
    return dict(zip([name for name, _ in program.io()], [*inputs, *outputs], strict=True))


def _random_value(generator: np.random.Generator, tensor: Tensor) -> Array:
    dtype = np.dtype(tensor.dtype.value)
    if dtype.kind == "f":
        return generator.standard_normal(tensor.shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, tensor.shape).astype(dtype)
    bounds = np.iinfo(dtype)
    return generator.integers(bounds.min, bounds.max, tensor.shape, dtype, endpoint=True)


def _shaped(value: Array, tensor: Tensor) -> Array:
    return value.reshape(tensor.shape) if value.size == tensor.elements else value


def _report(program: Program, files: dict[str, str], model_bytes: int, io: str) -> dict[str, Any]:
    graph, plan = program.graph, program.plan
    outside_bytes = sum(t.bytes for _, t in program.io()) if program.separate_io else 0
    inputs = len(graph.inputs)
    described = [_describe_io(program, tensor) for _, tensor in program.io()]
    peak = graph.ops[max(plan.peak, 0)] if graph.ops else None
    return {
        "edgekiln": __version__,
        "name": program.name,
        "target": program.target,
        "optimize": program.optimize,
        "io": io,
        "model_sha256": program.sha256,
        "model_bytes": model_bytes,
        "arena_bytes": plan.arena_bytes + outside_bytes,
        "arena_bound_bytes": plan.bound_bytes + outside_bytes,
        "live_set_bytes": plan.live_set_bytes + outside_bytes,
        "state_bytes": program.state_bytes,
        "peak_node": {"index": peak.index, "op": peak.name} if peak else None,
        "constants_bytes": Tables(program).bytes,
        "macs": program.macs,
        "inputs": described[:inputs],
        "outputs": described[inputs:],
        "nodes": [
            {
                "index": node.op.index,
                "op": node.op.name,
                "name": graph.tensor((node.op.outputs or node.op.states(graph))[0]).name,
                "macs": node.op.macs(graph),
                "kernel": node.kernel or None,
                "constants_bytes": sum(
                    array.nbytes for call in node.calls for array in call.arrays.values()
                ),
                "outputs": [
                    {
                        "tensor": t,
                        "shape": list(graph.tensor(t).shape),
                        "offset": plan.offsets.get(t),
                        "bytes": graph.tensor(t).bytes,
                    }
                    for t in node.op.outputs
                ],
            }
            for node in program.nodes
        ],
        "buffers": [
            {
                "tensors": list(b.tensors),
                "offset": start,
                "bytes": b.bytes,
                "first": b.first,
                "last": b.last,
            }
            for b, start in zip(plan.buffers, plan.starts, strict=True)
        ],
        "files": {name: sha256_bytes(text.encode()) for name, text in sorted(files.items())},
    }


def _describe_io(program: Program, tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype.value,
        "scale": None if tensor.quantization is None else tensor.q.scale,
        "zero_point": None if tensor.quantization is None else tensor.q.zero_point,
        "bytes": tensor.bytes,
        "offset": program.plan.offsets.get(tensor.index),
    }
