"""Proves that a ``.tflite`` is int8 throughout, and says where it is not.

The converter's TFLITE_BUILTINS_INT8 is a wish: an op without an int8 form stays float, between
a DEQUANTIZE and a QUANTIZE, without a word. This reads the file itself, and needs no TensorFlow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tflite

from edgekiln.errors import BadModelError

_TYPES: dict[int, str] = {
    value: name for name, value in vars(tflite.TensorType).items() if not name.startswith("_")
}
#: Biases are int32; shapes, axes and paddings are int32 or int64; some weights are int4.
_CONSTANT_TYPES = frozenset({"INT8", "INT4", "INT32", "INT64"})
_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """One tensor that an all-int8 model must not have.

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
    """Refuses a model in which data between ops is not int8, or a shape is not fixed.

    Constants may also be int32 or int64 (biases, shapes, axes) or int4 (weights).

    Args:
        tflite_bytes: The file's content.
        where: The file's name, for messages.

    Raises:
        BadModelError: It is not a ``.tflite``, or not all int8; the message names the
            tensors and ops.
    """
    findings = find_problems(tflite_bytes, where)
    if findings:
        shown = ", ".join(str(finding) for finding in findings[:_SHOWN])
        more = len(findings) - _SHOWN
        raise BadModelError(
            "is not int8 with fixed shapes throughout",
            where=where,
            got=shown + (f" and {more} more" if more > 0 else ""),
            allowed="INT8 between ops, constants also INT32, INT64 or INT4",
            hint="replace the layers that have no int8 form",
        )


def find_problems(tflite_bytes: bytes, where: object) -> tuple[Finding, ...]:
    """Returns what keeps a model from being int8 with fixed shapes, in the order of its ops.

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
            for finding in _audit_subgraph(model, model.Subgraphs(number))
        ]
        ops = sum(model.Subgraphs(n).OperatorsLength() for n in range(model.SubgraphsLength()))
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError):
        raise BadModelError("is a damaged .tflite file", where=where) from None
    if ops == 0:
        raise BadModelError("holds no op", where=where)
    return tuple(findings)


def _audit_subgraph(model: Any, graph: Any) -> Iterator[Finding]:
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
                problem = _problem(model, tensor)
                if problem:
                    yield Finding(_name(tensor, index), op, node, problem)


def _name(tensor: Any, index: int) -> str:
    """Returns the first of the names which the converter joins when it fuses ops."""
    name: str = (tensor.Name() or b"").decode(errors="replace")
    first, *others = name.split(";")
    return (first or f"tensor {index}") + (";…" if others else "")


def _problem(model: Any, tensor: Any) -> str:
    """Returns what is wrong with a tensor, or an empty text."""
    type_name = _TYPES.get(tensor.Type(), f"type {tensor.Type()}")
    if _is_constant(model, tensor):
        return "" if type_name in _CONSTANT_TYPES else f"constant {type_name}"
    # The cell state of an LSTM is int16 by design; it stays inside its op.
    if type_name != "INT8" and not (tensor.IsVariable() and type_name == "INT16"):
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
