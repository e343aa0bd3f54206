"""What all operators share that only move bytes: views of tensors, and copies between them.

An operator describes what it does as copies from a view of an input to a view of an output of
the same shape. From the copies follow the calls of the kernels, the estimate of their cost, and
the proof of how far the output may lie over an input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.base import Kernel, KernelCall, Op, Overlap, Overlaps, Tolerance

MOVABLE = (
    DType.INT8,
    DType.UINT8,
    DType.INT16,
    DType.INT32,
    DType.INT64,
    DType.FLOAT32,
    DType.BOOL,
)
"""The types of elements that kernels move as bytes."""

ALL_TYPES = "int8, uint8, int16, int32, int64, float32, bool"
"""The same for the table of operators."""

_LOOPS = 6
"""Loops of ``ek_strided_copy``."""

_SIMULATED_STEPS = 1 << 19
"""Copies of more steps promise no overlap, because going through them would take too long."""


@dataclass(frozen=True)
class View:
    """Elements of a tensor in some order.

    Attributes:
        tensor: The tensor's index.
        shape: Sizes of the view.
        steps: Bytes from one index to the next, per dimension.
        offset: Bytes from the tensor's beginning to the view's first element.
        element_bytes: Size of one element.
    """

    tensor: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]
    offset: int
    element_bytes: int

    @staticmethod
    def of(tensor: Tensor, shape: Sequence[int] | None = None) -> View:
        """Returns a whole tensor in memory order, under another shape if one is given."""
        sizes = tensor.shape if shape is None else tuple(shape)
        size = tensor.dtype.bytes
        steps = tuple(size * math.prod(sizes[i + 1 :]) for i in range(len(sizes)))
        return View(tensor.index, sizes, steps, 0, size)

    def transposed(self, axes: Sequence[int]) -> View:
        """Returns the view with dimension ``axes[i]`` as dimension i."""
        return replace(
            self,
            shape=tuple(self.shape[a] for a in axes),
            steps=tuple(self.steps[a] for a in axes),
        )

    def sliced(self, axis: int, start: int, count: int, step: int = 1) -> View:
        """Returns ``count`` indices of one dimension, from ``start`` on, ``step`` apart."""
        shape, steps = list(self.shape), list(self.steps)
        shape[axis] = count
        steps[axis] = self.steps[axis] * step
        offset = self.offset + self.steps[axis] * start
        return replace(self, shape=tuple(shape), steps=tuple(steps), offset=offset)

    def repeated(self, axis: int, count: int) -> View:
        """Returns the view with a new dimension, along which all elements are the same."""
        return replace(
            self,
            shape=(*self.shape[:axis], count, *self.shape[axis:]),
            steps=(*self.steps[:axis], 0, *self.steps[axis:]),
        )

    def broadcast(self, shape: Sequence[int]) -> View:
        """Returns the view repeated to a shape, by numpy's rules, which the caller checked."""
        missing = len(shape) - len(self.shape)
        sizes = (1,) * missing + self.shape
        steps = (0,) * missing + self.steps
        return replace(
            self,
            shape=tuple(shape),
            steps=tuple(0 if n == 1 else s for n, s in zip(sizes, steps, strict=True)),
        )


