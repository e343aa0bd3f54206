"""Converts Keras models to ``.tflite``: float, or all int8 by post-training quantization."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekiln import files
from edgekiln.errors import BadInputError
from edgekiln.quantize.audit import audit_int8
from edgekiln.quantize.process import run_worker

_WORKER = "edgekiln.quantize.worker"


def convert_float(model_path: Path, output: Path) -> None:
    """Converts a Keras model to a float32 ``.tflite`` with a batch of 1.

    Args:
        model_path: A ``.keras`` file.
        output: The ``.tflite`` to write, whole or not at all.

    Raises:
        BadInputError: A file cannot be read or written.
        BadModelError: The model cannot be loaded or converted.
    """
    files.read_input_file(model_path)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        data = _convert(model_path, None, Path(scratch), "converting to float TFLite")
    files.write_bytes(output, data)


def convert_int8(model_path: Path, representative: npt.NDArray[np.float32], output: Path) -> None:
    """Quantizes a Keras model to a ``.tflite`` with a batch of 1, inputs and outputs int8.

    Weights are quantized per channel, activations per tensor, over the range that each
    takes on the representative data.

    Args:
        model_path: A ``.keras`` file of a model with one input.
        representative: float32 [N, ...], inputs like those the model will meet.
        output: The ``.tflite`` to write, whole or not at all.

    Raises:
        BadInputError: The representative data cannot be used, or a file cannot be read or
            written.
        BadModelError: The model cannot be loaded or converted, or some of its tensors
            cannot be int8; the message names them.
    """
    files.read_input_file(model_path)
    check_representative(representative, model_path)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        samples = Path(scratch) / "representative.npy"
        np.save(samples, representative, allow_pickle=False)
        data = _convert(model_path, samples, Path(scratch), "quantizing to int8")
    audit_int8(data, output)
    files.write_bytes(output, data)


def check_representative(representative: npt.NDArray[np.float32], where: object) -> None:
    """Checks what can be checked about representative data without the model.

    Raises:
        BadInputError: It is empty, not float32, or not finite.
    """
    if representative.dtype != np.float32:
        raise BadInputError(
            "the representative data have the wrong type",
            where=where,
            got=representative.dtype,
            allowed="float32",
        )
    if representative.ndim < 2 or representative.size == 0:
        raise BadInputError(
            "the representative data are empty or lack the axis of samples",
            where=where,
            got=f"shape {representative.shape}",
            allowed="[N, ...] with N >= 1",
        )
    bad = np.argwhere(~np.isfinite(representative).reshape(len(representative), -1).all(axis=1))
    if bad.size:
        raise BadInputError(
            "the representative data hold NaN or infinity",
            where=where,
            got=f"{len(bad)} such samples, the first is number {bad[0, 0]}",
            allowed="finite values",
        )


def _convert(model_path: Path, samples: Path | None, scratch: Path, description: str) -> bytes:
    output = scratch / "model.tflite"
    job = {
        "task": "convert",
        "model": str(model_path),
        "representative": None if samples is None else str(samples),
        "output": str(output),
    }
    run_worker(_WORKER, job, where=model_path, description=description)
    return output.read_bytes()
