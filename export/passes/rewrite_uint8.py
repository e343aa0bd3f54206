"""Rewrites models of the old uint8 quantization to int8, where that changes no result.

A uint8 code and its int8 code differ by 128, and so do their zero points: what stands for a
difference of the two stays the same. Inputs and outputs of the model keep their uint8 codes;
QUANTIZE stands between them and the rest.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from edgekiln.export.fixed_point import quantize_multiplier
from edgekiln.export.ir import DType, Graph, Quantization, Tensor
from edgekiln.export.ops.add import Add, Sub
from edgekiln.export.ops.arithmetic import Mul
from edgekiln.export.ops.base import Op
from edgekiln.export.ops.conv_2d import Conv2D
from edgekiln.export.ops.depthwise_conv_2d import DepthwiseConv2D
from edgekiln.export.ops.gather import Gather, GatherNd
from edgekiln.export.ops.movement import Movement
from edgekiln.export.ops.pad import Pad
from edgekiln.export.ops.pool_2d import AveragePool2D, MaxPool2D
from edgekiln.export.ops.quantize import Dequantize, Quantize
from edgekiln.export.ops.reduce import Mean
from edgekiln.export.ops.relu import Relu
from edgekiln.export.ops.reshape import Reshape, Shape
from edgekiln.export.ops.resize import ResizeNearestNeighbor
from edgekiln.export.ops.sigmoid import Logistic, Tanh
from edgekiln.export.ops.softmax import Softmax
from edgekiln.export.ops.space_to_batch import SpaceBatch

_MOVES = (
    Movement,
    Pad,
    Reshape,
    Shape,
    SpaceBatch,
    ResizeNearestNeighbor,
    Gather,
    GatherNd,
    Quantize,
    Dequantize,
)
"""Operators that take uint8 as it is; alone they are no reason to rewrite a model."""

_EXACT = frozenset({Add, Sub, Mul, MaxPool2D, Mean, Relu, Logistic, Tanh, Softmax})
"""Operators that give the same on int8 codes as they are."""


def rewrite_uint8(graph: Graph) -> Graph:
    """Returns the model on int8 codes, when it computes on uint8 codes.

    Raises:
        UnsupportedOpError: An operator would give other results on int8 codes.
    """
    computing = [op for op in graph.ops if not isinstance(op, _MOVES) and _touched(op, graph)]
    if not computing:
        return graph
    return _Rewrite(graph).run()


def _touched(op: Op, graph: Graph) -> list[int]:
    """Returns the quantized uint8 tensors that an operator reads or writes."""
    return [t for t in (*op.inputs, *op.outputs) if t >= 0 and _is_legacy(graph.tensor(t))]


def _is_legacy(tensor: Tensor) -> bool:
    return tensor.dtype is DType.UINT8 and tensor.quantization is not None


class _Rewrite:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tensors = dict(graph.tensors)
        self.next_tensor = max(graph.tensors) + 1
        self.next_op = max(op.index for op in graph.ops) + 1

    def run(self) -> Graph:
        for op in self.graph.ops:
            self.check_exact(op)
        for tensor in self.graph.tensors.values():
            if _is_legacy(tensor):
                self.tensors[tensor.index] = _shifted(tensor)
        ops = [self.rewrite(op) for op in self.graph.ops]
        return self.with_edges(ops)

    def check_exact(self, op: Op) -> None:
        known = isinstance(op, (*_MOVES, Conv2D, DepthwiseConv2D, AveragePool2D))
        if known or type(op) in _EXACT or not _touched(op, self.graph):
            return
        op.unsupported(
            self.graph,
            "the operator computes on uint8 codes, and its result on int8 codes is not the same",
            hint="convert the model with int8 quantization",
        )

    def rewrite(self, op: Op) -> Op:
        if isinstance(op, AveragePool2D) and _touched(op, self.graph):
            return dataclasses.replace(op, halves_up=True)
        if isinstance(op, (Conv2D, DepthwiseConv2D)) and _touched(op, self.graph):
            weights = self.filter_of(op)
            self.tensors[weights.index] = weights
            return dataclasses.replace(op, inputs=(op.inputs[0], weights.index, *op.inputs[2:]))
        return op

    def filter_of(self, op: Conv2D | DepthwiseConv2D) -> Tensor:
        """Returns the filter as int8 with zero point 0, under a number of its own."""
        x, y = op.input(self.graph, 0), op.output(self.graph)
        weights = op.constant(self.graph, 1, "filter")
        for tensor in (x, weights, y):
            if not _is_legacy(tensor) or tensor.q.per_channel:
                op.unsupported(self.graph, f"quantization of '{tensor.name}'", tensor.dtype.value)
        codes = weights.value.astype(np.int64) - weights.q.zero_point
        if codes.min(initial=0) < -128 or codes.max(initial=0) > 127:
            op.unsupported(
                self.graph,
                "filter codes less their zero point do not fit int8",
                f"{codes.min()} to {codes.max()}",
                "-128 to 127",
                hint="convert the model with int8 quantization",
            )
        # uint8 models round the product of the scales to float32, int8 models do not.
        product = float(np.float32(x.q.scale) * np.float32(weights.q.scale))
        scale = product / x.q.scale
        wanted = quantize_multiplier(product / y.q.scale)
        if quantize_multiplier(x.q.scale * scale / y.q.scale) != wanted:
            op.unsupported(self.graph, "scales that lead to another multiplier on int8 codes")
        index = self.next_tensor
        self.next_tensor += 1
        data = codes.astype(np.int8)
        data.flags.writeable = False
        return dataclasses.replace(
            weights,
            index=index,
            dtype=DType.INT8,
            quantization=Quantization((scale,), (0,)),
            data=data,
        )

    def with_edges(self, ops: list[Op]) -> Graph:
        """Gives inputs and outputs of the model their uint8 codes back."""
        graph = self.graph
        edges = dict.fromkeys(t for t in (*graph.inputs, *graph.outputs))
        inner: dict[int, int] = {}
        for edge in edges:
            if _is_legacy(graph.tensor(edge)):
                inner[edge] = self.next_tensor
                self.tensors[self.next_tensor] = dataclasses.replace(
                    self.tensors[edge], index=self.next_tensor
                )
                self.tensors[edge] = graph.tensor(edge)
                self.next_tensor += 1
        renamed = [
            dataclasses.replace(
                op,
                inputs=tuple(inner.get(t, t) for t in op.inputs),
                outputs=tuple(inner.get(t, t) for t in op.outputs),
            )
            for op in ops
        ]
        before = [self.quantize(t, inner[t]) for t in graph.inputs if t in inner]
        after = [
            self.quantize(inner[t], t)
            for t in graph.outputs
            if t in inner and t not in graph.inputs
        ]
        return graph.replace(tensors=self.tensors, ops=(*before, *renamed, *after))

    def quantize(self, source: int, result: int) -> Quantize:
        op = Quantize(self.next_op, (source,), (result,))
        self.next_op += 1
        return op


def _shifted(tensor: Tensor) -> Tensor:
    """Returns a uint8 tensor as int8."""
    q = tensor.q
    zero_points = tuple(zero_point - 128 for zero_point in q.zero_points)
    data = None
    if tensor.data is not None:
        data = np.asarray(tensor.data ^ np.uint8(0x80)).view(np.int8)
        data.flags.writeable = False
    return dataclasses.replace(
        tensor,
        dtype=DType.INT8,
        quantization=Quantization(q.scales, zero_points, q.axis),
        data=data,
    )
