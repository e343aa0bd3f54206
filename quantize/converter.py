"""Converts models to ``.tflite`` with the converter's own post-training quantization."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgekiln import files
from edgekiln.errors import BadInputError
from edgekiln.quantize.audit import audit
from edgekiln.quantize.process import run_worker
from edgekiln.quantize.representative import (
    Representative,
    RepresentativeSet,
    check_representative,
)
from edgekiln.quantize.saved_model import is_saved_model
from edgekiln.quantize.scheme import Scheme

_WORKER = "edgekiln.quantize.worker"
_DESCRIPTIONS = {
    Scheme.FLOAT32: "converting to float TFLite",
    Scheme.FLOAT16: "converting to float16 weights",
    Scheme.DYNAMIC_RANGE: "quantizing the weights to int8",
    Scheme.INT8: "quantizing to int8",
    Scheme.INT16X8: "quantizing to int16 activations and int8 weights",
}


def convert(
    model_path: Path,
    output: Path,
    scheme: Scheme,
    representative: Representative | None = None,
    where: object = "",
) -> None:
    """Converts a Keras model to a ``.tflite`` with a batch of 1.

    Weights are quantized per channel, activations per tensor over the range from the least to
    the greatest value that each takes on the representative data. Inputs and outputs have the
    type of the activations.

    Args:
        model_path: A ``.keras`` or ``.h5`` file, or a SavedModel directory.
        output: The ``.tflite`` to write, whole or not at all.
        scheme: The types wanted. Only int8 and int16x8 take representative data.
        representative: float32 [N, ...], inputs like those the model will meet; of several
            inputs an array each, in their order or by name.
        where: The model's name in messages, by default ``model_path``.

    Raises:
        BadInputError: The representative data cannot be used, or a file cannot be read or
            written.
        BadModelError: The model cannot be loaded or converted, or some of its tensors cannot
            be of the types wanted; the message names them.
    """
    where = where or model_path
    if not is_saved_model(model_path):
        files.read_input_file(model_path)
    if (representative is not None) != scheme.needs_representative:
        raise BadInputError(
            f"{scheme} takes {'' if scheme.needs_representative else 'no '}representative data",
            where=where,
        )
    samples = None if representative is None else check_representative(representative, where)
    data = _run_converter(model_path, scheme, samples, where)
    audit(data, scheme, where)
    files.write_bytes(output, data)


def convert_float(model_path: Path, output: Path, where: object = "") -> None:
    """Converts a Keras model to a float32 ``.tflite``. Raises as `convert`."""
    convert(model_path, output, Scheme.FLOAT32, where=where)


def convert_int8(model_path: Path, representative: Representative, output: Path) -> None:
    """Quantizes a Keras model to an int8 ``.tflite``. Raises as `convert`."""
    convert(model_path, output, Scheme.INT8, representative)


def _run_converter(
    model_path: Path, scheme: Scheme, samples: RepresentativeSet | None, where: object
) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        output, archive = Path(scratch) / "model.tflite", Path(scratch) / "representative.npz"
        if samples is not None:
            samples.write(archive)
        job = {
            "task": "convert",
            "model": str(model_path),
            "scheme": str(scheme),
            "representative": None if samples is None else str(archive),
            "names": None if samples is None else samples.names,
            "output": str(output),
        }
        run_worker(_WORKER, job, where=Path(str(where)), description=_DESCRIPTIONS[scheme])
        return output.read_bytes()
