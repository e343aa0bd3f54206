"""Runs a model on this machine, by five engines behind one interface.

`TflmRunner` is the oracle: its bytes define what is right. `NumpyRunner` is this project's own
definition of the same. `CompiledRunner` is the product under test. `LiteRTRunner` and
`OnnxRunner` are what users have on a PC, for comparison.

All of them take and return one array per model input and output, with the inferences along
the first axis: ``int8 [N, ...]``. No engine keeps state from one inference to the next, unless
it is made with ``keep_state``: then the N inferences of one call of ``run`` are a stream.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from edgekiln.bench.compiled import STRICT_FLAGS, CompiledRunner
from edgekiln.bench.tensors import Tensor, Tensors, TensorSpec, check_inputs, run_each
from edgekiln.errors import BadModelError, ToolMissingError, UnsupportedOpError
from edgekiln.export.interpret import initial_states, run_graph
from edgekiln.export.passes import run_passes
from edgekiln.export.tflite_reader import read_tflite

__all__ = [
    "STRICT_FLAGS",
    "CompiledRunner",
    "LiteRTRunner",
    "NumpyRunner",
    "OnnxRunner",
    "Runner",
    "Tensor",
    "TensorSpec",
    "Tensors",
    "TflmRunner",
    "check_inputs",
    "read_tensor_specs",
    "tflm_available",
]


class Runner(Protocol):
    """An engine with a model loaded."""

    @property
    def name(self) -> str:
        """The engine's name, as results and reports show it."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs, in the model's order."""
        ...

    def run(self, inputs: Tensors) -> Tensors:
        """Runs N independent inferences.

        Args:
            inputs: One array ``[N, ...]`` per model input, of the model's own dtype.

        Returns:
            One array ``[N, ...]`` per model output.

        Raises:
            BadInputError: The arrays do not match the model's inputs.
        """
        ...


def tflm_available() -> bool:
    """Tells whether TensorFlow Lite Micro, the oracle, can be imported here."""
    try:
        importlib.import_module("tflite_micro.python.tflite_micro.runtime")
    except ImportError:
        return False
    return True


class TflmRunner:
    """TensorFlow Lite Micro's reference kernels: the oracle.

    Args:
        model: A .tflite file's bytes.
        preserve_nodes: Keep every tensor, so that `node_tensors` can read them.
        keep_state: Let the inferences of one call of `run` be a stream.

    Raises:
        ToolMissingError: The wheel is not installed, or there is none for this machine.
        UnsupportedOpError: The oracle lacks an op of this model.
        BadModelError: The oracle refuses the model.
    """

    name = "TensorFlow Lite Micro"

    def __init__(
        self, model: bytes, *, preserve_nodes: bool = False, keep_state: bool = False
    ) -> None:
        runtime = _import_or_explain(
            "tflite_micro.python.tflite_micro.runtime",
            "tflite-micro",
            "pip install 'edgekiln[oracle]' (Linux x86-64, Python 3.11 or 3.12)",
        )
        self.inputs, self.outputs = read_tensor_specs(model)
        self._model = model
        self._keep_state = keep_state
        config = runtime.InterpreterConfig
        self._load = functools.partial(
            _load_tflm,
            runtime,
            model,
            config.kPreserveAllTensors if preserve_nodes else config.kAllocationRecording,
        )
        self._interpreter = self._load()
        # Its reset sets resource variables to zero and does not run CALL_ONCE again.
        self._reloads = _has_operator(model, "CALL_ONCE")

    def run(self, inputs: Tensors) -> Tensors:
        """Runs N inferences; see `Runner.run`."""
        outputs = run_each(inputs, self.inputs, self.outputs, self._invoke)
        self._reset()
        return outputs

    def node_tensors(self, inputs: Tensors, tensor_indices: Sequence[int]) -> dict[int, Tensor]:
        """Runs one inference and returns some of the model's tensors.

        Args:
            inputs: One array ``[1, ...]`` per model input.
            tensor_indices: Indices into the model's list of tensors.

        Returns:
            Each index with a copy of that tensor, in the model's shape.

        Raises:
            BadInputError: The arrays do not match the model's inputs.
        """
        rows = check_inputs(inputs, self.inputs)
        self._set_inputs(tuple(array[0] for array in rows))
        self._run_interpreter()
        found = {
            index: np.array(self._interpreter.GetTensor(index, 0)["tensor_data"])
            for index in tensor_indices
        }
        self._reset()
        return found

    def _reset(self) -> None:
        if self._reloads:
            self._interpreter = self._load()
        else:
            self._interpreter.reset()

    def _set_inputs(self, inputs: Tensors) -> None:
        for index, (array, spec) in enumerate(zip(inputs, self.inputs, strict=True)):
            self._interpreter.set_input(array.reshape(spec.shape), index)

    def _run_interpreter(self) -> None:
        with _native_stderr() as said:
            try:
                self._interpreter.invoke()
            except RuntimeError as error:
                raise BadModelError(
                    f"TensorFlow Lite Micro, the oracle, cannot run the model: {error} {said()}"
                ) from None

    def _invoke(self, inputs: Tensors) -> Tensors:
        self._set_inputs(inputs)
        self._run_interpreter()
        outputs = tuple(
            np.array(self._interpreter.get_output(index)) for index in range(len(self.outputs))
        )
        if not self._keep_state:
            self._reset()
        return outputs


class NumpyRunner:
    """The numpy definition of every operator: slow, and needs nothing but numpy.

    Args:
        model: A .tflite file's bytes.
        where: Its name, for messages.
        keep_state: Let the inferences of one call of `run` be a stream.

    Raises:
        BadModelError: The model is damaged or contradicts itself.
        UnsupportedOpError: The model holds what edgekiln lacks.
    """

    name = "numpy definition"

    def __init__(self, model: bytes, where: str = "model", *, keep_state: bool = False) -> None:
        self._keep_state = keep_state
        self._graph = run_passes(read_tflite(model, where))
        self.inputs = tuple(self._spec(index) for index in self._graph.inputs)
        self.outputs = tuple(self._spec(index) for index in self._graph.outputs)

    def run(self, inputs: Tensors) -> Tensors:
        """Runs N inferences; see `Runner.run`."""
        self._states = initial_states(self._graph)
        return run_each(inputs, self.inputs, self.outputs, self._invoke)

    def _invoke(self, inputs: Tensors) -> Tensors:
        shaped = [
            array.reshape(spec.shape) for array, spec in zip(inputs, self.inputs, strict=True)
        ]
        return run_graph(self._graph, shaped, self._states if self._keep_state else None)

    def _spec(self, index: int) -> TensorSpec:
        tensor = self._graph.tensor(index)
        return TensorSpec(tensor.name, tensor.shape, np.dtype(tensor.dtype.value))


class LiteRTRunner:
    """LiteRT, formerly TensorFlow Lite, with one thread.

    Args:
        model: A .tflite file's bytes.
        reference: True for the reference kernels (BUILTIN_REF), whose bytes may be compared.
            False for the default, XNNPACK: fast, and its bytes differ, so for latency only.
        preserve_nodes: Keep every tensor, so that `node_tensors` can read them.

    Raises:
        ToolMissingError: ai-edge-litert is not installed.
        BadModelError: LiteRT refuses the model.
    """

    def __init__(
        self, model: bytes, *, reference: bool = True, preserve_nodes: bool = False
    ) -> None:
        litert = _import_or_explain(
            "ai_edge_litert.interpreter", "ai-edge-litert", "pip install 'edgekiln[litert]'"
        )
        self.name = f"LiteRT ({'BUILTIN_REF' if reference else 'XNNPACK'})"
        self.inputs, self.outputs = read_tensor_specs(model)
        kind = litert.OpResolverType
        with _native_stderr() as said:
            try:
                self._interpreter = litert.Interpreter(
                    model_content=model,
                    num_threads=1,
                    experimental_op_resolver_type=kind.BUILTIN_REF if reference else kind.AUTO,
                    experimental_preserve_all_tensors=preserve_nodes,
                )
                self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                raise BadModelError(f"LiteRT refuses the model: {error} {said()}") from None
        self._input_indices = [d["index"] for d in self._interpreter.get_input_details()]
        self._output_indices = [d["index"] for d in self._interpreter.get_output_details()]

    def run(self, inputs: Tensors) -> Tensors:
        """Runs N inferences; see `Runner.run`."""
        return run_each(inputs, self.inputs, self.outputs, self._invoke)

    def _invoke(self, inputs: Tensors) -> Tensors:
        for array, spec, index in zip(inputs, self.inputs, self._input_indices, strict=True):
            self._interpreter.set_tensor(index, array.reshape(spec.shape))
        self._interpreter.invoke()
        outputs = tuple(self._interpreter.get_tensor(index) for index in self._output_indices)
        self._interpreter.reset_all_variables()
        return outputs

    def node_tensors(self, inputs: Tensors, tensor_indices: Sequence[int]) -> dict[int, Tensor]:
        """Runs one inference and returns some tensors; see `TflmRunner.node_tensors`."""
        rows = check_inputs(inputs, self.inputs)
        self._invoke(tuple(array[0] for array in rows))
        return {index: self._interpreter.get_tensor(index) for index in tensor_indices}


class OnnxRunner:
    """ONNX Runtime on the CPU with one thread.

    Args:
        model: An .onnx file's bytes, or its path.
        label: What to call this model in results, such as ``int8``.

    Raises:
        ToolMissingError: onnxruntime is not installed.
        BadModelError: ONNX Runtime refuses the model.
    """

    def __init__(self, model: bytes | Path, *, label: str = "") -> None:
        onnxruntime = _import_or_explain(
            "onnxruntime", "onnxruntime", "pip install 'edgekiln[onnx]'"
        )
        self.name = f"ONNX Runtime ({label})" if label else "ONNX Runtime"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # its exceptions share no base class but this one
            raise BadModelError(f"ONNX Runtime refuses the model: {error}") from None
        self.inputs = tuple(_onnx_spec(node) for node in self._session.get_inputs())
        self.outputs = tuple(_onnx_spec(node) for node in self._session.get_outputs())

    def run(self, inputs: Tensors) -> Tensors:
        """Runs N inferences; see `Runner.run`."""
        return run_each(inputs, self.inputs, self.outputs, self._invoke)

    def _invoke(self, inputs: Tensors) -> Tensors:
        feed = {
            spec.name: array.reshape(spec.shape)
            for spec, array in zip(self.inputs, inputs, strict=True)
        }
        return tuple(np.asarray(output) for output in self._session.run(None, feed))


def read_tensor_specs(model: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Reads the inputs and outputs of a .tflite file's first subgraph.

    Raises:
        BadModelError: The file is damaged.
    """
    import tflite

    try:
        graph = tflite.Model.GetRootAs(model, 0).Subgraphs(0)
        return (
            tuple(_tflite_spec(graph.Tensors(int(i))) for i in graph.InputsAsNumpy()),
            tuple(_tflite_spec(graph.Tensors(int(i))) for i in graph.OutputsAsNumpy()),
        )
    except Exception as error:  # flatbuffers reads damaged offsets until something gives way
        raise BadModelError(f"not a readable .tflite model: {error}") from None


