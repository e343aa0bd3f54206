"""Reads a .tflite file into a graph.

The file is untrusted: every count is bounded by the file's size before it is used, and
whatever the flatbuffer accessors stumble over becomes a `BadModelError`.
"""

from __future__ import annotations

import enum
import importlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadModelError, EdgekilnError, UnsupportedOpError
from edgekiln.export.ir import DType, Graph, Quantization, Tensor
from edgekiln.export.ops.base import Op
from edgekiln.export.ops.registry import OPS
from edgekiln.export.ops.variables import CallOnce
from edgekiln.export.variables import resolve_variables

E = TypeVar("E", bound=enum.Enum)

FILE_IDENTIFIER = b"TFL3"
_MAX_RANK = 8

_MAX_ELEMENTS = 2**22
"""Of one activation: more than a microcontroller holds, and little enough to compute here."""

_MAX_SCALE = 2.0**40
"""With activations at least the inverse of it, no product or ratio of scales overflows."""

_ENTRIES_PER_BYTE = 4
"""In a sound file every entry of a list takes a byte or more, and few lists are shared."""

# What the generated flatbuffer accessors raise when offsets lead out of the file.
_ACCESSOR_ERRORS = (
    struct.error,
    IndexError,
    TypeError,
    ValueError,
    OverflowError,
    AttributeError,
    MemoryError,
    RecursionError,
)


@dataclass(frozen=True)
class OperatorReader:
    """One operator of the file, as its class sees it while it is read.

    Attributes:
        index: Its number in the subgraph.
        inputs: Tensor indices, -1 for an absent optional input.
        outputs: Tensor indices.
    """

    index: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    _operator: Any
    _name: str
    _where: str

    def options(self, kind: str) -> Any:
        """Returns the operator's options as the flatbuffer class ``kind``.

        Raises:
            BadModelError: The operator carries no options, or others.
        """
        table = self._operator.BuiltinOptions()
        module = importlib.import_module("tflite.BuiltinOptions")
        found = self._operator.BuiltinOptionsType()
        if table is None or found != getattr(module.BuiltinOptions, kind):
            raise BadModelError(
                "options are missing or of another operator",
                where=self.where(),
                got=f"type {found}",
                allowed=kind,
            )
        options = getattr(importlib.import_module(f"tflite.{kind}"), kind)()
        options.Init(table.Bytes, table.Pos)
        return options

    def enum(self, kind: type[E], value: int, what: str) -> E:
        """Converts a number of the file to an enum."""
        try:
            return kind(value)
        except ValueError:
            raise BadModelError(f"unknown {what}", where=self.where(), got=value) from None

    def where(self) -> str:
        """Names the node for a message."""
        return f"{self._where}: node {self.index} {self._name}"

    def reject(self, what: str, got: object, allowed: object) -> NoReturn:
        """Raises an error for an operator that contradicts the file format."""
        raise BadModelError(what, where=self.where(), got=got, allowed=allowed)

    def unsupported(self, what: str, got: object, allowed: object) -> NoReturn:
        """Raises an error for options that are right but not supported."""
        raise UnsupportedOpError(what, where=self.where(), got=got, allowed=allowed)


def read_tflite(data: bytes, where: str) -> Graph:
    """Reads a .tflite file: its first subgraph, and the initial values of its variables.

    Args:
        data: The file.
        where: Its name, for messages.

    Raises:
        BadModelError: The file is damaged, or not a .tflite file.
        UnsupportedOpError: It holds an operator, or several subgraphs, that are not supported.
    """
    if len(data) < 16 or data[4:8] != FILE_IDENTIFIER:
        raise BadModelError(
            "not a .tflite file",
            where=where,
            got=f"{len(data)} bytes" + (f" with identifier {data[4:8]!r}" if data[4:8] else ""),
            allowed=f"identifier {FILE_IDENTIFIER!r} at byte 4",
        )
    try:
        return _ModelReader(data, where).read()
    except EdgekilnError:
        raise
    except _ACCESSOR_ERRORS as error:
        raise BadModelError(
            f"damaged .tflite file: {type(error).__name__} while reading it",
            where=where,
            hint="check that the file was copied whole",
        ) from None


