"""PAD."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Array, Kernel, KernelCall, Op

_MAX_RANK = 4


@dataclass(frozen=True)
class Pad(Op):
    """An ``int8`` tensor with the code of zero around it."""

    name: ClassVar[str] = "PAD"
    variants: ClassVar[str] = "int8; constant paddings; up to 4 dimensions after merging"

    def paddings(self, graph: Graph) -> tuple[tuple[int, int], ...]:
        """Returns what stands before and after each dimension."""
        pairs = self.input(graph, 1).value.reshape(-1, 2)
        return tuple((int(before), int(after)) for before, after in pairs)

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(2, 3))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_int8(graph, x)
        self.check_int8(graph, y)
        paddings = self.constant(graph, 1, "paddings")
        if paddings.dtype not in (DType.INT32, DType.INT64):
            self.reject(graph, "type of the paddings", paddings.dtype.value, "int32 or int64")
        if paddings.elements != 2 * len(x.shape):
            self.reject(graph, "number of paddings", paddings.elements, 2 * len(x.shape))
        pairs = self.paddings(graph)
        if any(side < 0 for pair in pairs for side in pair):
            self.reject(graph, "paddings", pairs, "0 or more")
        expected = tuple(b + n + a for n, (b, a) in zip(x.shape, pairs, strict=True))
        if y.shape != expected:
            self.reject(graph, f"shape of '{y.name}'", y.shape, expected)
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
        return merged

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        zero_point = self.output(graph).q.zero_point
        value = np.asarray(inputs[0])
        return (np.pad(value, self.paddings(graph), constant_values=zero_point),)


def _lower(op: Pad, graph: Graph) -> tuple[KernelCall, ...]:
    x, y = op.input(graph, 0), op.output(graph)
    merged = op.merged(graph)
    dims = [(1, 0, 0)] * (_MAX_RANK - len(merged)) + merged
    scalars = {f"size_{i}": size for i, (size, _, _) in enumerate(dims)}
    scalars |= {f"before_{i}": before for i, (_, before, _) in enumerate(dims)}
    scalars |= {f"after_{i}": after for i, (_, _, after) in enumerate(dims)}
    scalars["value"] = y.q.zero_point
    return (KernelCall("ek_pad_s8", "ek_pad_s8.h", scalars, {}, (x.index,), y.index),)


def _cost(op: Pad, graph: Graph) -> float:
    return 1.0 * op.output(graph).elements + 20.0 * math.prod(op.output(graph).shape[:-1])


Pad.kernels = (Kernel("pad_s8", _lower, _cost),)
