"""Weights of 4 bits as bytes, for targets that have the room for them."""

from __future__ import annotations

from dataclasses import replace

from edgekiln.export.ir import DType, Graph


def widen_int4(graph: Graph) -> Graph:
    """Makes int8 of all int4 constants; codes, scales and results stay what they are."""
    tensors = {
        index: replace(tensor, dtype=DType.INT8) if tensor.dtype is DType.INT4 else tensor
        for index, tensor in graph.tensors.items()
    }
    return graph.replace(tensors=tensors)
