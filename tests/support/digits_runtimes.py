"""The golden model of the digits in the forms that the runtimes of a Linux board take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tflite_builder import BuiltOp, BuiltTensor, build_model, constant

from edgekiln.bench.linux import Case
from edgekiln.export.tflite_reader import read_tflite

Weights = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


def write_cases(int8: Path, directory: Path) -> tuple[Case, ...]:
    """Writes a float .tflite and two .onnx files that compute what digits_mlp does."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = read_weights(int8.read_bytes())
    (directory / "float.tflite").write_bytes(build_tflite(weights))
    for name, is_real in (("float.onnx", True), ("int8.onnx", False)):
        onnx.save(build_onnx(weights, is_real), directory / name)
    return (
        Case("litert", directory / "float.tflite", is_real=True),
        Case("litert", int8, is_real=False),
        Case("litert-reference", int8, is_real=False),
        Case("onnxruntime", directory / "float.onnx", is_real=True),
        Case("onnxruntime", directory / "int8.onnx", is_real=False),
    )


def read_weights(model: bytes) -> Weights:
    """Returns weights ``[outputs, inputs]`` and biases of both dense layers, as real numbers."""
    graph = read_tflite(model, "digits_mlp")
    dense = [op for op in graph.ops if op.name == "FULLY_CONNECTED"]
    return [tuple(_real(graph, index) for index in op.inputs[1:]) for op in dense]  # type: ignore[misc]


def _real(graph: Any, index: int) -> NDArray[np.float32]:
    tensor = graph.tensor(index)
    scales = np.asarray(tensor.quantization.scales, np.float32)
    codes = tensor.data.astype(np.float32)
    real: NDArray[np.float32] = codes * scales.reshape(-1, *(1,) * (codes.ndim - 1))
    return real


def build_tflite(weights: Weights) -> bytes:
    """Returns the model in float32."""
    (first, first_bias), (second, second_bias) = weights
    tensors = [
        BuiltTensor((1, 8, 8, 1), "FLOAT32"),
        constant(np.array([1, 64], np.int32)),
        BuiltTensor((1, 64), "FLOAT32"),
        *(constant(array) for array in (first, first_bias, second, second_bias)),
        BuiltTensor((1, 128), "FLOAT32"),
        BuiltTensor((1, 10), "FLOAT32"),
        BuiltTensor((1, 10), "FLOAT32"),
    ]
    ops = [
        BuiltOp("RESHAPE", (0, 1), (2,), "ReshapeOptions"),
        _dense((2, 3, 4), 7, 1),
        _dense((7, 5, 6), 8, 0),
        BuiltOp("SOFTMAX", (8,), (9,), "SoftmaxOptions", {"Beta": 1.0}),
    ]
    return build_model(tensors, ops, (0,), (9,))


def _dense(inputs: Sequence[int], output: int, activation: int) -> BuiltOp:
    values = {"FusedActivationFunction": activation}
    return BuiltOp("FULLY_CONNECTED", inputs, (output,), "FullyConnectedOptions", values)


def build_onnx(weights: Weights, is_real: bool) -> onnx.ModelProto:
    """Returns the model as ONNX: of real numbers, or with int8 codes outside."""
    constants = [helper.make_tensor("shape", TensorProto.INT64, [2], [1, 64])]
    nodes = []
    image, scores = "input", "output"
    kind = TensorProto.FLOAT if is_real else TensorProto.INT8
    if not is_real:
        constants += [
            helper.make_tensor("in_scale", TensorProto.FLOAT, [], [1 / 255]),
            helper.make_tensor("out_scale", TensorProto.FLOAT, [], [1 / 256]),
            helper.make_tensor("zero", TensorProto.INT8, [], [-128]),
        ]
        image, scores = "image", "scores"
        nodes.append(helper.make_node("DequantizeLinear", ["input", "in_scale", "zero"], [image]))
    nodes.append(helper.make_node("Reshape", [image, "shape"], ["x0"]))
    for number, (matrix, bias) in enumerate(weights):
        for name, array in ((f"w{number}", matrix), (f"b{number}", bias)):
            constants.append(
                helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.ravel())
            )
        names = [f"x{number}", f"w{number}", f"b{number}"]
        output = f"y{number}" if number == 0 else f"x{number + 1}"
        nodes.append(helper.make_node("Gemm", names, [output], transB=1))
        if number == 0:
            nodes.append(helper.make_node("Relu", [output], ["x1"]))
    nodes.append(helper.make_node("Softmax", ["x2"], [scores]))
    if not is_real:
        nodes.append(helper.make_node("QuantizeLinear", [scores, "out_scale", "zero"], ["output"]))
    graph = helper.make_graph(
        nodes,
        "digits_mlp",
        [helper.make_tensor_value_info("input", kind, [1, 8, 8, 1])],
        [helper.make_tensor_value_info("output", kind, [1, 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model