def _import_or_explain(module: str, package: str, hint: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ToolMissingError(
            f"the Python package {package} cannot be imported ({error})",
            where=f"Python {platform.python_version()} on {platform.machine()}",
            hint=hint,
        ) from None


def _load_tflm(runtime: ModuleType, model: bytes, config: object) -> Any:
    """Loads a model into an arena that is enlarged until the model fits."""
    first_bytes = 10 * len(model) + (1 << 20)
    message = ""
    for factor in (1, 8, 64):
        with _native_stderr() as said:
            try:
                return runtime.Interpreter.from_bytes(
                    model, arena_size=factor * first_bytes, intrepreter_config=config
                )
            except (RuntimeError, ValueError) as error:
                message = f"{error}: {said()}"
        if "find op" in message:
            raise UnsupportedOpError(f"TensorFlow Lite Micro, the oracle, lacks an op: {message}")
        if "allocate" not in message:
            break
    raise BadModelError(f"TensorFlow Lite Micro, the oracle, refuses the model: {message}")


@contextlib.contextmanager
def _native_stderr() -> Iterator[Callable[[], str]]:
    """Keeps what native code prints on stderr away from the terminal.

    Yields:
        A function that returns what was printed so far, as one line.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink:
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)

        def said() -> str:
            sink.seek(0)
            return " ".join(sink.read().decode(errors="replace").split())

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _has_operator(model: bytes, name: str) -> bool:
    """Tells whether a model that loads lists an operator."""
    import tflite

    table = tflite.Model.GetRootAs(model, 0)
    codes = [table.OperatorCodes(i) for i in range(table.OperatorCodesLength())]
    number = getattr(tflite.BuiltinOperator, name)
    return any(max(c.DeprecatedBuiltinCode(), c.BuiltinCode()) == number for c in codes)


def _tflite_spec(tensor: Any) -> TensorSpec:
    import tflite

    names = {
        getattr(tflite.TensorType, name): name.lower()
        for name in ("FLOAT32", "INT8", "UINT8", "INT16", "INT32", "INT64", "BOOL")
    }
    shape = tuple(int(size) for size in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
    name = (tensor.Name() or b"").decode(errors="replace")
    return TensorSpec(name, shape, np.dtype(names[tensor.Type()]))


def _onnx_spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
    shape = tuple(size if isinstance(size, int) else 1 for size in node.shape)
    return TensorSpec(node.name, shape, dtype)
