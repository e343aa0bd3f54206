"""Builds small .tflite files for tests, operator by operator."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from numpy.typing import NDArray


@dataclass
class BuiltTensor:
    """A tensor to build; ``data`` makes it a constant, ``is_variable`` a state."""

    shape: tuple[int, ...]
    dtype: str = "INT8"
    scale: Sequence[float] = ()
    zero_point: Sequence[int] = ()
    axis: int = 0
    data: NDArray[Any] | None = None
    name: str = ""
    is_variable: bool = False


@dataclass
class BuiltOp:
    """An operator to build: its name, tensor numbers, options class and option values."""

    name: str
    inputs: Sequence[int]
    outputs: Sequence[int]
    options: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def activation(shape: Sequence[int], scale: float, zero_point: int) -> BuiltTensor:
    """An int8 tensor that exists only while the model runs."""
    return BuiltTensor(tuple(shape), "INT8", (scale,), (zero_point,))


def constant(array: NDArray[Any], scale: Sequence[float] = (), axis: int = 0) -> BuiltTensor:
    """A constant with symmetric quantization."""
    kind = {"int8": "INT8", "int32": "INT32", "float32": "FLOAT32"}[array.dtype.name]
    return BuiltTensor(array.shape, kind, tuple(scale), (0,) * len(scale), axis, array)


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes a byte, the first in the low half."""
    flat = np.append(codes.reshape(-1), np.zeros(codes.size % 2, np.int8)).astype(np.uint8) & 15
    packed: NDArray[np.uint8] = flat[0::2] | (flat[1::2] << 4)
    return packed


@dataclass
class BuiltSubgraph:
    """A subgraph to build."""

    tensors: Sequence[BuiltTensor]
    ops: Sequence[BuiltOp]
    inputs: Sequence[int]
    outputs: Sequence[int]


def build_model(
    tensors: Sequence[BuiltTensor],
    ops: Sequence[BuiltOp],
    inputs: Sequence[int],
    outputs: Sequence[int],
    further: Sequence[BuiltSubgraph] = (),
) -> bytes:
    """Returns the .tflite file of a model, with further subgraphs if wanted."""
    b = flatbuffers.Builder(1024)
    subgraphs = [BuiltSubgraph(tensors, ops, inputs, outputs), *further]
    data = [t.data for s in subgraphs for t in s.tensors if t.data is not None]
    buffer_offsets = [_build_buffer(b, data) for data in (None, *data)]
    numbers = iter(range(1, len(buffer_offsets)))
    names = sorted({op.name for s in subgraphs for op in s.ops})
    subgraph_offsets = [_build_subgraph(b, s, names, numbers) for s in subgraphs]
    codes = [_build_code(b, name) for name in names]
    model = _table(
        b,
        "Model",
        {
            "Version": 3,
            "OperatorCodes": _offsets(b, codes),
            "Subgraphs": _offsets(b, subgraph_offsets),
            "Buffers": _offsets(b, buffer_offsets),
        },
    )
    b.Finish(model, b"TFL3")
    return bytes(b.Output())


def _build_subgraph(
    b: flatbuffers.Builder, subgraph: BuiltSubgraph, names: Sequence[str], numbers: Iterator[int]
) -> int:
    tensor_offsets = [
        _build_tensor(b, t, 0 if t.data is None else next(numbers), i)
        for i, t in enumerate(subgraph.tensors)
    ]
    op_offsets = [_build_op(b, op, names.index(op.name)) for op in subgraph.ops]
    lists = {
        "Tensors": _offsets(b, tensor_offsets),
        "Inputs": b.CreateNumpyVector(np.array(subgraph.inputs, np.int32)),
        "Outputs": b.CreateNumpyVector(np.array(subgraph.outputs, np.int32)),
        "Operators": _offsets(b, op_offsets),
    }
    return _table(b, "SubGraph", lists)


def _table(b: flatbuffers.Builder, kind: str, values: Mapping[str, Any]) -> int:
    module = importlib.import_module(f"tflite.{kind}")
    getattr(module, f"{kind}Start")(b)
    for key, value in values.items():
        getattr(module, f"{kind}Add{key}")(b, value)
    return int(getattr(module, f"{kind}End")(b))


def _offsets(b: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _build_buffer(b: flatbuffers.Builder, data: NDArray[Any] | None) -> int:
    if data is None:
        return _table(b, "Buffer", {})
    raw = np.frombuffer(data.tobytes(), np.uint8)
    return _table(b, "Buffer", {"Data": b.CreateNumpyVector(raw)})


def _build_tensor(b: flatbuffers.Builder, t: BuiltTensor, buffer: int, number: int) -> int:
    from tflite.TensorType import TensorType

    values: dict[str, Any] = {
        "Name": b.CreateString(t.name or f"t{number}"),
        "Shape": b.CreateNumpyVector(np.array(t.shape, np.int32)),
        "Type": getattr(TensorType, t.dtype),
        "Buffer": buffer,
        "IsVariable": t.is_variable,
    }
    if t.scale:
        values["Quantization"] = _table(
            b,
            "QuantizationParameters",
            {
                "Scale": b.CreateNumpyVector(np.array(t.scale, np.float32)),
                "ZeroPoint": b.CreateNumpyVector(np.array(t.zero_point, np.int64)),
                "QuantizedDimension": t.axis,
            },
        )
    return _table(b, "Tensor", values)


def _build_op(b: flatbuffers.Builder, op: BuiltOp, code: int) -> int:
    from tflite.BuiltinOptions import BuiltinOptions

    values: dict[str, Any] = {
        "OpcodeIndex": code,
        "Inputs": b.CreateNumpyVector(np.array(op.inputs, np.int32)),
        "Outputs": b.CreateNumpyVector(np.array(op.outputs, np.int32)),
    }
    if op.options:
        values["BuiltinOptionsType"] = getattr(BuiltinOptions, op.options)
        options = {
            key: b.CreateString(value) if isinstance(value, str) else value
            for key, value in op.values.items()
        }
        values["BuiltinOptions"] = _table(b, op.options, options)
    return _table(b, "Operator", values)


def _build_code(b: flatbuffers.Builder, name: str) -> int:
    from tflite.BuiltinOperator import BuiltinOperator

    number = getattr(BuiltinOperator, name)
    return _table(
        b,
        "OperatorCode",
        {
            "DeprecatedBuiltinCode": min(number, 127),
            "BuiltinCode": number,
            "Version": 1,
        },
    )
