"""The process that makes and checks ONNX files; see `edgekiln.export.onnx`."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.quantize import litert
from edgekiln.quantize.process import Job, Report, serve

Array = npt.NDArray[Any]

_NUMBER = re.compile(r"__(\d+)")
_PACKAGES = ("onnx", "onnxruntime", "tf2onnx")


def export_float(job: Job, report: Report) -> Job:
    """Converts ``job["source"]``, a Keras model, and compares it on ``job["inputs"]``."""
    _require_packages()
    report("loading TensorFlow")
    from edgekiln.train.model_file import read_model
    from edgekiln.train.quiet_keras import keras

    model = read_model(Path(job["source"]))
    inputs = np.load(job["inputs"], allow_pickle=False)
    _check_model(model, inputs, job["source"])
    report("converting")
    (tensor,) = model.inputs
    shape = (1, *tensor.shape[1:])
    model.export(
        job["output"],
        format="onnx",
        verbose=False,
        opset_version=job["opset"],
        input_signature=[keras.InputSpec(shape=shape, dtype=tensor.dtype, name=tensor.name)],
    )
    _renumber(job["output"])
    report("comparing")
    got = _run(job["output"], inputs)
    want = np.asarray(model.predict(inputs, verbose=0))
    outside = ~np.isclose(got, want, rtol=job["relative"], atol=job["absolute"])
    return _compare(got, want, outside, f"keras {keras.__version__}")


def export_int8(job: Job, report: Report) -> Job:
    """Converts ``job["source"]``, an int8 ``.tflite``, and compares it on ``job["inputs"]``."""
    _require_packages()
    source = Path(job["source"])
    tflite = source.read_bytes()
    inputs = np.load(job["inputs"], allow_pickle=False)
    wanted = litert.read_input_spec(tflite, source).shape
    if inputs.shape[1:] != wanted:
        raise _wrong_shape(inputs, wanted, source)
    report("loading TensorFlow")
    import tf2onnx

    report("converting")
    tf2onnx.convert.from_tflite(str(source), opset=job["opset"], output_path=job["output"])
    _renumber(job["output"])
    report("comparing")
    got = _run(job["output"], inputs)
    want = litert.run_int8(tflite, inputs, source)
    return _compare(got, want, got != want, litert.runtime_name())


def _require_packages() -> None:
    for name in _PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ToolMissingError(
                f"{name} is needed to export ONNX",
                hint="install it with: pip install 'edgekiln[onnx]'",
            ) from None


def _check_model(model: Any, inputs: Array, where: str) -> None:
    if (len(model.inputs), len(model.outputs)) != (1, 1):
        raise BadInputError(
            "the model has several inputs or outputs",
            where=where,
            got=f"{len(model.inputs)} inputs, {len(model.outputs)} outputs",
            allowed="one of each",
        )
    wanted = tuple(model.inputs[0].shape[1:])
    if inputs.shape[1:] != wanted:
        raise _wrong_shape(inputs, wanted, where)


def _wrong_shape(inputs: Array, wanted: tuple[int, ...], where: object) -> BadInputError:
    return BadInputError(
        "the inputs to compare on do not fit the model",
        where=where,
        got=f"samples of shape {inputs.shape[1:]}",
        allowed=f"shape {wanted}",
    )


def _renumber(path: str) -> None:
    """Makes the file depend on the model alone.

    tf2onnx numbers what it adds (``Relu__31``) in an order that changes from run to run. Here
    the numbers follow the order of the nodes, and the constants that of their first use.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # A loop's body refers to outer names; the file is right as it is.
    numbers: dict[str, int] = {}

    def rename(name: str) -> str:
        return _NUMBER.sub(lambda found: f"__{numbers.setdefault(found[1], len(numbers))}", name)

    uses: dict[str, int] = {}
    for node in graph.node:
        node.name = rename(node.name)
        node.input[:] = [rename(name) for name in node.input]
        node.output[:] = [rename(name) for name in node.output]
        for name in node.input:
            uses.setdefault(name, len(uses))
    for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        named.name = rename(named.name)
    ordered = sorted(graph.initializer, key=lambda constant: uses.get(constant.name, len(uses)))
    del graph.initializer[:]
    graph.initializer.extend(ordered)
    onnx.save(model, path)


def _run(path: str, inputs: Array) -> Array:
    """Checks an ONNX file and returns its outputs, one sample at a time."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: sample[np.newaxis]})[0] for sample in inputs])


def _compare(got: Array, want: Array, different: Array, reference: str) -> Job:
    if got.shape != want.shape or got.dtype != want.dtype:
        raise TypeError(f"ONNX gives {got.dtype} {got.shape}, not {want.dtype} {want.shape}")
    wide = np.float64
    return {
        "reference": reference,
        "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        "samples": len(got),
        "values": int(got.size),
        "different_values": int(np.count_nonzero(different)),
        "max_abs_diff": float(np.max(np.abs(got.astype(wide) - want.astype(wide)))),
        "changed_decisions": int(
            np.count_nonzero(_decisions(got) != _decisions(want)),
        ),
    }


def _decisions(outputs: Array) -> npt.NDArray[np.int64]:
    decisions: npt.NDArray[np.int64] = outputs.reshape(len(outputs), -1).argmax(axis=1)
    return decisions


if __name__ == "__main__":
    serve({"float": export_float, "int8": export_int8})
