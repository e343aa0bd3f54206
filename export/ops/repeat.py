"""BROADCAST_TO, TILE, FILL and ZEROS_LIKE: elements that repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op
from edgekiln.export.ops.movement import (
    ALL_TYPES,
    MOVE,
    Copy,
    Movement,
    View,
    check_moved,
    constant_integers,
    expect_shape,
)
from edgekiln.export.ops.pad import fill_call


@dataclass(frozen=True)
class BroadcastTo(Movement):
    """A tensor repeated along dimensions of size 1 and new ones before the first."""

    name: ClassVar[str] = "BROADCAST_TO"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant shape"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        expect_shape(self, graph, y, constant_integers(self, graph, 1, "shape"))
        missing = len(y.shape) - len(x.shape)
        if missing < 0 or any(
            size not in (1, wanted) for size, wanted in zip(x.shape, y.shape[missing:], strict=True)
        ):
            self.reject(graph, "the input cannot be broadcast", x.shape, y.shape)
        self.check_copies(graph)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns the one copy."""
        y = self.output(graph)
        return (Copy(View.of(self.input(graph, 0)).broadcast(y.shape), View.of(y)),)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.broadcast_to(np.asarray(inputs[0]), self.output(graph).shape).copy(),)


@dataclass(frozen=True)
class Tile(Movement):
    """A tensor repeated as a whole along each dimension."""

    name: ClassVar[str] = "TILE"
    oracle: ClassVar[str] = "LiteRT (BUILTIN_REF)"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant multiples"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        multiples = constant_integers(self, graph, 1, "multiples")
        if len(multiples) != len(x.shape):
            self.reject(graph, "number of multiples", len(multiples), len(x.shape))
        expect_shape(self, graph, y, tuple(m * n for m, n in zip(multiples, x.shape, strict=True)))
        self.check_copies(graph)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns the one copy: two dimensions for each of the tensor's."""
        source = View.of(self.input(graph, 0))
        for axis, multiple in enumerate(constant_integers(self, graph, 1, "multiples")):
            source = source.repeated(2 * axis, multiple)
        return (Copy(source, View.of(self.output(graph), source.shape)),)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.tile(np.asarray(inputs[0]), constant_integers(self, graph, 1, "multiples")),)


@dataclass(frozen=True)
class Fill(Movement):
    """One value in all places. The shape is the output's."""

    name: ClassVar[str] = "FILL"
    variants: ClassVar[str] = f"{ALL_TYPES}; constant shape, value constant or computed"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        value, y = self.input(graph, 1), self.output(graph)
        check_moved(self, graph, value, y)
        expect_shape(self, graph, y, constant_integers(self, graph, 0, "shape"))
        if value.elements != 1:
            self.reject(graph, f"number of elements of '{value.name}'", value.elements, 1)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns the one copy."""
        y = self.output(graph)
        return (Copy(View.of(self.input(graph, 1), ()).broadcast(y.shape), View.of(y)),)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        y = self.output(graph)
        return (np.full(y.shape, np.asarray(inputs[1]).reshape(()), y.dtype.value),)


@dataclass(frozen=True)
class ZerosLike(Op):
    """As many zeros as the input has elements: zero bytes, whatever the zero point."""

    name: ClassVar[str] = "ZEROS_LIKE"
    variants: ClassVar[str] = ALL_TYPES

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        check_moved(self, graph, x, y)
        expect_shape(self, graph, y, x.shape)

    def activation_inputs(self, graph: Graph) -> tuple[int, ...]:
        """Returns nothing: the values of the input do not matter."""
        return ()

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        y = self.output(graph)
        return (np.zeros(y.shape, y.dtype.value),)


def _lower_zeros(op: ZerosLike, graph: Graph) -> tuple[KernelCall, ...]:
    return (fill_call(op.output(graph), 0),)


BroadcastTo.kernels = MOVE
Tile.kernels = MOVE
Fill.kernels = MOVE
ZerosLike.kernels = (
    Kernel("fill", _lower_zeros, lambda op, graph: op.output(graph).bytes / 4 + 10.0),
)
