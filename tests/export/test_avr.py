"""The target avr: generated C on a core where int has 16 bits and constants lie in flash."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from avr import Case, require_avr, run_cases
from everywhere import random_values
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.errors import EdgekilnError, UnsupportedOpError
from edgekiln.export.compiler import OPTIMIZE, compile_model, plan_model
from edgekiln.export.interpret import run_graph
from edgekiln.export.ops.registry import OPS

SAMPLES = 3
GROUP = 14


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


# ---- models for what the golden ones lack, or have with too many elements for an AVR ----


def tensor(dtype: str, scale: float, shape: tuple[int, ...] = (1, 200)) -> BuiltTensor:
    if dtype in ("BOOL", "INT32", "INT64"):
        return BuiltTensor(shape, dtype)
    return BuiltTensor(shape, dtype, (scale,), (0,))


def one_op(name: str, inputs: Sequence[BuiltTensor], y: BuiltTensor, **values: Any) -> bytes:
    words = "".join(word.capitalize() for word in name.split("_"))
    kind = "" if name in ("LOGISTIC", "TANH", "RELU", "RELU6") else f"{words}Options"
    count = len(inputs)
    op = BuiltOp(name, list(range(count)), [count], kind, values)
    return build_model([*inputs, y], [op], list(range(count)), [count])


def functions_of_int16() -> Iterator[bytes]:
    for name, scale in (("ABS", 0.0009), ("RELU", 0.0009), ("RELU6", 0.0009)):
        yield one_op(name, [tensor("INT16", 0.0009)], tensor("INT16", scale))
    for name in ("LOGISTIC", "TANH"):
        for scale in (2.0**-12, 0.0007):
            yield one_op(name, [tensor("INT16", scale)], tensor("INT16", 2.0**-15))
    pair = [tensor("INT16", 0.0021), tensor("INT16", 0.0008)]
    for name in ("ADD", "SUB", "MUL", "SQUARED_DIFFERENCE"):
        yield one_op(name, pair, tensor("INT16", 0.003))
    axis = BuiltTensor((1,), "INT32", data=np.array([1], np.int32))
    tensors = [tensor("INT16", 0.001, (1, 7, 9)), axis, BuiltTensor((1, 9), "INT32")]
    op = BuiltOp("ARG_MAX", [0, 1], [2], "ArgMaxOptions", {"OutputType": 2})
    yield build_model(tensors, [op], [0], [2])
    yield one_op("LEAKY_RELU", [tensor("INT16", 0.001)], tensor("INT16", 0.0009), Alpha=0.3)


def changes_of_type() -> Iterator[bytes]:
    pairs = (("INT8", "INT16"), ("INT16", "INT32"), ("INT32", "INT16"), ("INT32", "INT8"))
    for x, y in pairs:
        ends = [BuiltTensor((1, 64), kind, (0.03,), (0,)) for kind in (x, y)]
        yield one_op("QUANTIZE", ends[:1], ends[1])
    for x in ("INT8", "INT16", "INT32", "BOOL"):
        for y in ("INT8", "INT16", "INT32"):
            yield one_op("CAST", [tensor(x, 1.0)], tensor(y, 1.0))
    wide = BuiltTensor((1, 2, 10), "INT16", (1 / 65536,), (-32768,))
    yield one_op("SOFTMAX", [tensor("INT8", 0.1, (1, 2, 10))], wide, Beta=1.0)
    for kind in ("INT8", "INT16", "INT32", "INT64", "BOOL"):
        values = [tensor("BOOL", 1.0), tensor(kind, 0.1), tensor(kind, 0.1)]
        op = BuiltOp("SELECT_V2", [0, 1, 2], [3], "SelectV2Options")
        yield build_model([*values, tensor(kind, 0.1)], [op], [0, 1, 2], [3])


def layer(
    name: str,
    x: tuple[int, ...],
    w: tuple[int, ...],
    zero: int,
    *,
    int4: bool = False,
    left: tuple[float, int] = (1.0, 1),
    **values: Any,
) -> bytes:
    """A layer with random weights; "SAME" padding, a channel's scale of its own.

    ``left``: the share of weights that are not pruned, and how many of them go together.
    """
    generator = np.random.default_rng(5)
    axis = 3 if name == "DEPTHWISE_CONV_2D" else 0
    channels = w[axis]
    limit = 8 if int4 else 128
    codes = generator.integers(-limit, limit, w).astype(np.int8)
    density, block = left
    codes = codes * np.repeat(generator.random(codes.size // block) < density, block).reshape(w)
    bias = generator.integers(-500, 500, channels).astype(np.int32)
    scales = generator.uniform(0.02, 0.1, channels).tolist()
    zeros = (0,) * channels
    y = (1, channels) if name == "FULLY_CONNECTED" else (1, *x[1:3], channels)
    flat = codes.reshape(-1).astype(np.uint8) & 15
    data = flat[0::2] | flat[1::2] << 4 if int4 else codes
    tensors = [
        BuiltTensor(x, "INT8", (0.05,), (zero,)),
        BuiltTensor(w, "INT4" if int4 else "INT8", scales, zeros, axis, data),
        BuiltTensor((channels,), "INT32", [0.05 * s for s in scales], zeros, 0, bias),
        BuiltTensor(y, "INT8", (2.0,), (3,)),
    ]
    if name != "FULLY_CONNECTED":
        values |= {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}
    kind = {"CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D"}.get(name, "FullyConnected")
    op = BuiltOp(name, [0, 1, 2], [3], f"{kind}Options", values)
    return build_model(tensors, [op], [0], [3])


def layers() -> Iterator[bytes]:
    for zero in (-128, 0, 9, 127):
        yield layer("FULLY_CONNECTED", (1, 300), (5, 300), zero)
        yield layer("CONV_2D", (1, 5, 6, 8), (4, 3, 3, 8), zero)
        yield layer("CONV_2D", (1, 5, 6, 8), (6, 3, 3, 4), zero)
        yield layer("DEPTHWISE_CONV_2D", (1, 5, 6, 3), (1, 3, 3, 6), zero, DepthMultiplier=2)
        for left in ((0.1, 1), (0.1, 4)):
            yield layer("FULLY_CONNECTED", (1, 400), (5, 400), zero, left=left)
            yield layer("CONV_2D", (1, 5, 6, 8), (24, 3, 3, 8), zero, left=left)
        yield layer("FULLY_CONNECTED", (1, 60), (6, 60), zero, int4=True)
        yield layer("CONV_2D", (1, 5, 6, 8), (4, 3, 3, 8), zero, int4=True)
        yield layer(
            "DEPTHWISE_CONV_2D", (1, 5, 6, 4), (1, 3, 3, 4), zero, int4=True, DepthMultiplier=1
        )


def check_all(cases: Sequence[Case], directory: Path, *flags: str) -> None:
    for first in range(0, len(cases), GROUP):
        group = cases[first : first + GROUP]
        place = directory / str(first)
        place.mkdir()
        for case, got in zip(group, run_cases(group, place, *flags), strict=True):
            ops = [op.name for op in case.compiled.graph.ops]
            assert got == defined_outputs(case), (case.name, ops)


def integer_kernels() -> set[str]:
    """The names of all kernels that any target can run, but those for float32 alone."""
    generic = {k.name for op in OPS.values() for k in op.kernels if not k.features}
    return {name for name in generic if not name.endswith(("_f32", "dequantize"))}


#: Of operators on variables; its C is that of CONCATENATION where rows are copied.
VARIABLES = "copy_rows"


@pytest.mark.emulator
@pytest.mark.slow
def test_every_integer_kernel_gives_the_defined_bytes(root: Path, tmp_path: Path) -> None:
    require_avr()
    models = [
        data
        for name, data in sorted(operator_models(root).items())
        if fits(data) and not has_float(name, data)
    ]
    assert len(models) > 100
    models += [*functions_of_int16(), *changes_of_type(), *layers()]
    cases = [make_case(f"m{number}", data) for number, data in enumerate(models)]
    check_all(cases, tmp_path)
    run = {node["kernel"] for case in cases for node in case.compiled.report["nodes"]}
    assert integer_kernels() - run == {VARIABLES}


@pytest.mark.emulator
@pytest.mark.parametrize("optimize", OPTIMIZE)
def test_every_goal_gives_the_same_bytes(root: Path, tmp_path: Path, optimize: str) -> None:
    require_avr()
    data = (root / "tests/golden/digits_mlp_int8.tflite").read_bytes()
    check_all([make_case("mlp", data, optimize)], tmp_path)


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
