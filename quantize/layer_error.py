"""How far a quantized model is from its float model, layer by layer.

A ``.tflite`` is run by LiteRT's reference kernels with all its tensors kept, the float model by
Keras. Tensors and layers are matched by name: the converter names each tensor after the layers
that it fused, and the last of them in the model is the one whose output the tensor is. A model
with fake quantization is measured in Keras, where LiteRT lacks a kernel, as for some of 4 bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tflite as schema
from rich.table import Table

from edgekiln import console
from edgekiln.errors import BadModelError
from edgekiln.quantize.affine import dequantize_array, quantize_array
from edgekiln.quantize.batch_norm import fold_batch_norm
from edgekiln.quantize.fake_quant import ActivationQuantizer
from edgekiln.quantize.keras_graph import read_graph
from edgekiln.quantize.keras_run import BATCH_SIZE, run_batches
from edgekiln.quantize.litert import open_interpreter
from edgekiln.quantize.lowering import lower_batch_norms, lower_model
from edgekiln.quantize.representative import Array, batches
from edgekiln.train.quiet_keras import keras

#: Keras calls a model anew to export it, and numbers the scopes of that.
_SUFFIX = re.compile(r"_1$")


@dataclass(frozen=True)
class LayerError:
    """Error of one tensor against the float model, over all samples.

    Attributes:
        layer: Name of the layer that makes it; "block_conv" for "block/conv" in a nested model.
        node: Index of the op in the file; in a Keras model, number of the quantizer.
        op: Name of the op; in a Keras model, of the layer's class.
        sqnr_db: Ratio of signal to quantization noise, ``10 * log10(sum(x ** 2) / sum(e ** 2))``;
            infinite where there is no error.
        cosine: Cosine of the angle between the two, 1.0 where both are zero.
        largest: Greatest absolute error.
    """

    layer: str
    node: int
    op: str
    sqnr_db: float
    cosine: float
    largest: float

    def to_json(self) -> dict[str, Any]:
        """Returns the attributes as JSON values; an infinite ratio is null."""
        values = asdict(self)
        return {**values, "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None}


class ErrorSums:
    """Adds up the error of one tensor, batch by batch."""

    def __init__(self) -> None:
        self._signal = self._noise = self._product = self._other = self._largest = 0.0

    def add(self, expected: npt.ArrayLike, got: npt.ArrayLike) -> None:
        """Adds values of the float model, and of the quantized one, both of one shape."""
        x, y = (np.asarray(each, np.float64).ravel() for each in (expected, got))
        error = y - x
        self._signal += float(x @ x)
        self._noise += float(error @ error)
        self._product += float(x @ y)
        self._other += float(y @ y)
        self._largest = max(self._largest, float(np.abs(error).max(initial=0.0)))

    @property
    def sqnr_db(self) -> float:
        """As in `LayerError`."""
        if self._noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self._signal / self._noise) if self._signal else -math.inf

    @property
    def cosine(self) -> float:
        """As in `LayerError`."""
        if self._signal == 0.0 or self._other == 0.0:
            return float(self._signal == self._other)
        return min(1.0, self._product / math.sqrt(self._signal * self._other))

    def result(self, layer: str, node: int, op: str) -> LayerError:
        """Returns the error as a `LayerError`."""
        return LayerError(layer, node, op, self.sqnr_db, self.cosine, self._largest)


@dataclass(frozen=True)
class _Node:
    """An op whose output is that of a layer."""

    index: int
    op: str
    tensor: int
    layer: str


def measure_layer_errors(
    model: Any, tflite: bytes, data: Mapping[str, Array], where: object
) -> tuple[LayerError, ...]:
    """Returns the error of each layer that a quantized file computes, in the order of its ops.

    Args:
        model: The float Keras model that it was made of; equalized, the equalized one.
        tflite: The file: int8 or int16x8, or float.
        data: float32 [N, ...] for each input, by name.
        where: The file's name, for messages.

    Raises:
        BadModelError: The file cannot be run, or shares no layer with the model.
        ToolMissingError: LiteRT is not installed.
    """
    lowered = lower_batch_norms(fold_batch_norm(lower_model(model)))
    values = _layer_outputs(lowered)
    interpreter = open_interpreter(tflite, where, keep_all=True)
    nodes = _match_nodes(interpreter, tflite, lowered, values)
    if not nodes:
        raise BadModelError(
            "shares no layer with the model", where=where, got=f"layers {', '.join(values)}"
        )
    probe = keras.Model(lowered.input, {node.layer: values[node.layer] for node in nodes})
    quantization = {
        details["index"]: details["quantization"] for details in interpreter.get_tensor_details()
    }
    sums = {node.layer: ErrorSums() for node in nodes}
    for expected, batch in zip(run_batches(probe, data), batches(data, BATCH_SIZE), strict=True):
        for number in range(len(next(iter(batch.values())))):
            _invoke(interpreter, {name: array[number] for name, array in batch.items()})
            for node in nodes:
                codes = interpreter.get_tensor(node.tensor)[0]
                got = codes
                if codes.dtype.kind == "i":
                    got = dequantize_array(codes, *quantization[node.tensor])
                sums[node.layer].add(expected[node.layer][number], got)
    return tuple(sums[node.layer].result(node.layer, node.index, node.op) for node in nodes)


def measure_graph_errors(
    model: Any, quantized: Any, data: Mapping[str, Array]
) -> tuple[LayerError, ...]:
    """Returns the error of each layer whose output a model with fake quantization rounds.

    Args:
        model: The float Keras model that it was made of; equalized, the equalized one.
        quantized: What `edgekiln.quantize.qat.quantize_model` returned, calibrated.
        data: float32 [N, ...] for each input, by name, in the order of the model's inputs.
    """
    lowered = lower_batch_norms(fold_batch_norm(lower_model(model)))
    values = _layer_outputs(lowered)
    rounded = {
        layer.name: tensor for layer, tensor in _rounded_outputs(quantized) if layer.name in values
    }
    expected = keras.Model(lowered.input, {name: values[name] for name in rounded})
    probe = keras.Model(quantized.input, rounded)
    sums = {name: ErrorSums() for name in rounded}
    for wanted, got in zip(run_batches(expected, data), run_batches(probe, data), strict=True):
        for name, each in sums.items():
            each.add(wanted[name], got[name])
    kinds = {layer.name: type(layer).__name__ for layer in quantized.layers}
    return tuple(
        each.result(name, number, kinds[name]) for number, (name, each) in enumerate(sums.items())
    )


def _rounded_outputs(quantized: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each layer that a quantizer follows, with the quantizer's output, in order."""
    for depth in sorted(quantized._nodes_by_depth, reverse=True):
        for node in quantized._nodes_by_depth[depth]:
            if isinstance(node.operation, ActivationQuantizer):
                (rounded,) = node.output_tensors
                yield node.input_tensors[0]._keras_history.operation, rounded


