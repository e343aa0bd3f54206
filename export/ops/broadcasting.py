"""What operators with inputs that are broadcast to the output's shape share.

The kernels walk over the output with four nested loops, in memory order, and step through
each input with strides of its own, 0 along the dimensions where it is repeated. Dimensions
that need no loop of their own are fused ahead of time; the rare operator that needs more than
four loops is split into several calls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekiln.export.ir import Graph, Tensor
from edgekiln.export.ops.base import Array, KernelCall, Op, Overlap, Overlaps

LOOPS = 4
MAX_CALLS = 64
"""Calls that one operator may be split into."""


@dataclass(frozen=True)
class Loops:
    """How to walk over the output and the inputs.

    Attributes:
        sizes: Iterations of the four loops, outermost first.
        steps: For each input the distance in elements from one iteration to the next, by loop.
        input_offsets: For each call the element of each input that it starts at.
        output_offsets: For each call the element of the output that it starts at.
    """

    sizes: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    input_offsets: tuple[tuple[int, ...], ...]
    output_offsets: tuple[int, ...]

    def scalars(self) -> dict[str, int | float]:
        """Returns the parameters that the kernels know them by."""
        found: dict[str, int | float] = {f"size_{i}": size for i, size in enumerate(self.sizes)}
        for number, steps in enumerate(self.steps, 1):
            found |= {f"step_{number}_{loop}": step for loop, step in enumerate(steps)}
        return found


def plan_loops(output: tuple[int, ...], inputs: tuple[tuple[int, ...], ...]) -> Loops:
    """Plans the loops of an operator whose inputs are broadcast to the output's shape.

    At most `MAX_CALLS` + 1 calls are listed.
    """
    fused: list[tuple[int, tuple[int, ...]]] = []
    for axis in reversed(range(len(output))):
        steps = tuple(_step(shape, len(output) - axis) for shape in inputs)
        inner = fused[-1] if fused else None
        if output[axis] == 1:
            continue
        if inner and all(s == i * inner[0] for s, i in zip(steps, inner[1], strict=True)):
            fused[-1] = (output[axis] * inner[0], inner[1])
        else:
            fused.append((output[axis], steps))
    fused += [(1, (0,) * len(inputs))] * (LOOPS - len(fused))
    ordered = fused[::-1]
    outer, loops = ordered[:-LOOPS], ordered[-LOOPS:]
    count = min(math.prod(size for size, _ in outer), MAX_CALLS + 1)
    places = list(itertools.islice(itertools.product(*(range(n) for n, _ in outer)), count))
    inner_elements = math.prod(size for size, _ in loops)
    return Loops(
        tuple(size for size, _ in loops),
        tuple(tuple(steps[i] for _, steps in loops) for i in range(len(inputs))),
        tuple(
            tuple(
                sum(n * steps[i] for n, (_, steps) in zip(place, outer, strict=True))
                for i in range(len(inputs))
            )
            for place in places
        ),
        tuple(number * inner_elements for number in range(len(places))),
    )


def _step(shape: tuple[int, ...], from_end: int) -> int:
    """Returns the distance between neighbours along a dimension, 0 where there are none."""
    if from_end > len(shape) or shape[-from_end] == 1:
        return 0
    return math.prod(shape[len(shape) - from_end + 1 :])


@dataclass(frozen=True)
class Broadcasting(Op):
    """An operator whose inputs are broadcast to the output's shape."""

    def check_broadcast(self, graph: Graph, *inputs: Tensor) -> None:
        """Checks that the inputs' shapes lead to the output's."""
        y = self.output(graph)
        try:
            wanted = np.broadcast_shapes(*(x.shape for x in inputs))
        except ValueError:
            shapes = ", ".join(str(x.shape) for x in inputs)
            self.reject(graph, "shapes of the inputs do not fit each other", shapes)
        if wanted != y.shape:
            self.reject(graph, f"shape of '{y.name}'", y.shape, wanted)
        calls = len(plan_loops(y.shape, tuple(x.shape for x in inputs)).output_offsets)
        if calls > MAX_CALLS:
            self.unsupported(graph, "broadcast of many dimensions in turns", y.shape)


def broadcast_calls(
    op: Op,
    graph: Graph,
    kernel: str,
    header: str,
    scalars: Mapping[str, int | float] | None = None,
) -> tuple[KernelCall, ...]:
    """Returns the calls of a kernel that broadcasts all inputs of an operator.

    Args:
        op: The operator.
        graph: Its graph.
        kernel: The C function's name.
        header: The header that defines it.
        scalars: Its parameters after those of the loops.
    """
    inputs = tuple(op.input(graph, position) for position in range(len(op.inputs)))
    y = op.output(graph)
    loops = plan_loops(y.shape, tuple(x.shape for x in inputs))
    return tuple(
        KernelCall(
            kernel,
            header,
            {**loops.scalars(), **(scalars or {})},
            {},
            tuple(x.index for x in inputs),
            y.index,
            input_offsets=offsets,
            output_offset=output_offset,
            specialise=tuple(f"step_{i}_{LOOPS - 1}" for i in range(1, len(inputs) + 1)),
        )
        for offsets, output_offset in zip(loops.input_offsets, loops.output_offsets, strict=True)
    )


def overlap_elementwise(op: Op, graph: Graph) -> Overlaps:
    """The overlap of a kernel that writes element i after it has read element i of an input.

    It goes through the output in memory order, and through each input of as many elements,
    which then is not broadcast. Where the output's elements are larger, no element is
    overwritten too early when the input lies at the output's end or behind it. Elements of
    two different types of more than a byte are never overlapped: a C compiler may assume that
    they do not alias, and reorder the accesses.
    """
    y = op.output(graph)
    found = {}
    for position, tensor in enumerate(op.inputs):
        x = graph.tensor(tensor)
        may_alias = x.dtype is y.dtype or 1 in (x.dtype.bytes, y.dtype.bytes)
        if x.elements == y.elements and may_alias:
            found[position] = Overlap(max(0, (y.dtype.bytes - x.dtype.bytes) * y.elements))
    return found


def value_of(value: Array | None) -> Array:
    """Returns an input that must be there."""
    if value is None:
        raise AssertionError("an absent input was used")
    return value