class _ModelReader:
    def __init__(self, data: bytes, where: str) -> None:
        from tflite.Model import Model

        self.data = data
        self.where = where
        self.entries_left = _ENTRIES_PER_BYTE * len(data)
        self.model = Model.GetRootAs(data, 0)

    def bounded(self, count: int, what: str) -> range:
        """Returns range(count) when the file is large enough to hold as many entries.

        Lists may lie over each other in a file, so that its size bounds their sum as well.
        """
        self.entries_left -= max(count, 0)
        if not 0 <= count <= len(self.data) or self.entries_left < 0:
            raise BadModelError(
                f"number of {what}",
                where=self.where,
                got=count,
                allowed=f"at most the file's {len(self.data)} bytes",
            )
        return range(count)

    def read(self) -> Graph:
        subgraphs = self.model.SubgraphsLength()
        if subgraphs < 1:
            raise BadModelError("the file holds no subgraph", where=self.where)
        main = self.read_subgraph(0, self.where)
        called = sorted({op.subgraph for op in main.ops if isinstance(op, CallOnce)})
        others = set(self.bounded(subgraphs, "subgraphs")) - {0}
        if set(called) - others:
            raise BadModelError(
                "CALL_ONCE names a subgraph that is not there",
                where=self.where,
                got=called,
                allowed=f"1 to {subgraphs - 1}",
            )
        if others - set(called):
            raise UnsupportedOpError(
                "several subgraphs",
                where=self.where,
                got=subgraphs,
                allowed="1, and those which CALL_ONCE runs (no control flow)",
            )
        further = {i: self.read_subgraph(i, f"{self.where}: subgraph {i}") for i in called}
        return resolve_variables(main, further)

    def read_subgraph(self, number: int, where: str) -> Graph:
        subgraph = self.model.Subgraphs(number)
        count = subgraph.TensorsLength()
        tensors = {
            i: self.read_tensor(subgraph.Tensors(i), i) for i in self.bounded(count, "tensors")
        }
        operators = self.bounded(subgraph.OperatorsLength(), "operators")
        return Graph(
            where,
            tensors,
            tuple(self.read_op(subgraph.Operators(i), i, count) for i in operators),
            self.indices(subgraph.Inputs, subgraph.InputsLength(), count, "model inputs"),
            self.indices(subgraph.Outputs, subgraph.OutputsLength(), count, "model outputs"),
            {i: _initial_value(tensor) for i, tensor in tensors.items() if tensor.is_variable},
        )

    def indices(
        self, get: Callable[[int], int], length: int, tensors: int, what: str, least: int = 0
    ) -> tuple[int, ...]:
        found = tuple(int(get(i)) for i in self.bounded(length, what))
        if any(not least <= index < tensors for index in found):
            raise BadModelError(
                f"{what} name tensors that are not there",
                where=self.where,
                got=found,
                allowed=f"{least} to {tensors - 1}",
            )
        return found

    def read_op(self, operator: Any, index: int, tensors: int) -> Op:
        code_index = operator.OpcodeIndex()
        if not 0 <= code_index < self.model.OperatorCodesLength():
            raise BadModelError(
                f"node {index} names an operator code that is not there",
                where=self.where,
                got=code_index,
            )
        name = self.operator_name(self.model.OperatorCodes(code_index))
        kind = OPS.get(name)
        if kind is None:
            raise UnsupportedOpError(
                f"operator {name} is not supported",
                where=f"{self.where}: node {index}",
                hint="edgekiln supported-ops lists those that are",
            )
        what = f"inputs of node {index}"
        inputs = self.indices(operator.Inputs, operator.InputsLength(), tensors, what, least=-1)
        what = f"outputs of node {index}"
        outputs = self.indices(operator.Outputs, operator.OutputsLength(), tensors, what)
        return kind.read(OperatorReader(index, inputs, outputs, operator, name, self.where))

    def operator_name(self, code: Any) -> str:
        # Files from before 2020 hold the code in a byte, newer ones (also) in an int32.
        number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
        from tflite.BuiltinOperator import BuiltinOperator

        if number == BuiltinOperator.CUSTOM:
            custom = bytes(code.CustomCode() or b"").decode("utf-8", "replace")
            return f"CUSTOM {custom!r}"
        names: dict[int, str] = {v: k for k, v in vars(BuiltinOperator).items() if k[0] != "_"}
        return names.get(number, f"number {number}")

    def read_tensor(self, tensor: Any, index: int) -> Tensor:
        name = self.read_name(tensor, index)
        where = f"{self.where}: tensor {index} '{name}'"
        rank = tensor.ShapeLength()
        if rank > _MAX_RANK:
            raise BadModelError(
                "number of dimensions", where=where, got=rank, allowed=f"at most {_MAX_RANK}"
            )
        shape = tuple(int(tensor.Shape(i)) for i in range(rank))
        if any(size < 0 for size in shape):
            raise BadModelError("shape", where=where, got=shape)
        signature = tuple(
            int(tensor.ShapeSignature(i))
            for i in range(min(tensor.ShapeSignatureLength(), _MAX_RANK))
        )
        if any(size < 0 for size in signature[1:]):
            raise UnsupportedOpError(
                "shape that is known only at run time",
                where=where,
                got=signature,
                hint="convert the model with fixed shapes",
            )
        dtype = self.read_dtype(tensor.Type(), where)
        data = self.read_data(tensor.Buffer(), shape, dtype, where)
        if data is None and math.prod(shape) > _MAX_ELEMENTS:
            allowed = f"at most {_MAX_ELEMENTS} elements"
            raise UnsupportedOpError("size of a tensor", where=where, got=shape, allowed=allowed)
        least_scale = 0.0 if data is not None else 1 / _MAX_SCALE
        quantization = self.read_quantization(tensor, least_scale, where)
        is_variable = bool(tensor.IsVariable()) and data is None
        return Tensor(index, name, shape, dtype, quantization, data, is_variable)

    def read_name(self, tensor: Any, index: int) -> str:
        raw = tensor.Name() or b""
        self.bounded(len(raw), "characters of names")
        text = raw.decode("utf-8", "replace")
        return "".join(c if c.isprintable() else "\ufffd" for c in text) or f"tensor {index}"

    def read_dtype(self, number: int, where: str) -> DType:
        from tflite.TensorType import TensorType

        name = next((n for n, v in vars(TensorType).items() if v == number and n[0] != "_"), "")
        try:
            return DType[name]
        except KeyError:
            raise UnsupportedOpError(
                "element type",
                where=where,
                got=name or number,
                allowed=", ".join(d.name for d in DType),
            ) from None

    def read_data(
        self, buffer: int, shape: tuple[int, ...], dtype: DType, where: str
    ) -> NDArray[Any] | None:
        if not 0 <= buffer < self.model.BuffersLength():
            raise BadModelError("names a buffer that is not there", where=where, got=buffer)
        table = self.model.Buffers(buffer)
        if table.DataLength() == 0 and math.prod(shape) == 0:
            return np.empty(shape, dtype.value)
        if table.DataLength() == 0:
            if dtype is DType.INT4:
                raise UnsupportedOpError("int4 tensor that is not a constant", where=where)
            return None
        raw = table.DataAsNumpy()
        packed = dtype is DType.INT4
        wanted = -(-math.prod(shape) // 2) if packed else math.prod(shape) * dtype.bytes
        if isinstance(raw, int) or len(raw) != table.DataLength() or len(raw) != wanted:
            raise BadModelError(
                "size of the constant",
                where=where,
                got=f"{table.DataLength()} bytes",
                allowed=f"{wanted} bytes",
            )
        if packed:
            data = _unpack_int4(raw, math.prod(shape)).reshape(shape)
        else:
            # A view of the file: many tensors may share one buffer.
            data = raw.view(dtype.value).reshape(shape)
        if dtype is DType.BOOL:
            data = raw.reshape(shape) != 0
        data.flags.writeable = False
        return data

    def read_quantization(self, tensor: Any, least_scale: float, where: str) -> Quantization | None:
        q = tensor.Quantization()
        if q is None or q.ScaleLength() == 0:
            return None
        count = len(self.bounded(q.ScaleLength(), "scales"))
        scales = tuple(float(q.Scale(i)) for i in range(count))
        if not all(0 < scale <= _MAX_SCALE and scale >= least_scale for scale in scales):
            allowed = f"above {least_scale:.4g}, up to {_MAX_SCALE:.4g}"
            raise BadModelError("scale", where=where, got=scales[:4], allowed=allowed)
        zero_points = self.read_zero_points(q, count, where)
        # Converters leave a wrong dimension on biases; operators check it where it matters.
        return Quantization(scales, zero_points, q.QuantizedDimension())

    def read_zero_points(self, q: Any, count: int, where: str) -> tuple[int, ...]:
        if q.ZeroPointLength() == 0:
            return (0,) * count
        if q.ZeroPointLength() not in (1, count):
            raise BadModelError(
                "number of zero points", where=where, got=q.ZeroPointLength(), allowed=count
            )
        found = tuple(int(q.ZeroPoint(i)) for i in range(q.ZeroPointLength()))
        if any(not -(2**15) <= z < 2**16 for z in found):
            raise BadModelError("zero point", where=where, got=found[:4])
        return found if len(found) == count else found * count


def _unpack_int4(raw: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """Returns int4 codes as int8: two a byte, the first in the low half."""
    halves = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8)


def _initial_value(tensor: Tensor) -> NDArray[Any]:
    """Returns a variable's value before the first inference (``ResetTensorData``)."""
    of_int8 = tensor.dtype is DType.INT8 and tensor.quantization is not None
    fill = tensor.q.zero_point if of_int8 else 0
    return np.full(tensor.shape, fill, tensor.dtype.value)
