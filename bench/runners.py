"""Runs a model on this machine, by four engines behind one interface.

`TflmRunner` is the oracle: its bytes define what is right. `CompiledRunner` is the product
under test. `LiteRTRunner` and `OnnxRunner` are what users have on a PC, for comparison.

All of them take and return one array per model input and output, with the inferences along
the first axis: ``int8 [N, ...]``. No engine keeps state from one inference to the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import (
    BadInputError,
    BadModelError,
    CheckFailedError,
    ToolMissingError,
    UnsupportedOpError,
)

Tensor: TypeAlias = NDArray[Any]
Tensors: TypeAlias = tuple[Tensor, ...]

TEMPLATES = Path(__file__).parent / "templates"

STRICT_FLAGS = (
    *("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow"),
    *("-Wundef", "-Wvla", "-Wcast-align", "-Wcast-qual", "-Wmissing-prototypes"),
    *("-Wdouble-promotion", "-Werror"),
)
HOST_FLAGS = ("-std=c99", "-O2", "-fPIC", "-shared")

_NODE_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_GUARD_BYTES = 64
_GUARD = 0x5A
_POISON = 0xA5


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output.

    Attributes:
        name: The tensor's name in the model file.
        shape: Its shape for one inference, the batch axis of 1 included if the model has one.
        dtype: Its numpy dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """The size of one inference's values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of one inference's row in an array of N: without a leading 1."""
        return self.shape[1:] if self.shape[:1] == (1,) else self.shape


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

    Raises:
        ToolMissingError: The wheel is not installed, or there is none for this machine.
        UnsupportedOpError: The oracle lacks an op of this model.
        BadModelError: The oracle refuses the model.
    """

    name = "TensorFlow Lite Micro"

    def __init__(self, model: bytes, *, preserve_nodes: bool = False) -> None:
        runtime = _import_or_explain(
            "tflite_micro.python.tflite_micro.runtime",
            "tflite-micro",
            "pip install 'edgekiln[oracle]' (Linux x86-64, Python 3.11 or 3.12)",
        )
        self.inputs, self.outputs = read_tensor_specs(model)
        self._model = model
        config = runtime.InterpreterConfig
        self._interpreter = _load_tflm(
            runtime,
            model,
            config.kPreserveAllTensors if preserve_nodes else config.kAllocationRecording,
        )

    def run(self, inputs: Tensors) -> Tensors:
        """Runs N inferences; see `Runner.run`."""
        return _run_each(inputs, self.inputs, self.outputs, self._invoke)

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
        self._interpreter.invoke()
        found = {
            index: np.array(self._interpreter.GetTensor(index, 0)["tensor_data"])
            for index in tensor_indices
        }
        self._interpreter.reset()
        return found

    def _set_inputs(self, inputs: Tensors) -> None:
        for index, (array, spec) in enumerate(zip(inputs, self.inputs, strict=True)):
            self._interpreter.set_input(array.reshape(spec.shape), index)

    def _invoke(self, inputs: Tensors) -> Tensors:
        self._set_inputs(inputs)
        self._interpreter.invoke()
        outputs = tuple(
            np.array(self._interpreter.get_output(index)) for index in range(len(self.outputs))
        )
        self._interpreter.reset()
        return outputs


class LiteRTRunner:
    """LiteRT, formerly TensorFlow Lite, with one thread.

    Args:
        model: A .tflite file's bytes.
        reference: True for the reference kernels (BUILTIN_REF), whose bytes may be compared.
            False for the default, XNNPACK: fast, and its bytes differ, so for latency only.

    Raises:
        ToolMissingError: ai-edge-litert is not installed.
        BadModelError: LiteRT refuses the model.
    """

    def __init__(self, model: bytes, *, reference: bool = True) -> None:
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
                )
                self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError) as error:
                raise BadModelError(f"LiteRT refuses the model: {error} {said()}") from None
        self._input_indices = [d["index"] for d in self._interpreter.get_input_details()]
        self._output_indices = [d["index"] for d in self._interpreter.get_output_details()]

    def run(self, inputs: Tensors) -> Tensors:
        """Runs N inferences; see `Runner.run`."""
        return _run_each(inputs, self.inputs, self.outputs, self._invoke)

    def _invoke(self, inputs: Tensors) -> Tensors:
        for array, spec, index in zip(inputs, self.inputs, self._input_indices, strict=True):
            self._interpreter.set_tensor(index, array.reshape(spec.shape))
        self._interpreter.invoke()
        outputs = tuple(self._interpreter.get_tensor(index) for index in self._output_indices)
        self._interpreter.reset_all_variables()
        return outputs


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
        return _run_each(inputs, self.inputs, self.outputs, self._invoke)

    def _invoke(self, inputs: Tensors) -> Tensors:
        feed = {
            spec.name: array.reshape(spec.shape)
            for spec, array in zip(self.inputs, inputs, strict=True)
        }
        return tuple(np.asarray(output) for output in self._session.run(None, feed))


