"""What functions of one element share: int8 forms become tables, float32 forms a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgekiln.export.fixed_point import Int64Array
from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op, as_int64
from edgekiln.export.ops.broadcasting import overlap_elementwise, value_of
from edgekiln.export.ops.types import first_input_is


@dataclass(frozen=True)
class Elementwise(Op):
    """A function of one number, applied to each element."""

    types: ClassVar[tuple[DType, ...]] = (DType.INT8,)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 2))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_type(graph, x, *self.types)
        self.check_type(graph, y, *self.types)
        self.check_same_type(graph, x, y)
        self.check_same_shape(graph, x, y)
        if x.quantization is not None and x.q.per_channel:
            self.unsupported(graph, f"tensor '{x.name}' is quantized per channel")

    def apply(self, graph: Graph, codes: Int64Array) -> Int64Array:
        """Computes the output codes from the input codes."""
        raise AssertionError(f"{type(self).__name__} has no definition")

    def apply_real(self, graph: Graph, values: Array) -> Array:
        """Computes float32 results."""
        raise AssertionError(f"{type(self).__name__} has no definition")

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        y = self.output(graph)
        if y.dtype is DType.FLOAT32:
            with np.errstate(all="ignore"):
                return (self.apply_real(graph, value_of(inputs[0])),)
        codes = as_int64(inputs[0])
        if self.input(graph, 0).dtype is DType.INT8:
            table = self.apply(graph, np.arange(-128, 128, dtype=np.int64))
            return (table[codes + 128].astype(y.dtype.value),)
        return (self.apply(graph, codes).astype(y.dtype.value),)


def check_output_quantization(op: Op, graph: Graph, scale: float, zero_point: int) -> None:
    """Checks that the output has the scale and zero point that the function implies."""
    q = op.output(graph).q
    if abs(q.scale - scale) > 0.001 * scale or q.zero_point != zero_point:
        op.unsupported(
            graph,
            "scale and zero point of the output",
            f"{q.scale:.8g}, {q.zero_point}",
            f"{scale:.8g}, {zero_point}",
        )


def table_through_f32(
    op: Op, graph: Graph, codes: Int64Array, function: Callable[[Array], Array]
) -> Int64Array:
    """Computes int8 output codes by way of real numbers, as the oracle makes its tables.

    Args:
        op: The operator.
        graph: Its graph.
        codes: Input codes.
        function: Of float32 values.
    """
    x, y = op.input(graph, 0).q, op.output(graph).q
    real = np.float32(x.scale) * (codes - x.zero_point).astype(np.float32)
    with np.errstate(all="ignore"):
        scaled = function(real) * (np.float32(1) / np.float32(y.scale))
    bounded = np.clip(np.nan_to_num(scaled, nan=-1e9), np.float32(-1e9), np.float32(1e9))
    whole = np.trunc(bounded)
    rounded = whole + (np.abs(bounded - whole) >= 0.5) * np.sign(bounded)
    return np.clip(rounded.astype(np.int64) + y.zero_point, -128, 127)


def table_kernel() -> Kernel:
    """Returns the kernel that looks int8 codes up in a table made ahead of time."""
    return Kernel(
        "lookup_s8",
        _lower_table,
        lambda op, graph: 6.0 * op.output(graph).elements,
        accepts=first_input_is(DType.INT8),
        overlap=overlap_elementwise,
    )


def _lower_table(op: Elementwise, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    table = op.apply(graph, np.arange(-128, 128, dtype=np.int64)).astype(np.int8)
    call = KernelCall(
        "ek_lookup_s8",
        "ek_lookup_s8.h",
        {"length": y.elements},
        {"table": table},
        (x.index,),
        y.index,
    )
    return (call,)


def real_kernel(
    name: str,
    header: str = "ek_unary_f32.h",
    scalars: Callable[[Any], dict[str, float]] = lambda _op: {},
) -> Kernel:
    """Returns the kernel ``ek_<name>_f32``.

    Args:
        name: Of the function.
        header: The header that defines it.
        scalars: Returns its parameters besides the length.
    """

    def lower(op: Elementwise, graph: Graph) -> tuple[KernelCall, ...]:
        x, y = op.input(graph, 0), op.output(graph)
        parameters: dict[str, int | float] = {"length": y.elements, **scalars(op)}
        return (KernelCall(f"ek_{name}_f32", header, parameters, {}, (x.index,), y.index),)

    return Kernel(
        f"{name}_f32",
        lower,
        lambda op, graph: 40.0 * op.output(graph).elements,
        accepts=first_input_is(DType.FLOAT32),
        overlap=overlap_elementwise,
    )
