"""Selects a kernel for every node and turns nodes into kernel calls."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from edgekiln.errors import UnsupportedOpError
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Kernel, KernelCall, Op, Overlap, Scratch
from edgekiln.export.targets import Target


@dataclass(frozen=True)
class Node:
    """An operator with the kernel chosen for it.

    Attributes:
        op: The operator.
        kernel: Name of the kernel; "" when nothing needs to run.
        calls: What runs, in order.
        overlap: How the output may lie over each input tensor.
    """

    op: Op
    kernel: str
    calls: tuple[KernelCall, ...]
    overlap: Mapping[int, Overlap]

    @property
    def scratch(self) -> tuple[Scratch, ...]:
        """The working memory of all its calls."""
        return tuple(scratch for call in self.calls for scratch in call.scratch)


_WEIGHT_OF_CONSTANTS = {"time": 0.0, "balanced": 1.0, "ram": 1.0, "flash": 8.0}
"""What a percent less of constants is worth, by goal, in percents of instructions."""


def select_kernel(
    op: Op, graph: Graph, target: Target, optimize: str = "balanced", frugal: bool = False
) -> Kernel:
    """Returns the best kernel among those the target can run.

    That is the one with the lowest product of its estimated instructions and a power of its
    constants' bytes. Most of an operator's kernels have the same constants, so that the
    instructions decide; those for pruned weights have fewer.

    Args:
        op: The operator.
        graph: Its graph.
        target: The processor.
        optimize: The goal, one of `edgekiln.export.compiler.OPTIMIZE`.
        frugal: Prefer the kernel that takes the least memory beside the tensors.

    Raises:
        UnsupportedOpError: There is none.
    """
    usable = [k for k in op.kernels if k.features <= target.features and k.accepts(op, graph)]
    if not usable:
        raise UnsupportedOpError(
            "no kernel for this target", where=op.where(graph), got=target.name
        )
    weight = 0.0 if target.has_room else _WEIGHT_OF_CONSTANTS[optimize]

    def price(kernel: Kernel) -> float:
        constants = max(kernel.constants(op, graph), 1.0) if weight else 1.0
        return math.log(max(kernel.cost(op, graph), 1.0)) + weight * math.log(constants)

    if frugal:
        return min(usable, key=lambda k: (_extra_bytes(k, op, graph), price(k)))
    return min(usable, key=price)


def _extra_bytes(kernel: Kernel, op: Op, graph: Graph) -> int:
    """Returns working memory and the distance that overlapping tensors keep."""
    scratch = sum(s.bytes for call in kernel.lower(op, graph) for s in call.scratch)
    overlaps = [
        min(o.before, o.before if o.after is None else o.after)
        for o in kernel.overlap(op, graph).values()
    ]
    return scratch + max(0, min(overlaps, default=op.output(graph).bytes))


def lower_graph(
    graph: Graph,
    target: Target,
    root: Mapping[int, int],
    optimize: str = "balanced",
    frugal: Container[int] = (),
) -> tuple[Node, ...]:
    """Lowers all nodes.

    Args:
        graph: A verified graph.
        target: The processor to select kernels for.
        root: For each activation the tensor whose memory it shares.
        optimize: The goal.
        frugal: Positions of the operators whose kernels are to save memory rather than time.

    Raises:
        UnsupportedOpError: An operator has no kernel for the target, or is too much for it.
    """
    return tuple(
        _lower_op(op, graph, target, root, optimize, position in frugal)
        for position, op in enumerate(graph.ops)
    )


def _lower_op(
    op: Op,
    graph: Graph,
    target: Target,
    root: Mapping[int, int],
    optimize: str,
    frugal: bool,
) -> Node:
    if op.aliases_input:
        source, result = op.inputs[0], op.outputs[0]
        if root.get(source) == root[result]:
            return Node(op, "", (), {})
        return Node(op, "copy_rows", (copy_call(graph, source, result),), {})
    kernel = select_kernel(op, graph, target, optimize, frugal)
    calls = kernel.lower(op, graph)
    _check_limits(op, graph, target, kernel, calls)
    overlap: dict[int, Overlap] = {}
    for position, found in kernel.overlap(op, graph).items():
        tensor = op.inputs[position]
        overlap[tensor] = _both(overlap.get(tensor, found), found)
    return Node(op, kernel.name, calls, overlap)


def _check_limits(
    op: Op, graph: Graph, target: Target, kernel: Kernel, calls: tuple[KernelCall, ...]
) -> None:
    """Refuses a node that the target's C compiler or arithmetic is not up to."""
    tensors = [graph.tensor(t) for t in (*op.inputs, *op.outputs) if t >= 0]
    if not target.has_float and any(tensor.dtype is DType.FLOAT32 for tensor in tensors):
        op.unsupported(
            graph,
            f"{kernel.name} computes in float32, which {target.name} does without",
            hint="quantize the model to int8 first (edgekiln quantize)",
        )
    sizes = [array.nbytes for call in calls for array in call.arrays.values()]
    read = {t for call in calls for t in call.inputs}
    sizes += [t.bytes for t in tensors if not t.is_constant or t.index in read]
    largest = max(sizes, default=0)
    if target.max_object_bytes is not None and largest > target.max_object_bytes:
        op.unsupported(
            graph,
            f"a table or tensor is larger than the C compiler for {target.name} takes",
            f"{largest:,} bytes",
            f"at most {target.max_object_bytes:,}",
        )


def _both(a: Overlap, b: Overlap) -> Overlap:
    after = None if a.after is None or b.after is None else max(a.after, b.after)
    return Overlap(max(a.before, b.before), after)


def reverse(node: Node) -> Node:
    """Returns the node with its kernel running backwards."""
    calls = tuple(replace(c, scalars={**c.scalars, "reverse": 1}) for c in node.calls)
    return replace(node, calls=calls)


def copy_call(graph: Graph, source: int, result: int) -> KernelCall:
    """Returns the call that copies one tensor's bytes to another of the same size."""
    size = graph.tensor(result).bytes
    scalars = {"rows": 1, "row_bytes": size, "output_row_bytes": size}
    return KernelCall(
        "ek_copy_rows", "ek_copy_rows.h", scalars, {}, (source,), result, bytewise=True
    )