def layer_error_table(errors: Iterable[LayerError]) -> Table:
    """Returns the errors as a table for the terminal."""
    return console.make_table(
        "Error by layer, against the float model",
        ("layer", "node", "op", "SQNR dB", "cosine", "largest"),
        [
            (e.layer, e.node, e.op, f"{e.sqnr_db:.1f}", f"{e.cosine:.5f}", f"{e.largest:.4g}")
            for e in errors
        ],
    )


def _layer_outputs(model: Any) -> dict[str, Any]:
    """Returns the output of each layer that is called once, by name, in order."""
    graph = read_graph(model)
    return {
        call.name: call.layer.output
        for call in graph.calls
        if isinstance(call.layer, keras.Layer) and graph.calls_of(call.layer) == 1
    }


def _match_nodes(
    interpreter: Any, tflite: bytes, model: Any, values: Mapping[str, Any]
) -> list[_Node]:
    """Returns the last op that computes each layer's output, in the order of the ops."""
    file = schema.Model.GetRootAsModel(tflite, 0)
    graph = file.Subgraphs(0)
    results = _results(interpreter, model)
    found: dict[str, _Node] = {}
    order = list(values)
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        tensor = operator.Outputs(0)
        details = graph.Tensors(tensor)
        layer = results.get(tensor) or _find_layer(details.Name().decode(), model.name, order)
        shape = tuple(details.Shape(n) for n in range(details.ShapeLength()))
        if layer in values and shape == (1, *values[layer].shape[1:]):
            found.pop(layer, None)
            found[layer] = _Node(index, _op_name(file, operator), tensor, layer)
    return list(found.values())


def _op_name(file: Any, operator: Any) -> str:
    code = file.OperatorCodes(operator.OpcodeIndex())
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    return str(schema.utils.BUILTIN_OPCODE2NAME.get(number, number))


def _results(interpreter: Any, model: Any) -> dict[int, str]:
    """Returns the layers that make the model's outputs, by the number of the tensor."""
    runner = interpreter.get_signature_runner()
    layers = [tensor._keras_history.operation.name for tensor in model.outputs]
    found = {}
    for name, details in runner.get_output_details().items():
        position = re.fullmatch(r"output_(\d+)", name)
        if position and int(position[1]) < len(layers):
            found[int(details["index"])] = layers[int(position[1])]
    return found


def _find_layer(tensor: str, model: str, layers: Sequence[str]) -> str:
    """Returns the last layer that a tensor is named after, or an empty text.

    Args:
        tensor: As in "net_1/relu_1/Relu;net_1/block_1/conv_1/convolution".
        model: The model's name.
        layers: Names to look for, in the model's order.
    """
    named = []
    for part in tensor.split(";"):
        scope, *path = part.split("/")
        if scope == f"{model}_1":
            path = [_SUFFIX.sub("", each) for each in path]
        elif scope != model:
            continue
        names = ["_".join(path[:length]) for length in range(len(path), 0, -1)]
        named += [name for name in names if name in layers][:1]
    return max(named, key=layers.index, default="")


def _invoke(interpreter: Any, sample: Mapping[str, Array]) -> None:
    taken = interpreter.get_signature_runner().get_input_details()
    for name, values in sample.items():
        details = taken[name]
        scale, zero_point = details["quantization"]
        dtype = np.dtype(details["dtype"])
        codes = quantize_array(values, scale, zero_point, dtype) if dtype.kind == "i" else values
        interpreter.set_tensor(details["index"], codes[np.newaxis])
    interpreter.invoke()
