"""RESHAPE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgekiln.export.ir import Graph
from edgekiln.export.ops.base import Array, Op


@dataclass(frozen=True)
class Reshape(Op):
    """The same bytes under another shape: nothing runs for it."""

    name: ClassVar[str] = "RESHAPE"
    variants: ClassVar[str] = "int8; costs nothing"
    aliases_input: ClassVar[bool] = True

    def check(self, graph: Graph) -> None:
        """Raises an error which names this node unless the operator can be compiled."""
        self.check_counts(graph, range(1, 3))
        x, y = self.input(graph, 0), self.output(graph)
        self.check_int8(graph, x)
        self.check_int8(graph, y)
        if x.elements != y.elements:
            self.reject(graph, "the number of elements changes", y.shape, x.shape)

    def define(self, graph: Graph, inputs: tuple[Array | None, ...]) -> tuple[Array, ...]:
        """Computes the output."""
        return (np.asarray(inputs[0]).reshape(self.output(graph).shape),)
