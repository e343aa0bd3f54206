"""Changes weights in a ``.tflite`` file: codes, scales and biases of its linear operators.

The converter derives every weight scale from the largest magnitude; a file with learned scales,
corrected biases or 4-bit codes has to be written by other means. All else in the file stays.

Four-bit codes are stored two to a byte, the first in the low half, as type INT4, where the
operator has kernels for it (CONV_2D, DEPTHWISE_CONV_2D and FULLY_CONNECTED); else, in
TRANSPOSE_CONV, one to a byte as INT8 with the 4-bit scale, which computes the same.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
import tflite

from edgekiln.errors import BadModelError, ToolMissingError

Array = npt.NDArray[Any]

_KERNEL_INPUT = 1
#: Position of the operand and the bias among an operator's inputs, axis of the output channels,
#: the Keras kernel's axes in the order of the file, and the operator's version with int4.
_OPERATORS = {
    "CONV_2D": (0, 2, 0, (3, 0, 1, 2), 7),
    # The converter would write 7, which LiteRT's reference resolver lacks; its kernel reads int4.
    "DEPTHWISE_CONV_2D": (0, 2, 3, None, 6),
    "FULLY_CONNECTED": (0, 2, 0, (1, 0), 10),
    "TRANSPOSE_CONV": (2, 3, 0, (2, 0, 1, 3), None),
}
_INT4_RANGE, _INT8_RANGE = (-8, 7), (-128, 127)
_ALIGNMENT = 16
_SAME_SCALE = 1e-6


@dataclass(frozen=True)
class Weights:
    """The quantized weights of one operator.

    Attributes:
        codes: int8, the kernel in Keras's layout.
        scales: float32 [channels], real value of one step for each output channel.
        bias: float [channels], real values.
        bits: Width of the codes, 8 or 4.
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    bias: npt.NDArray[np.floating[Any]]
    bits: int = 8


@dataclass(frozen=True)
class LinearOperator:
    """An operator with a kernel, in a file that is being rewritten.

    Attributes:
        name: TensorFlow Lite's, such as "CONV_2D".
        index: Its number in the subgraph.
        operator: The flatbuffer object.
    """

    name: str
    index: int
    operator: Any


