"""Comparisons, LOGICAL_AND, LOGICAL_OR, LOGICAL_NOT and SELECT_V2: truth values and their use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgekiln.export.fixed_point import (
    Multiplier,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
)
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, as_int64
from edgekiln.export.ops.broadcasting import (
    Broadcasting,
    broadcast_calls,
    overlap_elementwise,
    value_of,
)
from edgekiln.export.ops.elementwise import Elementwise
from edgekiln.export.ops.types import SUFFIX

_RAISED_BITS = 8
"""Bits by which the oracle raises int8 codes before it compares them as real numbers."""

_EXACT = (DType.FLOAT32, DType.INT32, DType.INT64)
_SELECTED = (DType.INT8, DType.INT16, DType.INT32, DType.INT64, DType.FLOAT32, DType.BOOL)


@dataclass(frozen=True)
class Comparison(Broadcasting):
    """A relation between two numbers."""

    variants: ClassVar[str] = "int8, int32, int64, float32; broadcast; constants"
    types: ClassVar[tuple[DType, ...]] = (DType.INT8, *_EXACT)
    relation: ClassVar[Callable[[Any, Any], Any]]
    """The relation of two arrays."""

    kernel: ClassVar[str]
    """The relation that the kernel tests: equal, not_equal, greater or greater_equal."""

    swapped: ClassVar[bool] = False
    """Whether the kernel gets the inputs in the other order."""

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        a, b = self.input(graph, 0), self.input(graph, 1)
        self.check_type(graph, a, *self.types)
        self.check_type(graph, b, *self.types)
        self.check_same_type(graph, a, b)
        self.check_type(graph, self.output(graph), DType.BOOL)
        self.check_broadcast(graph, a, b)
        if a.dtype is DType.INT8:
            for tensor in (a, b):
                if tensor.q.per_channel:
                    self.unsupported(graph, f"tensor '{tensor.name}' is quantized per channel")
            if any(m.shift > 0 for m in self.multipliers(graph)):
                self.unsupported(graph, "scale of an input", (a.q.scale, b.q.scale), "below 1")

    def multipliers(self, graph: Graph) -> tuple[Multiplier, Multiplier]:
        """Returns the scales of int8 inputs (``ComparisonsPrepare``)."""
        return (
            quantize_multiplier(self.input(graph, 0).q.scale),
            quantize_multiplier(self.input(graph, 1).q.scale),
        )

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        a, b = value_of(inputs[0]), value_of(inputs[1])
        if self.input(graph, 0).dtype is DType.INT8:
            a, b = (
                multiply_by_quantized_multiplier(
                    (as_int64(value) - self.input(graph, i).q.zero_point) << _RAISED_BITS,
                    m.multiplier,
                    m.shift,
                )
                for i, (value, m) in enumerate(zip((a, b), self.multipliers(graph), strict=True))
            )
        return (np.asarray(type(self).relation(a, b), np.bool_),)


@dataclass(frozen=True)
class Equal(Comparison):
    """Tells whether two numbers are equal."""

    name: ClassVar[str] = "EQUAL"
    variants: ClassVar[str] = "int8, int32, int64, float32, bool; broadcast; constants"
    types: ClassVar[tuple[DType, ...]] = (DType.INT8, *_EXACT, DType.BOOL)
    relation: ClassVar[Callable[[Any, Any], Any]] = np.equal
    kernel: ClassVar[str] = "equal"


@dataclass(frozen=True)
class NotEqual(Equal):
    """Tells whether two numbers differ."""

    name: ClassVar[str] = "NOT_EQUAL"
    relation: ClassVar[Callable[[Any, Any], Any]] = np.not_equal
    kernel: ClassVar[str] = "not_equal"


@dataclass(frozen=True)
class Greater(Comparison):
    """Tells whether the first number is the larger one."""

    name: ClassVar[str] = "GREATER"
    relation: ClassVar[Callable[[Any, Any], Any]] = np.greater
    kernel: ClassVar[str] = "greater"


@dataclass(frozen=True)
class GreaterEqual(Comparison):
    """Tells whether the first number is at least the second."""

    name: ClassVar[str] = "GREATER_EQUAL"
    relation: ClassVar[Callable[[Any, Any], Any]] = np.greater_equal
    kernel: ClassVar[str] = "greater_equal"


@dataclass(frozen=True)
class Less(Comparison):
    """Tells whether the second number is the larger one."""

    name: ClassVar[str] = "LESS"
    relation: ClassVar[Callable[[Any, Any], Any]] = np.less
    kernel: ClassVar[str] = "greater"
    swapped: ClassVar[bool] = True


@dataclass(frozen=True)
class LessEqual(Comparison):
    """Tells whether the second number is at least the first."""

    name: ClassVar[str] = "LESS_EQUAL"
    relation: ClassVar[Callable[[Any, Any], Any]] = np.less_equal
    kernel: ClassVar[str] = "greater_equal"
    swapped: ClassVar[bool] = True


@dataclass(frozen=True)
class Logical(Broadcasting):
    """A function of two truth values."""

    variants: ClassVar[str] = "bool; broadcast; constants"
    function: ClassVar[Callable[[Any, Any], Any]]

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        a, b = self.input(graph, 0), self.input(graph, 1)
        for tensor in (a, b, self.output(graph)):
            self.check_type(graph, tensor, DType.BOOL)
        self.check_broadcast(graph, a, b)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.asarray(type(self).function(value_of(inputs[0]), value_of(inputs[1]))),)


@dataclass(frozen=True)
class LogicalAnd(Logical):
    """Tells whether both are true."""

    name: ClassVar[str] = "LOGICAL_AND"
    function: ClassVar[Callable[[Any, Any], Any]] = np.logical_and


@dataclass(frozen=True)
class LogicalOr(Logical):
    """Tells whether one of both is true."""

    name: ClassVar[str] = "LOGICAL_OR"
    function: ClassVar[Callable[[Any, Any], Any]] = np.logical_or


class LogicalNot(Elementwise):
    """The other truth value."""

    name: ClassVar[str] = "LOGICAL_NOT"
    variants: ClassVar[str] = "bool"
    types: ClassVar[tuple[DType, ...]] = (DType.BOOL,)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.logical_not(value_of(inputs[0])),)


@dataclass(frozen=True)
class SelectV2(Broadcasting):
    """Elements of one tensor where a condition holds, of another where it does not."""

    name: ClassVar[str] = "SELECT_V2"
    variants: ClassVar[str] = (
        "int8, int16, int32, int64, float32, bool of one scale; broadcast; constants"
    )

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(3, 4))
        condition, a, b = (self.input(graph, position) for position in range(3))
        self.check_type(graph, condition, DType.BOOL)
        for tensor in (a, b, self.output(graph)):
            self.check_type(graph, tensor, *_SELECTED)
            self.check_same_type(graph, a, tensor)
        self.check_broadcast(graph, condition, a, b)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output: the bytes are moved, whatever the scales."""
        return (np.where(value_of(inputs[0]), value_of(inputs[1]), value_of(inputs[2])),)


