"""Measures one model with one runtime. Runs on the board: Python 3.9, the runtime and its numpy.

    python measure.py RUNTIME MODEL INPUTS --samples N …

It is a process of its own for each runtime, so that a crash is one runtime's and the peak of the
memory is, too. The answer on stdout is the raw bytes of all outputs, an inference after the
other, then a line of JSON. A missing runtime or a model that it refuses is a line on stderr.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.metadata
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

TFLITE_PACKAGES = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
LEAST_RUNS = 20


class MeasureError(Exception):
    """It cannot be measured; the message is for people."""


class LiteRT:
    """LiteRT or its predecessor tflite-runtime, whichever is installed.

    Args:
        model: The .tflite file.
        threads: How many threads it may use.
        reference: Whether to take the reference kernels instead of XNNPACK.
    """

    def __init__(self, model: str, threads: int, reference: bool) -> None:
        self.package, module = _import_tflite()
        kinds = module.OpResolverType
        self._interpreter = module.Interpreter(
            model,
            num_threads=threads,
            experimental_op_resolver_type=kinds.BUILTIN_REF if reference else kinds.AUTO,
        )
        self._interpreter.allocate_tensors()
        self.inputs = [_spec(entry) for entry in self._interpreter.get_input_details()]
        self.outputs = [_spec(entry) for entry in self._interpreter.get_output_details()]
        self._input_indices = [d["index"] for d in self._interpreter.get_input_details()]
        self._output_indices = [d["index"] for d in self._interpreter.get_output_details()]

    def infer(self, inputs: Sequence[Any]) -> tuple[list[Any], int]:
        """Runs one inference by itself; returns its outputs, and what it took in ns."""
        for number, index in enumerate(self._input_indices):
            self._interpreter.set_tensor(index, inputs[number])
        start_ns = time.perf_counter_ns()
        self._interpreter.invoke()
        took_ns = time.perf_counter_ns() - start_ns
        outputs = [self._interpreter.get_tensor(index) for index in self._output_indices]
        self._interpreter.reset_all_variables()
        return outputs, took_ns


class OnnxRuntime:
    """ONNX Runtime on the CPU.

    Args:
        model: The .onnx file.
        threads: How many threads it may use.
    """

    package = "onnxruntime"

    def __init__(self, model: str, threads: int) -> None:
        onnxruntime = _import("onnxruntime", "onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [_onnx_spec(node) for node in self._session.get_inputs()]
        self.outputs = [_onnx_spec(node) for node in self._session.get_outputs()]
        self._names = [node.name for node in self._session.get_inputs()]

    def infer(self, inputs: Sequence[Any]) -> tuple[list[Any], int]:
        """Runs one inference; returns its outputs, and what it took in ns."""
        feed = {name: inputs[number] for number, name in enumerate(self._names)}
        start_ns = time.perf_counter_ns()
        outputs = self._session.run(None, feed)
        return outputs, time.perf_counter_ns() - start_ns


def make_engine(runtime: str, model: str, threads: int) -> Any:
    """Loads a model into a runtime.

    Raises:
        MeasureError: The runtime is not installed.
    """
    if runtime == "onnxruntime":
        return OnnxRuntime(model, threads)
    return LiteRT(model, threads, reference=runtime == "litert-reference")


def measure(options: argparse.Namespace, answer: BinaryIO) -> None:
    """Measures what the command line says, and writes the answer.

    Raises:
        MeasureError: The runtime is not installed, or the inputs are not those of the model.
    """
    engine = make_engine(options.runtime, options.model, 1)
    first = None
    samples = 0
    for inputs in read_inputs(options.inputs, engine.inputs):
        outputs, _ = engine.infer(inputs)
        for array in outputs:
            answer.write(array.tobytes())
        first = first or inputs
        samples += 1
    if first is None or samples != options.samples:
        raise MeasureError(f"the inputs are {samples} of this model's, not {options.samples}")
    about = {
        "package": engine.package,
        "version": importlib.metadata.version(engine.package),
        "outputs": engine.outputs,
        "peak_memory_kib": peak_memory_kib(),
        "runtime_bytes": installed_bytes(engine.package),
        "times_ns": {},
    }
    for threads in options.threads:
        if threads != 1:
            del engine  # its threads would be in the way
            engine = make_engine(options.runtime, options.model, threads)
        about["times_ns"][str(threads)] = time_inferences(
            engine, first, options.warmup, options.runs, options.seconds
        )
    answer.write(f"\n{json.dumps(about)}\n".encode())
    answer.flush()


def time_inferences(
    engine: Any, inputs: Sequence[Any], warmup: int, runs: int, seconds: float
) -> list[int]:
    """Returns what each of up to ``runs`` inferences took in ns.

    After ``seconds`` no more are begun, once there are 20.
    """
    for _ in range(warmup):
        engine.infer(inputs)
    end_s = time.monotonic() + seconds
    times_ns: list[int] = []
    while len(times_ns) < runs and (len(times_ns) < LEAST_RUNS or time.monotonic() < end_s):
        times_ns.append(engine.infer(inputs)[1])
    return times_ns


def read_inputs(path: str, specs: Sequence[dict[str, Any]]) -> Iterator[list[Any]]:
    """Reads raw inputs, one inference after the other; a file may be gzipped.

    Raises:
        MeasureError: The file ends within an inference.
    """
    numpy = _import("numpy", "numpy")
    sizes = [math.prod(spec["shape"]) * numpy.dtype(spec["dtype"]).itemsize for spec in specs]
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as stream:
        while True:
            row = [stream.read(size) for size in sizes]
            if not any(row):
                return
            if [len(data) for data in row] != sizes:
                raise MeasureError("the inputs are not those of this model")
            yield [
                numpy.frombuffer(row[number], spec["dtype"]).reshape(spec["shape"])
                for number, spec in enumerate(specs)
            ]


def peak_memory_kib() -> int | None:
    """Returns the most memory that this process has had, or None where Linux does not say.

    Not by getrusage: that also counts what the process was before it became this program.
    """
    try:
        with open("/proc/self/status", encoding="utf-8", errors="replace") as stream:
            found = re.search(r"^VmHWM:\s+(\d+) kB$", stream.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None


def installed_bytes(package: str) -> int:
    """Returns how much a package and what it needs take on the disk."""
    found: set[str] = set()
    todo = [package]
    total_bytes = 0
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system, or optional
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement:
                todo += re.findall(r"^[A-Za-z0-9._-]+", requirement)
        for path in {os.path.realpath(str(f.locate())) for f in distribution.files or ()}:
            if os.path.isfile(path):
                total_bytes += os.path.getsize(path)
    return total_bytes


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="measure.py", description=__doc__)
    parser.add_argument("runtime", choices=("litert", "litert-reference", "onnxruntime"))
    parser.add_argument("model", help="a .tflite or .onnx file")
    parser.add_argument("inputs", help="raw inputs, one inference after the other; .gz or not")
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=_numbers, default=[1])
    return parser.parse_args(arguments)


def main() -> int:
    """Entry point."""
    options = parse(sys.argv[1:])
    # Native code prints on fd 1 without being asked; the answer must be alone there.
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)
        try:
            measure(options, answer)
        except Exception as error:  # a runtime may raise anything when it refuses a model
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[0] if lines else "no message"
            name = "" if isinstance(error, MeasureError) else f"{type(error).__name__}: "
            print(f"\n{name}{reason}", file=sys.stderr)
            return 1
    return 0


def _import_tflite() -> tuple[str, Any]:
    for package, module in TFLITE_PACKAGES.items():
        try:
            return package, importlib.import_module(f"{module}.interpreter")
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    raise MeasureError(f"not installed: {' or '.join(TFLITE_PACKAGES)}")


def _import(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MeasureError(f"not installed: {package}") from None


def _spec(entry: dict[str, Any]) -> dict[str, Any]:
    numpy = _import("numpy", "numpy")
    shape = [int(size) for size in entry["shape"]]
    return {"shape": shape, "dtype": numpy.dtype(entry["dtype"]).name}


def _onnx_spec(node: Any) -> dict[str, Any]:
    kind = node.type[len("tensor(") : -1]
    shape = [size if isinstance(size, int) else 1 for size in node.shape]
    return {"shape": shape, "dtype": {"float": "float32", "double": "float64"}.get(kind, kind)}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
