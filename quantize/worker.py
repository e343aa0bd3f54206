"""The process that converts Keras models to ``.tflite``; see `edgekiln.quantize.process`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln import files
from edgekiln.errors import BadInputError
from edgekiln.quantize.process import Job, Report, serve


def convert(job: Job, report: Report) -> Job:
    """Converts ``job["model"]`` to ``job["output"]``: int8 with ``representative``, else float.

    The model goes through a SavedModel with a batch of 1: straight from Keras the converter
    keeps a dynamic batch, which costs SHAPE and STRIDED_SLICE ops on the device.
    """
    report("loading TensorFlow")
    from edgekiln.train.model_file import read_model
    from edgekiln.train.quiet_keras import keras, tensorflow

    model = read_model(Path(job["model"]))
    samples = None
    if job["representative"] is not None:
        samples = np.load(job["representative"], allow_pickle=False)
        _check_shape(samples, model, job["model"])
    report("freezing the model")
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        signature = [
            keras.InputSpec(shape=(1, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name)
            for tensor in model.inputs
        ]
        model.export(scratch, format="tf_saved_model", verbose=False, input_signature=signature)
        converter = tensorflow.lite.TFLiteConverter.from_saved_model(scratch)
        if samples is not None:
            _want_int8(converter, samples, tensorflow)
        report("converting")
        files.write_bytes(Path(job["output"]), converter.convert())
    return {}


def _check_shape(samples: npt.NDArray[Any], model: Any, where: str) -> None:
    if len(model.inputs) != 1:
        raise BadInputError(
            "the model has several inputs", where=where, got=len(model.inputs), allowed="one"
        )
    wanted = tuple(model.inputs[0].shape[1:])
    if samples.shape[1:] != wanted:
        raise BadInputError(
            "the representative data do not fit the model's input",
            where=where,
            got=f"samples of shape {samples.shape[1:]}",
            allowed=f"shape {wanted}",
        )


def _want_int8(converter: Any, samples: npt.NDArray[Any], tensorflow: Any) -> None:
    def representative_dataset() -> Iterator[list[npt.NDArray[Any]]]:
        for sample in samples:
            yield [sample[np.newaxis]]

    converter.optimizations = [tensorflow.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative_dataset
    converter.target_spec.supported_ops = [tensorflow.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tensorflow.int8
    converter.inference_output_type = tensorflow.int8


if __name__ == "__main__":
    serve({"convert": convert})
