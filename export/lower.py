"""Selects a kernel for every node and turns nodes into kernel calls."""

from __future__ import annotations

from dataclasses import dataclass

from edgekiln.errors import UnsupportedOpError
from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Kernel, KernelCall, Op
from edgekiln.export.targets import Target


@dataclass(frozen=True)
class Node:
    """An operator with the kernel chosen for it.

    Attributes:
        op: The operator.
        kernel: Name of the kernel; "" when nothing needs to run.
        calls: What runs, in order.
    """

    op: Op
    kernel: str
    calls: tuple[KernelCall, ...]


def select_kernel(op: Op, graph: Graph, target: Target) -> Kernel:
    """Returns the kernel with the lowest estimated cost among those the target can run.

    Raises:
        UnsupportedOpError: There is none.
    """
    usable = [k for k in op.kernels if k.features <= target.features and k.accepts(op, graph)]
    if not usable:
        raise UnsupportedOpError(
            "no kernel for this target", where=op.where(graph), got=target.name
        )
    return min(usable, key=lambda kernel: kernel.cost(op, graph))


def lower_graph(graph: Graph, target: Target, root: dict[int, int]) -> tuple[Node, ...]:
    """Lowers all nodes.

    Args:
        graph: A verified graph.
        target: The processor to select kernels for.
        root: For each activation the tensor whose memory it shares.
    """
    return tuple(_lower_op(op, graph, target, root) for op in graph.ops)


def _lower_op(op: Op, graph: Graph, target: Target, root: dict[int, int]) -> Node:
    if op.aliases_input:
        source, result = op.inputs[0], op.outputs[0]
        if root.get(source) == root[result]:
            return Node(op, "", ())
        size = graph.tensor(result).bytes
        scalars = {"rows": 1, "row_bytes": size, "output_row_bytes": size}
        call = KernelCall("ek_copy_rows", "ek_copy_rows.h", scalars, {}, (source,), result)
        return Node(op, "copy_rows", (call,))
    kernel = select_kernel(op, graph, target)
    return Node(op, kernel.name, kernel.lower(op, graph))
