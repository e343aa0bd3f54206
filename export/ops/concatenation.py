"""CONCATENATION and PACK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from edgekiln.export.ir import DType, Graph, Tensor
from edgekiln.export.ops.activation import Activation
from edgekiln.export.ops.base import Array
from edgekiln.export.ops.movement import (
    ALL_TYPES,
    MOVE,
    Copy,
    Movement,
    View,
    check_moved,
    expect_shape,
    positive_axis,
)

if TYPE_CHECKING:
    from edgekiln.export.tflite_reader import OperatorReader


@dataclass(frozen=True)
class Concatenation(Movement):
    """Tensors one after the other along one dimension."""

    axis: int
    activation: Activation

    name: ClassVar[str] = "CONCATENATION"
    variants: ClassVar[str] = f"{ALL_TYPES}; any axis; inputs of the output's scale"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("ConcatenationOptions")
        activation = reader.enum(Activation, options.FusedActivationFunction(), "activation")
        return cls(reader.index, reader.inputs, reader.outputs, options.Axis(), activation)

    def positive_axis(self, graph: Graph) -> int:
        """Returns the dimension along which the inputs are joined."""
        return positive_axis(self, graph, self.axis, len(self.output(graph).shape))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, len(self.inputs) + 1))
        y = self.output(graph)
        axis = self.positive_axis(graph)
        if self.activation is not Activation.NONE:
            self.unsupported(graph, "fused activation", self.activation, "NONE")
        joined = 0
        for position in range(len(self.inputs)):
            x = self.input(graph, position)
            check_moved(self, graph, x, y)
            self._check_scale(graph, x, y)
            if len(x.shape) != len(y.shape) or any(
                x.shape[i] != y.shape[i] for i in range(len(y.shape)) if i != axis
            ):
                self.reject(graph, f"shape of '{x.name}'", x.shape, f"{y.shape} but for {axis}")
            joined += x.shape[axis]
        if joined != y.shape[axis]:
            self.reject(graph, f"size of '{y.name}' along axis {axis}", y.shape[axis], joined)
        self.check_copies(graph)

    def _check_scale(self, graph: Graph, x: Tensor, y: Tensor) -> None:
        if y.dtype in (DType.INT8, DType.UINT8):
            self.check_type(graph, x, y.dtype)
            self.check_type(graph, y, y.dtype)
            self.check_same_quantization(graph, y, x)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns one copy for each input."""
        y, axis, start = View.of(self.output(graph)), self.positive_axis(graph), 0
        copies = []
        for tensor in self.inputs:
            x = View.of(graph.tensor(tensor))
            copies.append(Copy(x, y.sliced(axis, start, x.shape[axis])))
            start += x.shape[axis]
        return tuple(copies)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.concatenate([np.asarray(x) for x in inputs], axis=self.positive_axis(graph)),)


@dataclass(frozen=True)
class Pack(Movement):
    """Tensors of one shape joined along a new dimension."""

    axis: int

    name: ClassVar[str] = "PACK"
    variants: ClassVar[str] = f"{ALL_TYPES}; any axis"

    @classmethod
    def read(cls, reader: OperatorReader) -> Self:
        """Builds the operator from the model file."""
        options = reader.options("PackOptions")
        return cls(reader.index, reader.inputs, reader.outputs, options.Axis())

    def positive_axis(self, graph: Graph) -> int:
        """Returns the number of the new dimension."""
        return positive_axis(self, graph, self.axis, len(self.output(graph).shape))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, len(self.inputs) + 1))
        y, axis = self.output(graph), self.positive_axis(graph)
        for position in range(len(self.inputs)):
            x = self.input(graph, position)
            check_moved(self, graph, x, y)
            expected = (*x.shape[:axis], len(self.inputs), *x.shape[axis:])
            expect_shape(self, graph, y, expected)
        self.check_copies(graph)

    def copies(self, graph: Graph) -> tuple[Copy, ...]:
        """Returns one copy for each input."""
        y, axis = View.of(self.output(graph)), self.positive_axis(graph)
        return tuple(
            Copy(View.of(graph.tensor(t)).repeated(axis, 1), y.sliced(axis, i, 1))
            for i, t in enumerate(self.inputs)
        )

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.stack([np.asarray(x) for x in inputs], axis=self.positive_axis(graph)),)


Concatenation.kernels = MOVE
Pack.kernels = MOVE
