"""PAD, PADV2 and MIRROR_PAD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, Overlap, Overlaps
from edgekiln.export.ops.movement import (
    ALL_TYPES,
    MOVE,
    Copy,
    Movement,
    View,
    check_moved,
    constant_integers,
    copies_overlap,
    expect_shape,
)

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader

_MAX_RANK = 4

Paddings = tuple[tuple[int, int], ...]
"""What stands before and after each dimension."""


def read_paddings(op: Op, graph: Graph, position: int, rank: int) -> Paddings:
    """Returns the paddings that a constant input holds, checked to be 0 or more."""
    flat = constant_integers(op, graph, position, "paddings")
    if len(flat) != 2 * rank:
        op.reject(graph, "number of paddings", len(flat), 2 * rank)
    pairs = tuple(zip(flat[::2], flat[1::2], strict=True))
    if any(side < 0 for pair in pairs for side in pair):
        op.reject(graph, "paddings", pairs, "0 or more")
    return pairs


@dataclass(frozen=True)
class Pad(Op):
    """A tensor with zeros around it: for int8 the code of zero, the output's zero point."""

    name: ClassVar[str] = "PAD"
    variants: ClassVar[str] = (
        f"{ALL_TYPES}; constant paddings; up to {_MAX_RANK} dimensions after merging"
    )

    def paddings(self, graph: Graph) -> Paddings:
        """Returns what stands before and after each dimension."""
        return read_paddings(self, graph, 1, len(self.input(graph, 0).shape))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        self._check_shapes(graph)

    def _check_shapes(self, graph: Graph) -> None:
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        if y.dtype in (DType.INT8, DType.UINT8):
            self.check_type(graph, y, y.dtype)
        pairs = self.paddings(graph)
        expected = tuple(b + n + a for n, (b, a) in zip(x.shape, pairs, strict=True))
        expect_shape(self, graph, y, expected)
        if len(self.merged(graph)) > _MAX_RANK:
            self.unsupported(graph, "padding of more than four dimensions", pairs)

    def merged(self, graph: Graph) -> list[tuple[int, int, int]]:
        """Returns (size, before, after) per dimension, with unpadded ones merged.

        A dimension joins the one before it when it is not padded: rows of it are then whole.
        """
        merged: list[tuple[int, int, int]] = []
        for size, (before, after) in zip(
            self.input(graph, 0).shape, self.paddings(graph), strict=True
        ):
            if merged and before == after == 0:
                size_0, before_0, after_0 = merged[-1]
                merged[-1] = (size_0 * size, before_0 * size, after_0 * size)
            else:
                merged.append((size, before, after))
        return merged or [(1, 0, 0)]

    def value(self, graph: Graph) -> Array:
        """Returns the element that stands around the input, as an array of one."""
        y = self.output(graph)
        quantized = y.dtype in (DType.INT8, DType.UINT8)
        return np.full(1, y.q.zero_point if quantized else 0, y.dtype.value)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        value = np.asarray(inputs[0])
        return (np.pad(value, self.paddings(graph), constant_values=self.value(graph)[0]),)


@dataclass(frozen=True)
class PadV2(Pad):
    """A tensor with a constant around it."""

    name: ClassVar[str] = "PADV2"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(3, 4))
        value, y = self.constant(graph, 2, "value of the padding"), self.output(graph)
        check_moved(self, graph, value, y)
        if value.elements != 1:
            self.reject(graph, f"number of elements of '{value.name}'", value.elements, 1)
        if y.dtype in (DType.INT8, DType.UINT8):
            self.check_type(graph, y, y.dtype)
            self.check_type(graph, value, y.dtype)
            self.check_same_quantization(graph, y, value)
        self._check_shapes(graph)

    def value(self, graph: Graph) -> Array:
        """Returns the element that stands around the input, as an array of one."""
        return self.input(graph, 2).value.reshape(1)