class TfliteRewriter:
    """A ``.tflite`` file, opened for changes.

    Args:
        data: The file; one subgraph.
        where: Its name, for messages.

    Raises:
        BadModelError: It is not a ``.tflite`` file, or has several subgraphs.
        ToolMissingError: Neither LiteRT nor TensorFlow is installed.
    """

    def __init__(self, data: bytes, where: object) -> None:
        if data[4:8] != b"TFL3":
            raise BadModelError("is not a .tflite file", where=where, hint="check the file")
        self._schema = _import_schema()
        self._where = where
        self._model = self._schema.ModelT.InitFromPackedBuf(data, 0)
        if len(self._model.subgraphs) != 1:
            raise BadModelError(
                "has several subgraphs", where=where, got=len(self._model.subgraphs), allowed="1"
            )
        self._graph = self._model.subgraphs[0]

    def linear_operators(self) -> Iterator[LinearOperator]:
        """Yields the operators whose weights can be set, in order."""
        for index, operator in enumerate(self._graph.operators):
            code = self._model.operatorCodes[operator.opcodeIndex]
            builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
            name = tflite.utils.BUILTIN_OPCODE2NAME.get(builtin, "")
            if name in _OPERATORS and self._has_data(
                self._graph.tensors[operator.inputs[_KERNEL_INPUT]]
            ):
                yield LinearOperator(name, index, operator)

    def read_codes(self, linear: LinearOperator) -> Array:
        """Returns an int8 operator's kernel codes, in the file's layout."""
        tensor = self._tensor(linear, _KERNEL_INPUT)
        data: Array = np.asarray(self._model.buffers[tensor.buffer].data, np.uint8)
        return data.view(np.int8).reshape(tensor.shape)

    def read_scales(self, linear: LinearOperator) -> Array:
        """Returns an operator's weight scales, float64: one, or one for each channel."""
        return np.asarray(self._tensor(linear, _KERNEL_INPUT).quantization.scale, np.float64)

    def set_weights(self, linear: LinearOperator, weights: Weights) -> None:
        """Replaces an operator's kernel, scales and bias.

        Raises:
            BadModelError: The weights do not fit the operator, it has no bias, or a bias does
                not fit 32 bits.
        """
        operand, bias_input, axis, _, int4_version = _OPERATORS[linear.name]
        codes = file_layout(weights.codes, linear.name)
        kernel, bias = self._tensor(linear, _KERNEL_INPUT), self._tensor(linear, bias_input)
        input_scale = float(self._tensor(linear, operand).quantization.scale[0])
        lowest, highest = _INT4_RANGE if weights.bits == 4 else _INT8_RANGE
        shape = tuple(int(size) for size in kernel.shape)
        if shape != codes.shape or codes.min() < lowest or codes.max() > highest:
            raise BadModelError(
                "weights do not fit",
                where=f"{self._where}: node {linear.index} {linear.name}",
                got=f"{codes.shape}, codes {codes.min()} to {codes.max()}",
                allowed=f"{shape}, codes {lowest} to {highest}",
            )
        if weights.bits == 4 and int4_version is not None:
            kernel.type = tflite.TensorType.INT4
            self._set_data(kernel, pack_int4(codes))
            self._raise_version(linear.operator, int4_version)
        else:
            kernel.type = tflite.TensorType.INT8
            self._set_data(kernel, codes.reshape(-1).view(np.uint8))
        self._set_scales(kernel, weights.scales, axis)
        # As the kernels require: the product, rounded to float32.
        bias_scales = (input_scale * weights.scales.astype(np.float64)).astype(np.float32)
        self._set_data(bias, self._quantize_bias(linear, weights.bias, bias_scales).view(np.uint8))
        self._set_scales(bias, bias_scales, 0)

    def set_activation_scales(self, grids: Collection[tuple[float, int]]) -> None:
        """Gives every activation the very scale that it is meant to have.

        The converter computes scales from ranges in other steps, and is off by a bit at times.

        Args:
            grids: Scale and zero point of each range.

        Raises:
            BadModelError: A tensor has none of them.
        """
        for tensor in self._graph.tensors:
            quantization = tensor.quantization
            if quantization is None or quantization.scale is None or self._has_data(tensor):
                continue
            scale, zero_point = float(quantization.scale[0]), int(quantization.zeroPoint[0])
            near = [s for s, z in grids if z == zero_point and abs(scale / s - 1) < _SAME_SCALE]
            if not near:
                raise BadModelError(
                    "the converter gave an activation a range of its own",
                    where=f"{self._where}: tensor '{_text(tensor.name)}'",
                    got=f"scale {scale:g}, zero point {zero_point}",
                )
            closest = min(near, key=lambda each: abs(scale / each - 1))
            quantization.scale = np.array([closest], np.float32)

    def order_signature(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Puts the model's inputs and outputs in the order of these names of its signature."""
        (signature,) = self._model.signatureDefs
        self._graph.inputs = _in_order(signature.inputs, inputs)
        self._graph.outputs = _in_order(signature.outputs, outputs)

    def to_bytes(self) -> bytes:
        """Returns the changed file."""
        self._drop_unused_buffers()
        model = copy.copy(self._model)
        model.buffers = [_AlignedBuffer(self._schema, each) for each in model.buffers]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _tensor(self, linear: LinearOperator, position: int) -> Any:
        inputs = linear.operator.inputs
        if position >= len(inputs) or inputs[position] < 0:
            raise BadModelError(
                "an operator without a bias",
                where=f"{self._where}: node {linear.index} {linear.name}",
                allowed="a bias",
            )
        return self._graph.tensors[inputs[position]]

    def _has_data(self, tensor: Any) -> bool:
        data = self._model.buffers[tensor.buffer].data
        return data is not None and len(data) > 0

    def _set_data(self, tensor: Any, data: Array) -> None:
        shared = sum(each.buffer == tensor.buffer for each in self._graph.tensors) > 1
        if shared:
            self._model.buffers.append(self._schema.BufferT())
            tensor.buffer = len(self._model.buffers) - 1
        self._model.buffers[tensor.buffer].data = data

    def _set_scales(self, tensor: Any, scales: Array, axis: int) -> None:
        tensor.quantization.scale = scales.astype(np.float32)
        tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        tensor.quantization.quantizedDimension = axis
        tensor.quantization.min = tensor.quantization.max = None

    def _quantize_bias(self, linear: LinearOperator, bias: Array, scales: Array) -> Array:
        codes = np.round(np.asarray(bias, np.float64) / scales.astype(np.float64))
        worst = int(np.abs(codes).argmax())
        if abs(codes[worst]) >= 2**31:
            raise BadModelError(
                "a bias does not fit 32 bits",
                where=f"{self._where}: node {linear.index} {linear.name}, channel {worst}",
                got=f"{bias[worst]:g} at scale {scales[worst]:g}",
                hint="the channel's weights are next to nothing: remove it, or prune less",
            )
        quantized: Array = codes.astype(np.int32)
        return quantized

    def _raise_version(self, operator: Any, version: int) -> None:
        """Gives an operator a code of at least ``version``, its own where others share it."""
        code = self._model.operatorCodes[operator.opcodeIndex]
        if code.version >= version:
            return
        for index, other in enumerate(self._model.operatorCodes):
            if other.builtinCode == code.builtinCode and other.version == version:
                operator.opcodeIndex = index
                return
        raised = self._schema.OperatorCodeT()
        raised.builtinCode, raised.version = code.builtinCode, version
        raised.deprecatedBuiltinCode = code.deprecatedBuiltinCode
        self._model.operatorCodes.append(raised)
        operator.opcodeIndex = len(self._model.operatorCodes) - 1

    def _drop_unused_buffers(self) -> None:
        """Empties buffers that nothing names any more; the others keep their numbers."""
        used = {tensor.buffer for tensor in self._graph.tensors}
        used.update(each.buffer for each in self._model.metadata or ())
        for index, buffer in enumerate(self._model.buffers):
            if index not in used:
                buffer.data = None


class _AlignedBuffer:
    """Packs a buffer so that its data lie at a multiple of 16, as the schema asks for.

    The generated Python code aligns them to their elements' size, a byte.
    """

    def __init__(self, schema: Any, buffer: Any) -> None:
        self._schema = schema
        self._data = None if buffer.data is None else bytes(np.asarray(buffer.data, np.uint8))

    def Pack(self, builder: Any) -> Any:  # noqa: N802  # The generated code calls it.
        offset = None
        if self._data is not None:
            builder.StartVector(1, len(self._data), _ALIGNMENT)
            builder.head = builder.Head() - len(self._data)
            builder.Bytes[builder.Head() : builder.Head() + len(self._data)] = self._data
            offset = builder.EndVector()
        self._schema.BufferStart(builder)
        if offset is not None:
            self._schema.BufferAddData(builder, offset)
        return self._schema.BufferEnd(builder)


def file_layout(kernel: Array, operator: str) -> Array:
    """Returns a Keras kernel in the layout that a TensorFlow Lite operator stores.

    Args:
        kernel: Any dtype: [H, W, I, O], depthwise [H, W, I, M], dense [I, O], transposed
            [H, W, O, I].
        operator: "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED" or "TRANSPOSE_CONV".

    Returns:
        [O, H, W, I]; [1, H, W, I * M]; [O, I]; [O, H, W, I].
    """
    axes = _OPERATORS[operator][3]
    if axes is None:
        return kernel.reshape(1, *kernel.shape[:2], -1)
    return np.ascontiguousarray(kernel.transpose(axes)) if len(axes) == kernel.ndim else kernel


def pack_int4(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Packs codes from -8 to 7, any shape, two to a byte, the first in the low half."""
    flat = np.zeros(codes.size + codes.size % 2, np.uint8)
    flat[: codes.size] = codes.reshape(-1).view(np.uint8) & 15
    low, high = flat[0::2], flat[1::2]
    return np.asarray(low | (high << 4), np.uint8)


def _in_order(maps: Sequence[Any], names: Sequence[str]) -> Array:
    found = {_text(each.name): each.tensorIndex for each in maps}
    return np.array([found[name] for name in names], np.int32)


def _text(name: bytes | str) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _import_schema() -> Any:
    for module in ("ai_edge_litert", "tensorflow.lite.python"):
        try:
            return importlib.import_module(f"{module}.schema_py_generated")
        except ImportError:
            continue
    raise ToolMissingError(
        "LiteRT or TensorFlow is needed to rewrite a .tflite file",
        hint="install it with: pip install 'edgekiln[litert]'",
    )
