"""Converts fake-quantized Keras models to all-int8 ``.tflite`` files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgekiln import files
from edgekiln.errors import BadModelError
from edgekiln.quantize.audit import audit_int8
from edgekiln.quantize.lowering import WEIGHTED
from edgekiln.quantize.process import run_worker
from edgekiln.quantize.qat import activation_quantizers, weight_quantizers
from edgekiln.train.model_file import write_model

_WORKER = "edgekiln.quantize.qat_worker"


def convert_qat(model: Any, output: Path, where: object = "") -> None:
    """Converts a quantized model to a ``.tflite`` with a batch of 1, all int8.

    Every weight has the code that the Keras model computes with, at 8 bits and at 4, and every
    activation the range that it has there. Four-bit weights are stored as int4, those of a
    transposed convolution, for which no kernel reads int4, as int8 with the same scale. Inputs
    and outputs are in the order of the Keras model's.

    Args:
        model: What `edgekiln.quantize.qat.quantize_model` returned, trained or not.
        output: The ``.tflite`` to write, whole or not at all.
        where: The model's name in messages, by default its own.

    Raises:
        BadInputError: The file cannot be written.
        BadModelError: The model has layers that are not quantized, quantizers without a range or
            switched off, or the converter fails.
    """
    where = str(where) or f"model '{model.name}'"
    check_convertible(model, where)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        source, result = Path(scratch) / "model.keras", Path(scratch) / "model.tflite"
        write_model(model, source)
        job = {"task": "convert", "model": str(source), "output": str(result), "where": where}
        run_worker(_WORKER, job, where=Path(where), description="converting to int8")
        data = result.read_bytes()
    audit_int8(data, where)
    files.write_bytes(output, data)


def check_convertible(model: Any, where: object) -> None:
    """Checks that a model is quantized throughout, with ranges for all activations.

    Raises:
        BadModelError: It is not; the message names the layers.
    """
    activations, weights = activation_quantizers(model), weight_quantizers(model)
    plain = [x.name for x in model.layers if isinstance(x, WEIGHTED) and x.name not in weights]
    if plain or not activations:
        _refuse(where, "layers that are not quantized", plain or ["all"], "quantize_model makes it")
    unknown = [name for name, each in activations.items() if not each.has_range]
    if unknown:
        _refuse(where, "activations without a range", unknown, "calibrate it: calibrate_ranges")
    off = [name for name, each in activations.items() if not each.enabled]
    off += [name for name, each in weights.items() if not each.weights_enabled]
    if off:
        _refuse(where, "quantizers that are switched off", off, "switch them on")
    wide = [name for name, each in activations.items() if each.bits != 8]
    if wide:
        _refuse(where, "activations of 16 bits", wide, "set their bits to 8")


def _refuse(where: object, what: str, names: list[str], hint: str) -> None:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    raise BadModelError(f"has {what}", where=where, got=shown, hint=hint)
