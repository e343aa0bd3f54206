"""Outputs over inputs at the very distance that each kernel's proof allows, and one byte less.

Each case is a model with one operator. Its output is placed at the beginning of the arena, its
input exactly as far behind as the proof demands (or before it, for a kernel that runs
backwards), and everything else in the arena is poisoned before the run. The bytes must be those
of the numpy definition. One byte closer they must not be, somewhere: otherwise the test would
not see a proof that is too bold.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated import MACHINES, node_outputs
from numpy.typing import NDArray
from tflite_builder import BuiltOp, BuiltTensor, activation, build_model, constant

from edgekiln.bench.compiled import CompiledRunner
from edgekiln.export import compiler
from edgekiln.export.emit import emit_files
from edgekiln.export.emit.program import Program
from edgekiln.export.interpret import run_graph
from edgekiln.export.lower import reverse
from edgekiln.export.ops.base import Overlap
from edgekiln.export.plan import MemoryPlan

GENERATOR = np.random.default_rng(7)


def weights(shape: tuple[int, ...], channels: int, axis: int) -> BuiltTensor:
    values = GENERATOR.integers(-127, 128, shape).astype(np.int8)
    return constant(values, [0.002 + 0.0003 * i for i in range(channels)], axis)


def window_model(
    name: str,
    x: tuple[int, int, int],
    channels: int,
    size: tuple[int, int],
    stride: int,
    same: bool,
) -> bytes:
    """A convolution, depthwise convolution or pool over [1, H, W, C]."""
    height, width, depth = x
    y = [1, *(-(-n // stride) if same else (n - k) // stride + 1
              for n, k in zip((height, width), size, strict=True)), channels]  # fmt: skip
    tensors = [activation((1, *x), 0.05, -3), activation(y, 0.05, -3)]
    values: dict[str, Any] = {"Padding": 0 if same else 1, "StrideH": stride, "StrideW": stride}
    options, inputs = "Pool2DOptions", [0]
    if name == "CONV_2D":
        tensors.append(weights((channels, *size, depth), channels, 0))
        options, inputs = "Conv2DOptions", [0, 2]
    elif name == "DEPTHWISE_CONV_2D":
        tensors.append(weights((1, *size, channels), channels, 3))
        options, inputs = "DepthwiseConv2DOptions", [0, 2]
        values["DepthMultiplier"] = channels // depth
    else:
        values |= {"FilterHeight": size[0], "FilterWidth": size[1]}
    return build_model(tensors, [BuiltOp(name, inputs, [1], options, values)], [0], [1])


def simple_model(name: str, options: str = "", **values: Any) -> bytes:
    """An operator of one input, element by element or row by row."""
    y = (1 / 256, -128) if name in ("LOGISTIC", "SOFTMAX") else (0.03, 5)
    tensors = [activation((1, 6, 20), 0.05, -3), activation((1, 6, 20), *y)]
    return build_model(tensors, [BuiltOp(name, [0], [1], options, values)], [0], [1])


def mean_model() -> bytes:
    tensors = [activation((1, 5, 4, 6), 0.05, -3), constant(np.array([1, 2], np.int32)),
               activation((1, 6), 0.04, 2)]  # fmt: skip
    op = BuiltOp("MEAN", [0, 1], [2], "ReducerOptions")
    return build_model(tensors, [op], [0], [2])


def dense_model(rows: int, depth: int, channels: int) -> bytes:
    tensors = [activation((rows, depth), 0.05, -3), weights((channels, depth), channels, 0),
               activation((rows, channels), 0.05, 4)]  # fmt: skip
    op = BuiltOp("FULLY_CONNECTED", [0, 1], [2], "FullyConnectedOptions")
    return build_model(tensors, [op], [0], [2])


CASES = {
    "conv 3x3 same": window_model("CONV_2D", (7, 6, 4), 8, (3, 3), 1, True),
    "conv 3x3 same, fewer channels": window_model("CONV_2D", (7, 6, 8), 3, (3, 3), 1, True),
    "conv 3x3 stride 2": window_model("CONV_2D", (8, 9, 3), 16, (3, 3), 2, True),
    "conv 5x2 valid": window_model("CONV_2D", (9, 5, 4), 5, (5, 2), 1, False),
    "conv 1x1 wider": window_model("CONV_2D", (5, 5, 8), 16, (1, 1), 1, True),
    "conv 1x1 narrower": window_model("CONV_2D", (5, 5, 16), 8, (1, 1), 1, True),
    "conv 1x1 equal": window_model("CONV_2D", (5, 5, 8), 8, (1, 1), 1, True),
    "depthwise same": window_model("DEPTHWISE_CONV_2D", (7, 6, 8), 8, (3, 3), 1, True),
    "depthwise valid": window_model("DEPTHWISE_CONV_2D", (7, 6, 8), 8, (3, 3), 1, False),
    "depthwise stride 2": window_model("DEPTHWISE_CONV_2D", (8, 8, 4), 4, (3, 3), 2, True),
    "depthwise doubled": window_model("DEPTHWISE_CONV_2D", (6, 6, 4), 8, (3, 3), 1, True),
    "average pool": window_model("AVERAGE_POOL_2D", (6, 6, 5), 5, (2, 2), 2, True),
    "average pool same": window_model("AVERAGE_POOL_2D", (6, 6, 5), 5, (3, 3), 1, True),
    "max pool same": window_model("MAX_POOL_2D", (6, 6, 5), 5, (3, 3), 1, True),
    "dense rows": dense_model(6, 12, 8),
    "dense rows, wider": dense_model(6, 8, 12),
    "dense one row": dense_model(1, 40, 12),
    "relu": simple_model("RELU"),
    "logistic": simple_model("LOGISTIC"),
    "softmax": simple_model("SOFTMAX", "SoftmaxOptions", Beta=1.0),
    "mean": mean_model(),
}  # fmt: skip


# Other operators have no kernels of their own for cortex-m0plus; with NEON pools have some.
MULTIPLYING = [
    case
    for case in CASES
    if case.startswith(("conv", "depthwise", "dense")) and case != "depthwise doubled"
]
PLACED = [
    *((case, target) for case in CASES for target in ("host", "cortex-m4")),
    *((case, "cortex-m0plus") for case in MULTIPLYING),
    *(
        pytest.param(case, "aarch64", marks=pytest.mark.emulator)
        for case in [*MULTIPLYING, *(case for case in CASES if "pool" in case)]
    ),
]


def overlap_of(program: Program) -> Overlap:
    """Returns what the kernel promises for its only activation."""
    (node,) = program.nodes
    (tensor,) = program.graph.inputs
    apart = Overlap(program.graph.tensor(program.graph.outputs[0]).bytes)
    return node.overlap.get(tensor, apart)


def placed(program: Program, x: int, y: int) -> MemoryPlan:
    """A plan with the input and the output at these offsets, and working memory above."""
    (x_tensor,), (y_tensor,) = program.graph.inputs, program.graph.outputs
    sizes = {t: program.graph.tensor(t).bytes for t in (x_tensor, y_tensor)}
    top = max(x + sizes[x_tensor], y + sizes[y_tensor])
    scratch = {}
    for key, piece in enumerate(program.nodes[0].scratch):
        top = -(-top // 8) * 8
        scratch[0, key] = top
        top += piece.bytes
    starts = tuple(
        x if x_tensor in b.tensors else y if y_tensor in b.tensors else scratch[0, b.scratch]
        for b in program.plan.buffers
    )
    return replace(
        program.plan, starts=starts, arena_bytes=top, scratch=scratch,
        offsets={x_tensor: x, y_tensor: y},
    )  # fmt: skip


def run(program: Program, plan: MemoryPlan, x: NDArray[Any], directory: Path) -> NDArray[Any]:
    """Emits the program with another plan, compiles it and runs it."""
    moved = replace(program, plan=plan)
    (y,) = run_graph(program.graph, [x])
    files = emit_files(moved, {"input": x, "output": y})
    report = compiler._report(moved, files, 0, "arena")
    compiled = compiler.CompiledModel(files, report, program.graph)
    if program.target in MACHINES:
        MACHINES[program.target].require()
        directory.mkdir()
        return np.frombuffer(node_outputs(compiled, x[None], directory)[0], np.int8)
    compiler.write_bundle(compiled, directory)
    return CompiledRunner(directory).run((x[None],))[0].reshape(-1)


def make(case: str, target: str) -> tuple[Program, NDArray[Any], NDArray[Any]]:
    program = compiler.plan_model(CASES[case], name="m", target=target, optimize="time")
    shape = program.graph.tensor(program.graph.inputs[0]).shape
    x = np.random.default_rng(3).integers(-128, 128, shape).astype(np.int8)
    return program, x, run_graph(program.graph, [x])[0].reshape(-1)


def forwards(program: Program) -> Program:
    (node,) = program.nodes
    calls = tuple(
        replace(c, scalars={**c.scalars, "reverse": 0}) if "reverse" in c.scalars else c
        for c in node.calls
    )
    return replace(program, nodes=(replace(node, calls=calls),))


@pytest.mark.parametrize(("case", "target"), PLACED)
def test_the_output_may_begin_as_close_before_the_input(
    case: str, target: str, tmp_path: Path
) -> None:
    program, x, want = make(case, target)
    program = forwards(program)
    distance = overlap_of(program).before
    np.testing.assert_array_equal(run(program, placed(program, distance, 0), x, tmp_path / "c"),
                                  want)  # fmt: skip


@pytest.mark.parametrize(("case", "target"), PLACED)
def test_the_output_may_begin_as_close_after_the_input(
    case: str, target: str, tmp_path: Path
) -> None:
    program, x, want = make(case, target)
    distance = overlap_of(program).after
    if distance is None:
        return  # a kernel that does not run backwards promises nothing
    program = replace(program, nodes=(reverse(program.nodes[0]),))
    np.testing.assert_array_equal(run(program, placed(program, 0, distance), x, tmp_path / "c"),
                                  want)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "target"),
    [
        ("conv 3x3 same", "host"),
        ("conv 1x1 wider", "host"),
        ("conv 1x1 wider", "cortex-m4"),
        ("depthwise same", "host"),
        ("depthwise same", "cortex-m4"),
        ("conv 1x1 wider", "cortex-m0plus"),
        ("depthwise same", "cortex-m0plus"),
        pytest.param("conv 1x1 wider", "aarch64", marks=pytest.mark.emulator),
        pytest.param("depthwise same", "aarch64", marks=pytest.mark.emulator),
        ("average pool same", "host"),
        ("max pool same", "host"),
        pytest.param("average pool same", "aarch64", marks=pytest.mark.emulator),
        pytest.param("max pool same", "aarch64", marks=pytest.mark.emulator),
    ],
)
def test_one_byte_closer_is_too_close(case: str, target: str, tmp_path: Path) -> None:
    program, x, want = make(case, target)
    program = forwards(program)
    distance = overlap_of(program).before
    assert distance > 0
    got = run(program, placed(program, distance - 1, 0), x, tmp_path / "c")
    assert not np.array_equal(got, want)
