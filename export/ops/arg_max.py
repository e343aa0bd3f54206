"""ARG_MAX and ARG_MIN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op
from edgekiln.export.ops.movement import constant_integers, positive_axis
from edgekiln.export.ops.types import SUFFIX, first_input_is


@dataclass(frozen=True)
class ArgMax(Op):
    """The index of the largest element along one dimension, the first one of equals.

    For float32, NaN is never larger: the result is 0 when the first element is one.
    """

    name: ClassVar[str] = "ARG_MAX"
    variants: ClassVar[str] = "int8, int16, float32 in; int32, int64 out; constant axis"
    minimum: ClassVar[bool] = False

    def axis(self, graph: Graph) -> int:
        """Returns the dimension that is searched."""
        axis = constant_integers(self, graph, 1, "axis")
        if len(axis) != 1:
            self.reject(graph, "number of axes", len(axis), 1)
        return positive_axis(self, graph, axis[0], len(self.input(graph, 0).shape))

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, x, DType.INT8, DType.INT16, DType.FLOAT32)
        self.check_type(graph, y, DType.INT32, DType.INT64)
        axis = self.axis(graph)
        expected = (*x.shape[:axis], *x.shape[axis + 1 :])
        if y.elements != math.prod(expected) or x.elements == 0:
            self.reject(graph, f"shape of '{y.name}'", y.shape, expected)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        y, axis, x = self.output(graph), self.axis(graph), np.asarray(inputs[0])
        search = np.argmin if self.minimum else np.argmax
        if x.dtype.kind != "f":
            return (search(x, axis=axis).astype(y.dtype.value).reshape(y.shape),)
        nan = np.isnan(x)
        index = search(np.where(nan, np.inf if self.minimum else -np.inf, x), axis=axis)
        first = np.where(np.take(nan, 0, axis=axis), 0, index)
        return (first.astype(y.dtype.value).reshape(y.shape),)


class ArgMin(ArgMax):
    """The index of the smallest element along one dimension, the first one of equals."""

    name: ClassVar[str] = "ARG_MIN"
    minimum: ClassVar[bool] = True


def _lower(op: ArgMax, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    axis = op.axis(graph)
    scalars = {
        "outer": math.prod(x.shape[:axis]),
        "axis_size": x.shape[axis],
        "inner": math.prod(x.shape[axis + 1 :]),
        "minimum": int(op.minimum),
    }
    call = KernelCall(
        f"ek_arg_max_{SUFFIX[x.dtype]}_{SUFFIX[y.dtype]}",
        f"ek_arg_max_{SUFFIX[x.dtype]}.h",
        scalars,
        {},
        (x.index,),
        y.index,
        specialise=("minimum",),
    )
    return (call,)


def _cost(op: ArgMax, graph: Graph) -> float:
    return 5.0 * op.input(graph, 0).elements + 20.0 * op.output(graph).elements


ArgMax.kernels = tuple(
    Kernel(f"arg_max_{SUFFIX[dtype]}", _lower, _cost, accepts=first_input_is(dtype))
    for dtype in (DType.INT8, DType.INT16, DType.FLOAT32)
)
ArgMin.kernels = ArgMax.kernels
