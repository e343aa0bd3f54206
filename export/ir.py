"""The compiler's graph: tensors, operators and the model as frozen dataclasses.

A graph holds operators in the order in which they run. Tensors are named by their index
in the model file, from the reader to the generated code, so that every value can be found
again in the oracle. Passes return new graphs; `edgekiln.export.verifier` checks each one.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgekiln.export.ops.base import Op


_C_TYPES = {
    "int4": "int8_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "float32": "float",
    "float64": "double",
    "bool": "uint8_t",
    "resource": "int32_t",
}


def c_type_of(array: NDArray[Any]) -> str:
    """Returns the C type of an array's elements."""
    return _C_TYPES[array.dtype.name]


class DType(enum.Enum):
    """The element types that a tensor can have. The value is numpy's name.

    INT4 is for constants alone; numpy has no such type: their values are int8 arrays.
    RESOURCE names a variable, and is gone when a model has been read.
    """

    INT4 = "int4"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT32 = "uint32"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    FLOAT16 = "float16"
    BOOL = "bool"
    RESOURCE = "resource"

    @property
    def bytes(self) -> int:
        """Size of one element in bytes, as the graph holds it."""
        odd = {DType.INT4: 1, DType.RESOURCE: 4}
        return odd[self] if self in odd else np.dtype(self.value).itemsize

    @property
    def c_type(self) -> str:
        """The C type of one element."""
        return _C_TYPES[self.value]


@dataclass(frozen=True)
class Quantization:
    """Affine quantization: ``real = scale * (code - zero_point)``.

    Attributes:
        scales: float32 values, one per tensor or one per index along ``axis``.
        zero_points: As many as ``scales``.
        axis: The dimension that per-channel scales belong to.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = 0

    @property
    def scale(self) -> float:
        """The scale of a tensor that is quantized per tensor."""
        return self.scales[0]

    @property
    def zero_point(self) -> int:
        """The zero point of a tensor that is quantized per tensor."""
        return self.zero_points[0]

    @property
    def per_channel(self) -> bool:
        """Tells whether there is more than one scale."""
        return len(self.scales) > 1


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of the model.

    Attributes:
        index: Its number in the model file.
        name: Its name in the model file, for messages.
        shape: Its dimensions; () for a scalar.
        dtype: Type of its elements.
        quantization: None when it carries none.
        data: The constant's value in ``shape`` (read-only), or None for an activation.
        is_variable: Whether the value is kept from one inference to the next.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: DType
    quantization: Quantization | None = None
    data: NDArray[Any] | None = None
    is_variable: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.elements * self.dtype.bytes

    @property
    def is_constant(self) -> bool:
        """Tells whether the value is part of the model."""
        return self.data is not None

    @property
    def q(self) -> Quantization:
        """The quantization of a tensor which the verifier has seen to carry one."""
        if self.quantization is None:
            raise AssertionError(f"tensor {self.index} carries no quantization")
        return self.quantization

    @property
    def value(self) -> NDArray[Any]:
        """The value of a tensor which is known to be constant."""
        if self.data is None:
            raise AssertionError(f"tensor {self.index} is not a constant")
        return self.data


@dataclass(frozen=True)
class Graph:
    """A model: its tensors, its operators in running order, its inputs and outputs.

    Attributes:
        name: Where the model came from, for messages.
        tensors: By index.
        ops: In running order.
        inputs: Indices of the model's inputs, in the model's order.
        outputs: Indices of the model's outputs, in the model's order.
        initial: Value of each state before the first inference, by tensor index.
    """

    name: str
    tensors: Mapping[int, Tensor] = field(repr=False)
    ops: tuple[Op, ...] = field(repr=False)
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    initial: Mapping[int, NDArray[Any]] = field(default_factory=dict, repr=False)

    def tensor(self, index: int) -> Tensor:
        """Returns the tensor with this index."""
        return self.tensors[index]

    def states(self) -> tuple[int, ...]:
        """Returns the indices of the variables that operators use, in order of first use."""
        return tuple(dict.fromkeys(t for op in self.ops for t in op.states(self)))

    def activations(self) -> tuple[int, ...]:
        """Returns the indices of all tensors that exist only while the model runs."""
        used = dict.fromkeys(self.inputs)
        for op in self.ops:
            used.update(dict.fromkeys(op.activation_inputs(self)))
            used.update(dict.fromkeys(op.outputs))
        return tuple(used)

    def replace(self, **changes: Any) -> Graph:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def dump_graph(graph: Graph) -> str:
    """Returns the graph as text: one line per operator, stable between runs."""
    lines = [f"inputs  {', '.join(_describe(graph, t) for t in graph.inputs)}"]
    for op in graph.ops:
        attributes = " ".join(f"{key}={value}" for key, value in op.attributes().items())
        inputs = ", ".join(_describe(graph, t) if t >= 0 else "-" for t in op.inputs)
        outputs = ", ".join(_describe(graph, t) for t in op.outputs)
        lines.append(
            f"{op.index:3d} {op.name} {attributes + ' ' if attributes else ''}"
            f"({inputs}) -> {outputs}"
        )
    lines.append(f"outputs {', '.join(_describe(graph, t) for t in graph.outputs)}")
    return "\n".join(lines) + "\n"


def _describe(graph: Graph, index: int) -> str:
    tensor = graph.tensor(index)
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    kind = "const " if tensor.is_constant else ""
    text = f"t{index}:{kind}{tensor.dtype.value}[{shape}]"
    if tensor.quantization is not None:
        q = tensor.quantization
        text += f"*{len(q.scales)} scales" if q.per_channel else f"*{q.scale:.6g}@{q.zero_point}"
    return text