@dataclass(frozen=True)
class Copy:
    """A copy from one view to another of the same shape."""

    source: View
    target: View

    def loops(self) -> tuple[list[tuple[int, int, int]], int]:
        """Returns (size, input step, output step) per loop, and the bytes of a run.

        Dimensions of size 1 are dropped, neighbours merged where one loop does for both, and
        what is contiguous in both views becomes a run.
        """
        loops: list[tuple[int, int, int]] = []
        views = zip(self.source.shape, self.source.steps, self.target.steps, strict=True)
        for size, step_in, step_out in views:
            if size == 1:
                continue
            if loops and loops[-1][1:] == (size * step_in, size * step_out):
                loops[-1] = (loops[-1][0] * size, step_in, step_out)
            else:
                loops.append((size, step_in, step_out))
        run = self.source.element_bytes
        if loops and loops[-1][1:] == (run, run):
            run *= loops.pop()[0]
        return loops, run

    @property
    def steps(self) -> int:
        """How many runs are copied."""
        return math.prod(size for size, _, _ in self.loops()[0])

    def addresses(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Returns where each run is read and written, in the kernel's order, and its bytes."""
        loops, run = self.loops()
        read = np.array([self.source.offset], np.int64)
        written = np.array([self.target.offset], np.int64)
        for size, step_in, step_out in loops:
            index = np.arange(size, dtype=np.int64)
            read = (read[:, None] + index * step_in).reshape(-1)
            written = (written[:, None] + index * step_out).reshape(-1)
        return read, written, run

    def lower(self) -> KernelCall:
        """Returns the call that does it."""
        loops, run = self.loops()
        if len(loops) > _LOOPS:
            raise AssertionError("a copy of too many loops passed the checker")
        if not loops or (len(loops) == 1 and loops[0][1] == run):
            rows, _, step = loops[0] if loops else (1, run, run)
            name = "ek_copy_rows"
            scalars = {"rows": rows, "row_bytes": run, "output_row_bytes": step}
            specialise: tuple[str, ...] = ()
        else:
            name = "ek_strided_copy"
            padded = [(1, 0, 0)] * (_LOOPS - len(loops)) + loops
            scalars = {f"size_{i}": size for i, (size, _, _) in enumerate(padded)}
            scalars |= {f"input_step_{i}": step for i, (_, step, _) in enumerate(padded)}
            scalars |= {f"output_step_{i}": step for i, (_, _, step) in enumerate(padded)}
            scalars |= {"run": run, "unit": run if run in (1, 2, 4) else 0}
            specialise = ("unit",)
        return KernelCall(
            name,
            f"{name}.h",
            scalars,
            {},
            (self.source.tensor,),
            self.target.tensor,
            input_offsets=(self.source.offset,),
            output_offset=self.target.offset,
            specialise=specialise,
            bytewise=True,
        )


@dataclass(frozen=True)
class Movement(Op):
    """An operator that only moves elements, of any type."""

    variants: ClassVar[str] = ALL_TYPES
    tolerance: ClassVar[Tolerance] = Tolerance(0.0, 0.0)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns the copies that it consists of, in order."""
        raise AssertionError(f"{type(self).__name__} has no copies")

    def check_copies(self, graph: Graph) -> None:
        """Checks that the kernels can do all copies; to be called when all else is right."""
        for copy in self.copies(graph):
            if len(copy.loops()[0]) > _LOOPS:
                self.unsupported(
                    graph,
                    "elements move in more dimensions than the kernel has loops",
                    copy.source.shape,
                    f"{_LOOPS} after merging",
                )


def check_moved(op: Op, graph: Graph, *tensors: Tensor) -> None:
    """Checks that all tensors have one and the same type, which can be moved, and elements."""
    for tensor in tensors:
        if tensor.dtype not in MOVABLE:
            op.check_type(graph, tensor, *MOVABLE)
        if tensor.dtype is not tensors[0].dtype:
            op.check_same_type(graph, tensors[0], tensor)
        if tensor.elements == 0:
            op.unsupported(graph, f"tensor '{tensor.name}' is empty", tensor.shape)


def constant_integers(op: Op, graph: Graph, position: int, what: str) -> tuple[int, ...]:
    """Returns the values of an int32 or int64 input, which has to be a constant."""
    tensor = op.constant(graph, position, what)
    if tensor.dtype not in (DType.INT32, DType.INT64):
        op.reject(graph, f"type of the {what}", tensor.dtype.value, "int32 or int64")
    return tuple(int(value) for value in tensor.value.reshape(-1))


def positive_axis(op: Op, graph: Graph, axis: int, rank: int) -> int:
    """Returns a dimension's number counted from the first one."""
    if not -rank <= axis < rank:
        op.reject(graph, "axis out of range", axis, f"-{rank} to {rank - 1}")
    return axis % rank


def expect_shape(op: Op, graph: Graph, tensor: Tensor, expected: Sequence[int]) -> None:
    """Checks a tensor's shape."""
    if tensor.shape != tuple(expected):
        op.reject(graph, f"shape of '{tensor.name}'", tensor.shape, tuple(expected))


def lower_movement(op: Movement, graph: Graph) -> tuple[KernelCall, ...]:
    """Lowers an operator to its copies."""
    return tuple(copy.lower() for copy in op.copies(graph))


def movement_cost(op: Movement, graph: Graph) -> float:
    """Estimates the instructions of an operator's copies."""
    return sum(copy.steps * (10.0 + copy.loops()[1] / 4) for copy in op.copies(graph))


def movement_overlap(op: Movement, graph: Graph) -> Overlaps:
    """Proves how the output may lie over the inputs, by going through all steps of all copies.

    A run is written only after it was read. So no byte is overwritten before it was read when
    every run that is written ends, in the input's addresses, before all that are read later.
    """
    if len(op.outputs) != 1:
        return {}
    return copies_overlap(op, graph, op.copies(graph))


def copies_overlap(op: Op, graph: Graph, copies: Sequence[Copy]) -> Overlaps:
    """Proves the same for any sequence of copies into the operator's only output."""
    if sum(copy.steps for copy in copies) > _SIMULATED_STEPS:
        return {}
    steps = [(copy.source.tensor, *copy.addresses()) for copy in copies]
    ends = np.concatenate([written + run for _, _, written, run in steps])
    overlaps = {}
    for position, tensor in enumerate(op.inputs):
        if not any(source == tensor for source, _, _, _ in steps):
            continue
        size = graph.tensor(tensor).bytes
        reads = np.concatenate(
            [
                read if source == tensor else np.full_like(read, np.iinfo(np.int64).max // 2)
                for source, read, _, _ in steps
            ]
        )
        later = np.minimum.accumulate(reads[::-1])[::-1]
        distance = (ends[:-1] - later[1:]).max(initial=-size)
        overlaps[position] = Overlap(max(int(distance), -size))
    return overlaps


MOVE = (Kernel("strided_copy", lower_movement, movement_cost, overlap=movement_overlap),)
"""The kernels of all movements."""
