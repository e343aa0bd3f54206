"""Finds the first node at which two runs of one inference part.

Four things are held against each other: the oracle, the numpy definitions, the generated C on
this machine, and the board. The first three show every node's output. A board shows the
model's outputs alone: where only the board differs, the model is cut off after one node after
another, the bundle built and run anew, until the first node is found whose output differs.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.bench.runners import CompiledRunner, LiteRTRunner, Tensors, TflmRunner
from edgekiln.errors import BadInputError, BadModelError
from edgekiln.export.interpret import run_all_nodes
from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Op, Tolerance, accumulated_tolerance

TFLM = "tflm"
LITERT = "litert BUILTIN_REF"

Oracle = TflmRunner | LiteRTRunner

RunOutputs = Callable[[bytes, Tensors], Tensors]
"""Compiles a model file, runs it, and returns its outputs."""


@dataclass(frozen=True)
class Mismatch:
    """Where two runs of one inference part.

    Attributes:
        node: The node's number in the model file.
        op: Its operator.
        name: The name of the tensor that differs.
        output: Which of the node's outputs it is.
        index: Position of the first difference, in elements of the flat array.
        got: The value there; as text where it is not finite.
        want: The oracle's value.
        differing: How many elements differ.
        elements: How many there are.
        engine: Who computed ``got``: "numpy", "c" (on the host) or the board's slug.
        sample: Which of the inputs shows it.
    """

    node: int
    op: str
    name: str
    output: int
    index: int
    got: int | float | str
    want: int | float | str
    differing: int
    elements: int
    engine: str
    sample: int


def load_oracle(model: bytes, *, preserve_nodes: bool = False) -> tuple[Oracle, str]:
    """Returns the engine whose bytes are right for a model, and its short name.

    Args:
        model: A .tflite file's bytes.
        preserve_nodes: Keep every tensor.

    Returns:
        TensorFlow Lite Micro; LiteRT's reference kernels where the former lacks an operator
        or a variant of one.

    Raises:
        ToolMissingError: The oracle is not installed.
        BadModelError: Neither engine runs the model.
    """
    try:
        runner = TflmRunner(model, preserve_nodes=preserve_nodes)
        runner.run(_zeros(runner))
    except BadInputError as reason:
        try:
            return LiteRTRunner(model, preserve_nodes=preserve_nodes), LITERT
        except BadInputError as other:
            raise BadModelError(f"no oracle runs this model: {reason}; {other}") from None
    return runner, TFLM


def _zeros(runner: TflmRunner) -> Tensors:
    """Returns one inference's inputs: some kernels refuse a type only when they run."""
    return tuple(np.zeros((1, *spec.batch_shape), spec.dtype) for spec in runner.inputs)


def differs(
    got: NDArray[Any], want: NDArray[Any], tolerance: Tolerance | None
) -> NDArray[np.bool_]:
    """Tells for each element whether it is wrong.

    Integers have to be equal. Real numbers may differ by the tolerance, whose relative part
    refers to the largest magnitude of the whole array: what sums cancel to is no measure.
    """
    if want.dtype.kind != "f" or tolerance is None:
        return np.asarray(got != want)
    finite = np.abs(want[np.isfinite(want)])
    largest = float(finite.max(initial=0.0))
    allowed = tolerance.absolute + tolerance.relative * largest
    same = np.isclose(got, want, rtol=0.0, atol=allowed, equal_nan=True)
    return np.asarray(~same)


def find_first_mismatch(
    model: bytes,
    graph: Graph,
    bundle: Path,
    inputs: Tensors,
    sample: int = 0,
    flags: Sequence[str] = (),
) -> Mismatch | None:
    """Compares all nodes of one inference on the oracle, by numpy and by the C on the host.

    Args:
        model: The .tflite file's bytes.
        graph: The compiled graph.
        bundle: The generated C.
        inputs: One array ``[1, ...]`` per model input.
        sample: The number to report.
        flags: Compiler flags to add.

    Returns:
        The first difference in running order; None when all nodes agree.

    Raises:
        ToolMissingError: The oracle or a C compiler is not installed.
    """
    oracle = _oracle_nodes(model, graph, inputs)
    shaped = [
        array.reshape(graph.tensor(t).shape) for array, t in zip(inputs, graph.inputs, strict=True)
    ]
    defined = run_all_nodes(graph, shaped)
    ran = _c_nodes(graph, CompiledRunner(bundle, record_nodes=True, flags=flags), inputs)
    for position, op in enumerate(graph.ops):
        tolerance = accumulated_tolerance(graph.ops[: position + 1])
        for number, tensor in enumerate(op.outputs):
            for engine, values in (("numpy", defined), ("c", ran)):
                if tensor in values:
                    found = _compare(
                        graph, op, number, values[tensor], oracle[tensor], tolerance, engine, sample
                    )
                    if found is not None:
                        return found
    return None


