"""The process that converts Keras models to ``.tflite``; see `edgekiln.quantize.process`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from edgekiln import files
from edgekiln.quantize.process import Job, Report, serve
from edgekiln.quantize.representative import InputShape, batches, read_representative
from edgekiln.quantize.saved_model import freeze_saved_model
from edgekiln.quantize.scheme import Scheme


def convert(job: Job, report: Report) -> Job:
    """Converts ``job["model"]`` to ``job["output"]`` with the types of ``job["scheme"]``.

    The model goes through a SavedModel with a batch of 1: straight from Keras the converter
    keeps a dynamic batch, which costs SHAPE and STRIDED_SLICE ops on the device.
    """
    report("loading TensorFlow")
    from edgekiln.train.quiet_keras import tensorflow

    source = Path(job["model"])
    report("freezing the model")
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        if source.is_dir():
            inputs = freeze_saved_model(source, Path(scratch))
        else:
            inputs = _freeze_keras(source, scratch)
        converter = tensorflow.lite.TFLiteConverter.from_saved_model(scratch)
        _set_types(converter, Scheme(job["scheme"]), tensorflow)
        if job["representative"] is not None:
            read = read_representative(Path(job["representative"]), job["names"])
            shapes = [InputShape(name, shape) for name, shape in inputs.items()]
            _set_representative(converter, read.for_inputs(shapes, job["model"]))
        report("converting")
        files.write_bytes(Path(job["output"]), converter.convert())
    return {}


def _freeze_keras(source: Path, directory: str) -> dict[str, tuple[int | None, ...]]:
    """Writes a Keras model as a SavedModel; returns the shape of a sample by input."""
    from edgekiln.train.model_file import read_model
    from edgekiln.train.quiet_keras import keras

    model = read_model(source)
    # A Sequential model that was read from a file has no `input`.
    taken = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    signature = keras.tree.map_structure(
        lambda tensor: keras.InputSpec(
            shape=(1, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name
        ),
        taken,
    )
    model.export(directory, format="tf_saved_model", verbose=False, input_signature=[signature])
    return {tensor.name: tuple(tensor.shape[1:]) for tensor in model.inputs}


def _set_types(converter: Any, scheme: Scheme, tensorflow: Any) -> None:
    lite = tensorflow.lite
    if scheme is not Scheme.FLOAT32:
        converter.optimizations = [lite.Optimize.DEFAULT]
    if scheme is Scheme.FLOAT16:
        converter.target_spec.supported_types = [tensorflow.float16]
    elif scheme is Scheme.INT8:
        converter.target_spec.supported_ops = [lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tensorflow.int8
    elif scheme is Scheme.INT16X8:
        ops = lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [ops]
        converter.inference_input_type = converter.inference_output_type = tensorflow.int16


def _set_representative(converter: Any, samples: Mapping[str, npt.NDArray[Any]]) -> None:
    # By name: the order of a converted model's inputs is not Keras's.
    def representative_dataset() -> Iterator[dict[str, npt.NDArray[Any]]]:
        yield from batches(samples, 1)

    converter.representative_dataset = representative_dataset


if __name__ == "__main__":
    serve({"convert": convert})