@dataclass(frozen=True)
class MirrorPad(Movement):
    """A tensor with its own border mirrored around it.

    Attributes:
        reflect: Whether the outermost elements are not repeated.
    """

    reflect: bool

    name: ClassVar[str] = "MIRROR_PAD"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant paddings; reflect and symmetric"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        mode = reader.options("MirrorPadOptions").Mode()
        return cls(reader.index, reader.inputs, reader.outputs, reflect=mode == 0)

    def paddings(self, graph: Graph) -> Paddings:
        """Returns what stands before and after each dimension."""
        return read_paddings(self, graph, 1, len(self.input(graph, 0).shape))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        pairs = self.paddings(graph)
        for axis, (size, pair) in enumerate(zip(x.shape, pairs, strict=True)):
            if max(pair) > size - self.reflect:
                self.reject(graph, f"padding of dimension {axis}", pair, size - self.reflect)
        expect_shape(
            self, graph, y, tuple(b + n + a for n, (b, a) in zip(x.shape, pairs, strict=True))
        )
        self.check_copies(graph)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns the copy of the input, and for each dimension two of the output itself.

        They go from the last dimension to the first, each over all that is already there.
        """
        x, y = self.input(graph, 0), self.output(graph)
        pairs = self.paddings(graph)
        inside = View.of(y)
        for axis, (size, (before, _)) in enumerate(zip(x.shape, pairs, strict=True)):
            inside = inside.sliced(axis, before, size)
        copies = [Copy(View.of(x), inside)]
        for axis in reversed(range(len(pairs))):
            size, (before, after) = x.shape[axis], pairs[axis]
            step = inside.steps[axis]
            for count, start, first in (
                (before, -before, before - 1 + self.reflect),
                (after, size, size - 1 - self.reflect),
            ):
                if count:
                    border = inside.sliced(axis, start, count)
                    copies.append(Copy(inside.sliced(axis, first, count, -1), border))
            wide = (*inside.shape[:axis], before + size + after, *inside.shape[axis + 1 :])
            inside = replace(inside, shape=wide, offset=inside.offset - before * step)
        return tuple(copies)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        mode = "reflect" if self.reflect else "symmetric"
        value, pairs = np.asarray(inputs[0]), self.paddings(graph)
        return (np.pad(value, pairs, mode=mode),)  # type: ignore[call-overload]


def fill_call(tensor: Tensor, byte: int) -> KernelCall:
    """Returns the call that sets all bytes of a tensor."""
    scalars = {"bytes": tensor.bytes, "value": byte}
    return KernelCall("ek_fill", "ek_fill.h", scalars, {}, (), tensor.index, bytewise=True)


def _byte_of(op: Pad, graph: Graph) -> int | None:
    """Returns the byte that the padding consists of; None when its bytes are not all equal."""
    found = set(op.value(graph).tobytes())
    return found.pop() if len(found) == 1 else None


def _inside(op: Pad, graph: Graph) -> Copy:
    """Returns the copy of the input to its place."""
    x = op.input(graph, 0)
    target = View.of(op.output(graph))
    for axis, (size, (before, _)) in enumerate(zip(x.shape, op.paddings(graph), strict=True)):
        target = target.sliced(axis, before, size)
    return Copy(View.of(x), target)


def _general_copies(op: Pad, graph: Graph) -> tuple[Copy, ...]:
    y = op.output(graph)
    value = View.of(op.input(graph, 2), ()).broadcast(y.shape)
    return Copy(value, View.of(y)), _inside(op, graph)


def _lower(op: Pad, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    byte = _byte_of(op, graph)
    if byte is None:
        return tuple(copy.lower() for copy in _general_copies(op, graph))
    *outer, inner = op.merged(graph)
    last = tuple(bytes_ * y.dtype.bytes for bytes_ in inner)
    dims = [(1, 0, 0)] * (_MAX_RANK - 1 - len(outer)) + outer + [last]
    scalars = {f"size_{i}": size for i, (size, _, _) in enumerate(dims)}
    scalars |= {f"before_{i}": before for i, (_, before, _) in enumerate(dims)}
    scalars |= {f"after_{i}": after for i, (_, _, after) in enumerate(dims)}
    scalars["value"] = byte
    return (KernelCall("ek_pad", "ek_pad.h", scalars, {}, (x.index,), y.index, bytewise=True),)


def _overlap(op: Pad, graph: Graph) -> Overlaps:
    """Before run j is read, all of the output before the place of run j is written, no more."""
    if _byte_of(op, graph) is None:
        return copies_overlap(op, graph, _general_copies(op, graph))
    copy = _inside(op, graph)
    read, written, _ = copy.addresses()
    return {0: Overlap(int((written - read).max()))}


def _cost(op: Pad, graph: Graph) -> float:
    copy = _inside(op, graph)
    return op.output(graph).bytes / 4 + 40.0 * copy.steps


Pad.kernels = (Kernel("pad", _lower, _cost, overlap=_overlap),)
PadV2.kernels = Pad.kernels
MirrorPad.kernels = MOVE