class CompiledRunner:
    """The generated C, compiled for this machine and loaded as a shared library.

    Before each inference the arena is filled with a pattern, so that bytes which the program
    reads before writing show up as wrong outputs; bytes around it tell whether the program
    stays inside the arena that its header promises.

    Args:
        bundle: The directory that `edgekiln compile` wrote, for the target ``host`` or ``generic``.
        record_nodes: Build with the hook that shows every node's output to `node_outputs`.
        flags: Compiler flags to add, such as `STRICT_FLAGS`.

    Raises:
        ToolMissingError: There is no C compiler.
        BadInputError: The directory is not a bundle.
        CheckFailedError: The C does not compile.
    """

    name = "generated C on host"

    def __init__(
        self, bundle: Path, *, record_nodes: bool = False, flags: Sequence[str] = ()
    ) -> None:
        report = read_compile_report(bundle)
        self.inputs = tuple(_report_spec(entry) for entry in report["inputs"])
        self.outputs = tuple(_report_spec(entry) for entry in report["outputs"])
        self._input_offsets = [int(entry["offset"]) for entry in report["inputs"]]
        self._output_offsets = [int(entry["offset"]) for entry in report["outputs"]]
        self._memory, self._arena = _guarded_arena(int(report["arena_bytes"]))
        self._library = _build_library(bundle, report["name"], record_nodes, flags)
        self._recording = record_nodes
        self._invoke_c = self._library[f"{report['name']}_invoke"]
        self._invoke_c.argtypes = [ctypes.c_void_p]
        self._invoke_c.restype = None

    def run(self, inputs: Tensors) -> Tensors:
        """Runs N inferences; see `Runner.run`.

        Raises:
            CheckFailedError: The program wrote outside its arena.
        """
        outputs = _run_each(inputs, self.inputs, self.outputs, self._invoke)
        self._check_guards()
        return outputs

    def node_outputs(self, inputs: Tensors) -> list[tuple[int, bytes]]:
        """Runs one inference and returns what each node wrote.

        Args:
            inputs: One array ``[1, ...]`` per model input.

        Returns:
            A node's index and its output's bytes, in the order of execution. A node with
            several outputs appears once for each.

        Raises:
            BadInputError: The runner was made without ``record_nodes``.
            CheckFailedError: The program wrote outside its arena.
        """
        if not self._recording:
            raise BadInputError("this runner records no nodes", hint="pass record_nodes=True")
        seen: list[tuple[int, bytes]] = []

        def record(index: int, data: int, size: int) -> None:
            seen.append((index, ctypes.string_at(data, size)))

        hook = _NODE_HOOK(record)
        setter = self._library.ek_set_node_hook
        setter(hook)
        try:
            self.run(inputs)
        finally:
            setter(None)
        return seen

    def _invoke(self, inputs: Tensors) -> Tensors:
        self._arena[:] = _POISON
        for array, offset in zip(inputs, self._input_offsets, strict=True):
            data = np.frombuffer(array.tobytes(), dtype=np.uint8)
            self._arena[offset : offset + data.size] = data
        self._invoke_c(self._arena.ctypes.data)
        return tuple(
            np.frombuffer(self._arena[offset : offset + spec.bytes].tobytes(), spec.dtype)
            for spec, offset in zip(self.outputs, self._output_offsets, strict=True)
        )

    def _check_guards(self) -> None:
        inside = self._arena.ctypes.data - self._memory.ctypes.data
        before, after = self._memory[:inside], self._memory[inside + self._arena.size :]
        if not (np.all(before == _GUARD) and np.all(after == _GUARD)):
            raise CheckFailedError(
                "the generated C wrote outside its arena",
                allowed=f"{self._arena.size} bytes",
                hint="please report this model",
            )