def find_on_board(
    model: bytes, graph: Graph, run: RunOutputs, inputs: Tensors, board: str, sample: int = 0
) -> Mismatch | None:
    """Finds the first node that a board computes otherwise than the oracle.

    The model is cut off after a node and run; the node is found by halving, so that it is the
    first one unless a difference vanishes on the way.

    Args:
        model: The .tflite file's bytes.
        graph: The compiled graph.
        run: Compiles a model for the board and runs it there.
        inputs: One array ``[1, ...]`` per model input.
        board: Its slug.
        sample: The number to report.

    Returns:
        The difference; None when the cut models agree with the oracle.
    """
    oracle = _oracle_nodes(model, graph, inputs)
    ops = [op for op in graph.ops if op.outputs]

    def examine(position: int) -> Mismatch | None:
        op = ops[position]
        (got, *_) = run(cut_after(model, op.outputs[0]), inputs)
        tolerance = accumulated_tolerance(graph.ops)
        return _compare(graph, op, 0, got, oracle[op.outputs[0]], tolerance, board, sample)

    low, high = 0, len(ops) - 1
    found = examine(high) if ops else None
    while found is not None and low < high:
        middle = (low + high) // 2
        earlier = examine(middle)
        if earlier is None:
            low = middle + 1
        else:
            found, high = earlier, middle
    return found


def find_in_outputs(
    graph: Graph, want: Tensors, got: Tensors, sample: int, engine: str
) -> Mismatch | None:
    """Names a difference in the model's outputs by the nodes that write them."""
    tolerance = accumulated_tolerance(graph.ops)
    for tensor, a, b in zip(graph.outputs, want, got, strict=True):
        for op in graph.ops:
            if tensor in op.outputs:
                number = op.outputs.index(tensor)
                found = _compare(graph, op, number, b[sample], a[sample], tolerance, engine, sample)
                if found is not None:
                    return found
    return None


def cut_after(model: bytes, tensor: int) -> bytes:
    """Returns a model whose only output is one of its tensors."""
    import tflite

    table = tflite.Model.GetRootAs(model, 0).Subgraphs(0)._tab
    outputs = table.Vector(table.Offset(8))  # SubGraph.outputs
    changed = bytearray(model)
    struct.pack_into("<Ii", changed, outputs - 4, 1, tensor)
    return bytes(changed)


def _oracle_nodes(model: bytes, graph: Graph, inputs: Tensors) -> dict[int, NDArray[Any]]:
    oracle, _ = load_oracle(model, preserve_nodes=True)
    return oracle.node_tensors(inputs, [tensor for op in graph.ops for tensor in op.outputs])


def _c_nodes(graph: Graph, runner: CompiledRunner, inputs: Tensors) -> dict[int, NDArray[Any]]:
    """Runs the C on this machine and returns what each node wrote, by tensor index."""
    recorded = runner.node_outputs(inputs)
    outputs = {op.index: op.outputs for op in graph.ops}
    found = {}
    for index, group in itertools.groupby(recorded, key=lambda each: each[0]):
        for tensor, (_, raw) in zip(outputs[index], group, strict=False):
            found[tensor] = np.frombuffer(raw, np.dtype(graph.tensor(tensor).dtype.value))
    return found


def _compare(
    graph: Graph,
    op: Op,
    output: int,
    got: NDArray[Any],
    want: NDArray[Any],
    tolerance: Tolerance,
    engine: str,
    sample: int,
) -> Mismatch | None:
    got, want = got.reshape(-1), want.reshape(-1)
    wrong = differs(got, want, tolerance)
    if not wrong.any():
        return None
    index = int(np.argmax(wrong))
    return Mismatch(
        node=op.index,
        op=op.name,
        name=graph.tensor(op.outputs[output]).name,
        output=output,
        index=index,
        got=_plain(got[index]),
        want=_plain(want[index]),
        differing=int(wrong.sum()),
        elements=wrong.size,
        engine=engine,
        sample=sample,
    )


def _plain(value: Any) -> int | float | str:
    found: int | float = value.item()
    return found if math.isfinite(found) else str(found)


def describe(found: Mismatch) -> Sequence[tuple[str, str]]:
    """Returns a difference as lines for people: what, and what of it."""
    engines = {"numpy": "edgekiln's numpy definition", "c": "the generated C on this machine"}
    return (
        ("first node that differs", f"{found.node} {found.op}"),
        ("tensor", found.name + (f", output {found.output} of it" if found.output else "")),
        ("computed by", engines.get(found.engine, found.engine)),
        ("input", f"sample {found.sample}"),
        ("values that differ", f"{found.differing:,} of {found.elements:,}"),
        ("first of them", f"index {found.index}"),
        ("got", f"{found.got}"),
        ("want", f"{found.want}"),
    )