def _lower_comparison(op: Comparison, graph: Graph) -> tuple[KernelCall, ...]:
    a, b = op.input(graph, 0), op.input(graph, 1)
    scalars: dict[str, int | float] = {}
    kernel = f"ek_{op.kernel}_{SUFFIX[a.dtype]}"
    if a.dtype is DType.INT8:
        scales = op.multipliers(graph)
        order = (1, 0) if op.swapped else (0, 1)
        for number, position in enumerate(order, 1):
            scalars |= {
                f"input_{number}_offset": -(a, b)[position].q.zero_point,
                f"input_{number}_multiplier": scales[position].multiplier,
                f"input_{number}_shift": scales[position].shift,
            }
    ordered = type(op)(op.index, op.inputs[::-1], op.outputs) if op.swapped else op
    return broadcast_calls(ordered, graph, kernel, "ek_compare.h", scalars)


def _lower_logical(op: Logical, graph: Graph) -> tuple[KernelCall, ...]:
    return broadcast_calls(op, graph, f"ek_{op.name.lower()}", "ek_logical.h")


def _lower_not(op: LogicalNot, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    scalars = {"length": y.elements}
    return (KernelCall("ek_logical_not", "ek_logical.h", scalars, {}, (x.index,), y.index),)


def _lower_select(op: SelectV2, graph: Graph) -> tuple[KernelCall, ...]:
    kernel = f"ek_select_{SUFFIX[op.output(graph).dtype]}"
    return broadcast_calls(op, graph, kernel, "ek_select.h")


def _kernel(name: str, lower: Callable[[Any, Graph], tuple[KernelCall, ...]]) -> Kernel:
    return Kernel(
        name,
        lower,
        lambda op, graph: 10.0 * op.output(graph).elements,
        overlap=overlap_elementwise,
    )


for _comparison in (Equal, NotEqual, Greater, GreaterEqual, Less, LessEqual):
    _comparison.kernels = (_kernel("compare", _lower_comparison),)
for _logical in (LogicalAnd, LogicalOr):
    _logical.kernels = (_kernel("logical", _lower_logical),)
LogicalNot.kernels = (_kernel("logical_not", _lower_not),)
SelectV2.kernels = (_kernel("select", _lower_select),)
