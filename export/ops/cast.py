"""CAST."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op
from edgekiln.export.ops.broadcasting import overlap_elementwise, value_of
from edgekiln.export.ops.types import bounds

_FROM = {
    DType.INT8: "s8",
    DType.INT16: "s16",
    DType.INT32: "s32",
    DType.FLOAT32: "f32",
    DType.BOOL: "bool",
}
_TO = {DType.INT8: "s8", DType.INT16: "s16", DType.INT32: "s32", DType.FLOAT32: "f32"}


@dataclass(frozen=True)
class Cast(Op):
    """Numbers of another type; scales play no part.

    Integers lose their upper bits, real numbers their fraction. Real numbers which the type
    cannot hold, for which C defines nothing, become its nearest end, NaN its lower end.
    """

    name: ClassVar[str] = "CAST"
    variants: ClassVar[str] = "int8, int16, int32, float32, bool to int8, int16, int32, float32"

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        for tensor, allowed in ((x, _FROM), (y, _TO)):
            if tensor.dtype not in allowed:
                names = " or ".join(dtype.value for dtype in allowed)
                self.unsupported(graph, f"type of '{tensor.name}'", tensor.dtype.value, names)
        self.check_same_shape(graph, x, y)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        x, y = self.input(graph, 0).dtype, self.output(graph).dtype
        value = value_of(inputs[0])
        if x is DType.FLOAT32 and y is not DType.FLOAT32:
            low, high = bounds(y)
            number = np.nan_to_num(value.astype(np.float64), nan=low, posinf=high, neginf=low)
            return (np.trunc(np.clip(number, low, high)).astype(y.value),)
        return (value.astype(y.value),)


def _lower(op: Cast, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    kernel = f"ek_cast_{_FROM[x.dtype]}_{_TO[y.dtype]}"
    return (KernelCall(kernel, "ek_cast.h", {"length": y.elements}, {}, (x.index,), y.index),)


Cast.kernels = (
    Kernel(
        "cast",
        _lower,
        lambda op, graph: 6.0 * op.output(graph).elements,
        overlap=overlap_elementwise,
    ),
)