def read_compile_report(bundle: Path) -> dict[str, Any]:
    """Reads the compile_report.json of a bundle.

    Raises:
        BadInputError: There is none, or it is damaged.
    """
    path = bundle / "compile_report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(report, dict) and {"name", "inputs", "outputs", "arena_bytes"} <= set(report):
            return report
    except (OSError, ValueError):
        pass
    raise BadInputError(
        "not a directory that edgekiln compile wrote: compile_report.json is missing or damaged",
        where=bundle,
    )


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


def check_inputs(inputs: Tensors, specs: Sequence[TensorSpec]) -> Tensors:
    """Returns the arrays when they fit the model.

    Raises:
        BadInputError: Wrong number of arrays, wrong dtype, or wrong number of elements.
    """
    if len(inputs) != len(specs):
        raise BadInputError("wrong number of inputs", got=len(inputs), allowed=len(specs))
    for array, spec in zip(inputs, specs, strict=True):
        if array.dtype != spec.dtype:
            raise BadInputError(
                "wrong dtype", where=f"input {spec.name}", got=array.dtype, allowed=spec.dtype
            )
        if array.ndim == 0 or math.prod(array.shape[1:]) != math.prod(spec.shape):
            raise BadInputError(
                "wrong shape",
                where=f"input {spec.name}",
                got=list(array.shape),
                allowed=["N", *spec.batch_shape],
            )
    if len({len(array) for array in inputs}) > 1:
        raise BadInputError(
            "inputs of different length", got=[len(array) for array in inputs], allowed="N each"
        )
    return inputs


def _run_each(
    inputs: Tensors,
    in_specs: Sequence[TensorSpec],
    out_specs: Sequence[TensorSpec],
    invoke: Callable[[Tensors], Tensors],
) -> Tensors:
    check_inputs(inputs, in_specs)
    samples = len(inputs[0])
    outputs = tuple(np.empty((samples, *spec.batch_shape), spec.dtype) for spec in out_specs)
    for sample in range(samples):
        answer = invoke(tuple(array[sample] for array in inputs))
        for array, value in zip(outputs, answer, strict=True):
            array[sample] = value.reshape(array.shape[1:])
    return outputs


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


def _tflite_spec(tensor: Any) -> TensorSpec:
    import tflite

    names = {
        getattr(tflite.TensorType, name): name.lower()
        for name in ("FLOAT32", "INT8", "UINT8", "INT16", "INT32", "INT64", "BOOL")
    }
    shape = tuple(int(size) for size in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
    return TensorSpec(tensor.Name().decode(errors="replace"), shape, np.dtype(names[tensor.Type()]))


def _onnx_spec(node: Any) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
    shape = tuple(size if isinstance(size, int) else 1 for size in node.shape)
    return TensorSpec(node.name, shape, dtype)


def _report_spec(entry: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(entry["name"], tuple(entry["shape"]), np.dtype(entry["dtype"]))


def _guarded_arena(size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns memory filled with the guard byte, and the 16-byte aligned arena inside it."""
    memory = np.full(size + 2 * _GUARD_BYTES + 16, _GUARD, dtype=np.uint8)
    start = _GUARD_BYTES + -(memory.ctypes.data + _GUARD_BYTES) % 16
    return memory, memory[start : start + size]


def _build_library(
    bundle: Path, name: str, record_nodes: bool, flags: Sequence[str]
) -> ctypes.CDLL:
    """Compiles a bundle and loads it. The library's file is gone once it is loaded."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise ToolMissingError("there is no C compiler", where="cc", hint="apt install gcc")
    sources = sorted(str(path) for path in bundle.glob("*.c"))
    recorder = []
    if record_nodes:
        recorder = ["-include", str(TEMPLATES / "node_hook.h")]
        sources.append(str(TEMPLATES / "node_hook.c"))
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as temporary:
        library = Path(temporary) / f"lib{name}.so"
        command = [compiler, *HOST_FLAGS, *flags, *recorder, f"-I{bundle}", "-o", str(library)]
        done = subprocess.run([*command, *sources], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
            raise CheckFailedError(
                f"the generated C does not compile: {lines[0]}", where=f"{compiler} in {bundle}"
            )
        return ctypes.CDLL(str(library))
