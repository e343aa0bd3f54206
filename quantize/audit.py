"""Proves that a ``.tflite`` is made of the types that were wanted, and says where it is not.

What the converter is told is a wish: an op without an int8 form stays float, between a
DEQUANTIZE and a QUANTIZE, without a word. This reads the file itself, and needs no TensorFlow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tflite

from edgekiln.errors import BadModelError
from edgekiln.quantize.scheme import Scheme

_TYPES: dict[int, str] = {
    value: name for name, value in vars(tflite.TensorType).items() if not name.startswith("_")
}
_SHOWN = 4


@dataclass(frozen=True)
class _Types:
    """What a scheme is made of.

    Attributes:
        data: Types between ops.
        constants: Types of weights and biases, shapes and axes.
        wanted: Type of which there must be a constant, or nothing was quantized.
    """

    data: tuple[str, ...]
    constants: tuple[str, ...]
    wanted: str = ""

    def __str__(self) -> str:
        also = [name for name in self.constants if name not in self.data]
        constants = f", constants also {_either(also)}" if also else ""
        return f"{_either(self.data)} between ops{constants}"


def _either(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


_FLOAT_DATA = ("FLOAT32", "INT32", "INT64", "BOOL")
_TYPES_OF = {
    Scheme.FLOAT32: _Types(_FLOAT_DATA, _FLOAT_DATA),
    Scheme.FLOAT16: _Types(_FLOAT_DATA, (*_FLOAT_DATA, "FLOAT16"), wanted="FLOAT16"),
    Scheme.DYNAMIC_RANGE: _Types(_FLOAT_DATA, (*_FLOAT_DATA, "INT8"), wanted="INT8"),
    # Biases are int32; shapes, axes and paddings are int32 or int64; some weights are int4.
    Scheme.INT8: _Types(("INT8",), ("INT8", "INT32", "INT64", "INT4")),
    # Biases are int64, and constants that are added or multiplied int16.
    Scheme.INT16X8: _Types(("INT16",), ("INT16", "INT8", "INT32", "INT64")),
}


@dataclass(frozen=True)
class Finding:
    """One tensor that a model of its scheme must not have.

    Attributes:
        tensor: The tensor's name.
        op: The op that makes it, or takes it where none makes it.
        node: Index of that op in its subgraph.
        problem: What is wrong with it, as in "FLOAT32".
    """

    tensor: str
    op: str
    node: int
    problem: str

    def __str__(self) -> str:
        return f"{self.problem} '{self.tensor}' ({self.op}, node {self.node})"


def audit_int8(tflite_bytes: bytes, where: object) -> None:
    """Refuses a model that is not `Scheme.INT8`. Raises as `audit`."""
    audit(tflite_bytes, Scheme.INT8, where)


def audit(tflite_bytes: bytes, scheme: Scheme, where: object) -> None:
    """Refuses a model with a tensor that is not of its scheme's types, or of no fixed shape.

    Args:
        tflite_bytes: The file's content.
        scheme: What it is to be made of.
        where: The file's name, for messages.

    Raises:
        BadModelError: It is not a ``.tflite``, or not as wanted; the message names the
            tensors and ops.
    """
    findings = find_problems(tflite_bytes, where, scheme)
    types = _TYPES_OF[scheme]
    if findings:
        shown = ", ".join(str(finding) for finding in findings[:_SHOWN])
        more = len(findings) - _SHOWN
        raise BadModelError(
            f"is not {scheme} with fixed shapes throughout",
            where=where,
            got=shown + (f" and {more} more" if more > 0 else ""),
            allowed=types,
            hint=f"replace the layers that have no {scheme} form",
        )
    if types.wanted and types.wanted not in _constant_types(tflite_bytes):
        raise BadModelError(
            f"{scheme} found no weights to convert",
            where=where,
            got=f"no {types.wanted} constant",
            hint="all weights are too small, or in layers without such a form",
        )


def _constant_types(tflite_bytes: bytes) -> set[str]:
    model = tflite.Model.GetRootAsModel(tflite_bytes, 0)
    graphs = [model.Subgraphs(number) for number in range(model.SubgraphsLength())]
    tensors = [graph.Tensors(n) for graph in graphs for n in range(graph.TensorsLength())]
    return {_TYPES.get(t.Type(), "") for t in tensors if _is_constant(model, t)}


def find_problems(
    tflite_bytes: bytes, where: object, scheme: Scheme = Scheme.INT8
) -> tuple[Finding, ...]:
    """Returns what keeps a model from being of its scheme, in the order of its ops.

    Raises:
        BadModelError: It is not a ``.tflite``, or is damaged, or holds no op.
    """
    if tflite_bytes[4:8] != b"TFL3":
        raise BadModelError("is not a .tflite file", where=where, hint="check the file")
    try:
        model = tflite.Model.GetRootAsModel(tflite_bytes, 0)
        findings = [
            finding
            for number in range(model.SubgraphsLength())
            for finding in _audit_subgraph(model, model.Subgraphs(number), _TYPES_OF[scheme])
        ]
        ops = sum(model.Subgraphs(n).OperatorsLength() for n in range(model.SubgraphsLength()))
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError):
        raise BadModelError("is a damaged .tflite file", where=where) from None
    if ops == 0:
        raise BadModelError("holds no op", where=where)
    return tuple(findings)


def _audit_subgraph(model: Any, graph: Any, types: _Types) -> Iterator[Finding]:
    seen: set[int] = set()
    for node in range(graph.OperatorsLength()):
        operator = graph.Operators(node)
        op = _op_name(model, operator)
        inputs = (operator.Inputs(n) for n in range(operator.InputsLength()))
        outputs = (operator.Outputs(n) for n in range(operator.OutputsLength()))
        for index in (*inputs, *outputs):
            if index >= 0 and index not in seen:
                seen.add(index)
                tensor = graph.Tensors(index)
                problem = _problem(model, tensor, types)
                if problem:
                    yield Finding(_name(tensor, index), op, node, problem)


def _name(tensor: Any, index: int) -> str:
    """Returns the first of the names which the converter joins when it fuses ops."""
    name: str = (tensor.Name() or b"").decode(errors="replace")
    first, *others = name.split(";")
    return (first or f"tensor {index}") + (";…" if others else "")


def _problem(model: Any, tensor: Any, types: _Types) -> str:
    """Returns what is wrong with a tensor, or an empty text."""
    type_name = _TYPES.get(tensor.Type(), f"type {tensor.Type()}")
    if _is_constant(model, tensor):
        return "" if type_name in types.constants else f"constant {type_name}"
    # The cell state of an LSTM is int16 by design; it stays inside its op.
    if type_name not in types.data and not (tensor.IsVariable() and type_name == "INT16"):
        return type_name
    shape = [tensor.Shape(n) for n in range(tensor.ShapeLength())]
    signature = [tensor.ShapeSignature(n) for n in range(tensor.ShapeSignatureLength())]
    # An unknown batch (the first axis) is harmless: devices take the 1 of the shape.
    fixed = min([1, *shape, *signature[1:]]) >= 1
    return "" if fixed else f"shape {signature or shape} of"


def _is_constant(model: Any, tensor: Any) -> bool:
    buffer = model.Buffers(tensor.Buffer())
    return bool(buffer.DataLength() > 0 or buffer.Size() > 0)


def _op_name(model: Any, operator: Any) -> str:
    code = model.OperatorCodes(operator.OpcodeIndex())
    # Old files keep the code in a byte, new ones in an int32, where the byte says 127.
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    if builtin == tflite.BuiltinOperator.CUSTOM:
        return f"custom op {(code.CustomCode() or b'?').decode(errors='replace')}"
    return str(tflite.utils.BUILTIN_OPCODE2NAME.get(builtin, f"op {builtin}"))
