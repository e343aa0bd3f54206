"""The target avr: generated C on a core where int has 16 bits and constants lie in flash."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from avr import Case, require_avr, run_cases
from everywhere import random_values

from edgekiln.errors import EdgekilnError, UnsupportedOpError
from edgekiln.export.compiler import compile_model, plan_model
from edgekiln.export.interpret import run_graph

SAMPLES = 3
GROUP = 20


def operator_models(root: Path) -> dict[str, bytes]:
    with tarfile.open(root / "tests/golden/operators.tar.xz") as archive:
        members = [m for m in archive.getmembers() if m.name.endswith(".tflite")]
        return {m.name.removesuffix(".tflite"): _read(archive, m) for m in members}


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert isinstance(stream, io.BufferedReader)
    return stream.read()


def make_case(name: str, data: bytes, optimize: str = "balanced") -> Case:
    """Random inputs, the smallest and the largest codes."""
    compiled = compile_model(data, name=name, target="avr", optimize=optimize)
    generator = np.random.default_rng(7)
    inputs = []
    for index in compiled.graph.inputs:
        tensor = compiled.graph.tensor(index)
        dtype = np.dtype(tensor.dtype.value)
        rows = [random_values(generator, tensor.shape, dtype) for _ in range(SAMPLES)]
        if dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            rows += [np.full(tensor.shape, end, dtype) for end in (bounds.min, bounds.max)]
        else:
            rows += [np.full(tensor.shape, end, dtype) for end in (0, 1)]
        inputs.append(np.stack(rows))
    return Case(name, compiled, tuple(inputs))


def defined_outputs(case: Case) -> bytes:
    """The outputs by numpy, as they come over the line."""
    found = b""
    for sample in range(case.samples):
        outputs = run_graph(case.compiled.graph, [values[sample] for values in case.inputs])
        found += b"".join(np.ascontiguousarray(output).tobytes() for output in outputs)
    return found


def fits(data: bytes) -> bool:
    """Whether a model is one that an ATmega2560 can hold, with others beside it."""
    try:
        program = plan_model(data, name="m")
    except EdgekilnError:
        return False
    return program.plan.arena_bytes <= 5000


def has_float(name: str, data: bytes) -> bool:
    graph = plan_model(data, name="m", where=name).graph
    used = {t for op in graph.ops for t in (*op.inputs, *op.outputs) if t >= 0}
    return any(graph.tensor(t).dtype.value == "float32" for t in used)


@pytest.mark.emulator
@pytest.mark.slow
def test_every_integer_operator_gives_the_defined_bytes(root: Path, tmp_path: Path) -> None:
    require_avr()
    cases = []
    for number, (name, data) in enumerate(sorted(operator_models(root).items())):
        if fits(data) and not has_float(name, data):
            cases.append(make_case(f"m{number}", data))
    assert len(cases) > 100
    for first in range(0, len(cases), GROUP):
        group = cases[first : first + GROUP]
        directory = tmp_path / str(first)
        directory.mkdir()
        for case, got in zip(group, run_cases(group, directory), strict=True):
            ops = [op.name for op in case.compiled.graph.ops]
            assert got == defined_outputs(case), (case.name, ops)


def test_a_model_that_computes_in_float32_is_refused(root: Path) -> None:
    data = operator_models(root)["softmax-float32"]
    message = (
        "node 0 SOFTMAX: softmax_f32 computes in float32, which avr does without; hint|quantize"
    )
    with pytest.raises(UnsupportedOpError, match=message):
        compile_model(data, name="m", target="avr")


def test_a_table_beyond_the_c_compiler_is_refused(root: Path) -> None:
    data = operator_models(root)["abs-int16"]
    with pytest.raises(UnsupportedOpError, match=r"node 0 ABS: .* 131,072 bytes; allowed: at most"):
        compile_model(data, name="m", target="avr")
    compile_model(data, name="m", target="generic")
