"""Quantizes a model from outside, with data from outside.

::

    from edgekiln.quantize import QuantizeOptions, quantize_file

    summary = quantize_file(Path("model.keras"), Path("data.npz"), Path("out"),
                            QuantizeOptions(scheme="int8", equalize=True))
    print(summary["accuracy"], summary["agreement"])

A model is a ``.keras`` or ``.h5`` file or a SavedModel directory (`quantize_file`), or a Keras
model in memory (`quantize_model`), which may hold Lambda layers and classes of one's own. The
format of the data stands in `edgekiln.quantize.own_data`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from edgekiln import console, files
from edgekiln.errors import BadInputError, BadModelError
from edgekiln.quantize.converter import convert, convert_float
from edgekiln.quantize.litert import Kernels, choose_kernels, runtime_name
from edgekiln.quantize.options import Format, Method, QuantizeOptions
from edgekiln.quantize.own_data import Archive, ModelShape, OwnData, Part, read_archive
from edgekiln.quantize.saved_model import is_saved_model
from edgekiln.quantize.scheme import Scheme
from edgekiln.quantize.tflite_run import Port, Signature, read_signature, run_real

if TYPE_CHECKING:
    from edgekiln.quantize.ptq import PtqConfig

Array = npt.NDArray[Any]

FLOAT_NAME = "float.tflite"
COMPRESSED_NAME = "compressed.keras"
SUMMARY_NAME = "quantize.json"
REPRESENTATIVE_SAMPLES = 200

#: Of float32 they differ from the reference kernels by rounding alone.
_FLOAT_KERNELS: Kernels = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
_SCHEMES = {
    Format.INT8: Scheme.INT8,
    Format.INT16X8: Scheme.INT16X8,
    Format.FLOAT16: Scheme.FLOAT16,
    Format.DYNAMIC: Scheme.DYNAMIC_RANGE,
}


@dataclass(frozen=True)
class Agreement:
    """How near a quantized model's output lies to the float model's, over the held-out samples.

    Attributes:
        output: The output's name.
        top1: Share of samples whose largest value is the same one; None unless the output is
            [N, classes].
        sqnr_db: Signal to noise, ``10 log10(sum y^2 / sum (y - q)^2)``; None where all values are
            equal or the float model gives nothing but zeros.
        max_abs_error: Largest difference.
    """

    output: str
    top1: float | None
    sqnr_db: float | None
    max_abs_error: float


@dataclass
class _Subject:
    """A model on its way, and what is known of it.

    Attributes:
        where: Its name in messages.
        keras_model: The model in memory; None for a SavedModel.
        file: What the converter reads; None for a model in memory.
        shape: What it takes and gives.
        facts: What its compression found, for ``quantize.json``.
        macs: Multiply-accumulate steps of the model as it came, where they are known.
    """

    where: Path
    keras_model: Any
    file: Path | None
    shape: ModelShape
    facts: dict[str, Any] = field(default_factory=dict)
    macs: int | None = None


def quantize_file(
    model: Path, data: Path, directory: Path, options: QuantizeOptions | None = None
) -> dict[str, Any]:
    """Compresses and quantizes a model file, and measures what that cost.

    Writes ``float.tflite`` (the model as it was), ``<scheme>.tflite``, ``quantize.json`` and,
    where weights or channels were removed, ``compressed.keras`` into ``directory``.

    Args:
        model: A ``.keras`` or ``.h5`` file, or a SavedModel directory.
        data: An ``.npz`` file as `edgekiln.quantize.own_data` describes it.
        directory: Where to write.
        options: How; all int8 after the training by default.

    Returns:
        What stands in ``quantize.json``.

    Raises:
        BadInputError: The data or the options cannot be used, with this model or at all.
        BadModelError: The model cannot be loaded or converted, or is not of the types wanted
            throughout; the message names the layers.
        CheckFailedError: A training diverged.
    """
    options = options or QuantizeOptions()
    if is_saved_model(model):
        require_keras(model, *options.needs_keras)
        archive = read_archive(data)
        convert_float(model, directory / FLOAT_NAME)
        subject = _Subject(model, None, model, _shape_of_tflite(directory / FLOAT_NAME))
    else:
        from edgekiln.train.model_file import read_model

        loaded = read_model(_require_file(model))
        archive = read_archive(data)
        shape = shape_of_keras(loaded, model)
        subject = _Subject(model, loaded, model, shape, macs=_count_macs(loaded))
    return _quantize(subject, archive, directory, options)


def quantize_model(
    model: Any, data: Path, directory: Path, options: QuantizeOptions | None = None
) -> dict[str, Any]:
    """Compresses and quantizes a Keras model in memory; otherwise as `quantize_file`.

    Args:
        model: A functional or Sequential Keras model, with any layers.
        data: As for `quantize_file`.
        directory: As for `quantize_file`.
        options: As for `quantize_file`.

    Returns:
        As `quantize_file`.

    Raises:
        EdgekilnError: As `quantize_file`.
    """
    where = Path(f"model '{model.name}'")
    shape = shape_of_keras(model, where)
    subject = _Subject(where, model, None, shape, macs=_count_macs(model))
    return _quantize(subject, read_archive(data), directory, options or QuantizeOptions())


def _count_macs(model: Any) -> int | None:
    from edgekiln.quantize.channels import count_macs

    try:
        return count_macs(model)
    except BadInputError:
        return None


def shape_of_keras(model: Any, where: object) -> ModelShape:
    """Returns what a Keras model takes and gives, if it is one that can be quantized.

    Raises:
        BadInputError: An input is not float32, or its size is not fixed.
        BadModelError: A weight is NaN or infinite.
    """
    for weight in model.weights:
        values = np.asarray(weight, np.float32)
        if not np.isfinite(values).all():
            raise BadModelError(
                "holds weights that are NaN or infinite",
                where=where,
                got=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} in {weight.path}",
                hint="its training diverged: train it anew with a smaller learning rate",
            )
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise BadInputError(
                f"the size of the model's input '{tensor.name}' is not fixed",
                where=where,
                got=tuple(tensor.shape),
                allowed="None for the batch alone",
                hint="build the model anew with the size in keras.Input, and give it the weights",
            )
        if str(tensor.dtype) != "float32":
            raise BadInputError(
                f"the model's input '{tensor.name}' has a type that is not supported",
                where=where,
                got=tensor.dtype,
                allowed="float32",
            )
    return ModelShape(
        {tensor.name: tuple(tensor.shape[1:]) for tensor in model.inputs},
        tuple(tuple(tensor.shape[1:]) for tensor in model.outputs),
    )


def _shape_of_tflite(path: Path) -> ModelShape:
    signature = read_signature(path.read_bytes(), path)
    return ModelShape(
        {port.name: port.shape[1:] for port in signature.inputs},
        tuple(port.shape[1:] for port in signature.outputs),
    )


def require_keras(model: Path, *options: str) -> None:
    """Refuses a SavedModel where options were given that work on Keras models alone.

    Raises:
        BadInputError: It is one.
    """
    if options and is_saved_model(model):
        raise BadInputError(
            f"{options[0]} needs a Keras model, and this is a SavedModel",
            where=model,
            allowed="a .keras or .h5 file",
        )


def _require_file(path: Path) -> Path:
    if path.is_dir():
        raise BadInputError(
            "is a directory without a saved_model.pb",
            where=path,
            allowed="a .keras or .h5 file, or a SavedModel",
        )
    return path


def _quantize(
    subject: _Subject, archive: Archive, directory: Path, options: QuantizeOptions
) -> dict[str, Any]:
    data = archive.for_model(subject.shape)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        if not (directory / FLOAT_NAME).exists():
            source = _converter_source(subject, Path(scratch))
            convert_float(source, directory / FLOAT_NAME, subject.where)
        if options.trains:
            _compress(subject, data, directory, options)
        output = directory / options.output_name
        _convert(subject, data.representative(REPRESENTATIVE_SAMPLES), output, options, scratch)
    summary = _summarize(subject, archive, data, directory, options)
    files.write_json(directory / SUMMARY_NAME, summary)
    console.show(summary_table(summary))
    return summary


def _converter_source(subject: _Subject, scratch: Path) -> Path:
    """Returns what the converter reads: the file, or the model in memory as a SavedModel."""
    if subject.file is not None:
        return subject.file
    from edgekiln.train.model_file import compute_in_float32

    target = Path(tempfile.mkdtemp(dir=scratch))
    changed = compute_in_float32(subject.keras_model)
    try:
        subject.keras_model.export(target, format="tf_saved_model", verbose=False)
    finally:
        for layer, policy in changed:
            layer.dtype_policy = policy
    return target


def _compress(subject: _Subject, data: OwnData, directory: Path, options: QuantizeOptions) -> None:
    """Removes channels, makes weights zero, trains with rounding: what of it was asked for."""
    from edgekiln.quantize.own_training import Trainer

    trainer = Trainer(subject.keras_model, data, subject.shape, options)
    if options.channels is not None:
        subject.facts["channels"] = trainer.remove_channels()
    if options.sparsity is not None:
        subject.facts["pruning"] = trainer.prune()
    if subject.facts:
        from edgekiln.train.model_file import write_model

        subject.facts["accuracy"] = trainer.accuracy()
        subject.facts["sparsity"] = trainer.sparsity()
        write_model(trainer.model, directory / COMPRESSED_NAME)
        if subject.file is not None:
            subject.file = directory / COMPRESSED_NAME
    if options.method is Method.QAT:
        subject.facts["training"] = trainer.train_quantized()
    subject.keras_model = trainer.model


def _convert(
    subject: _Subject,
    representative: Mapping[str, Array],
    output: Path,
    options: QuantizeOptions,
    scratch: str,
) -> None:
    if options.method is Method.QAT:
        from edgekiln.quantize.qat_convert import convert_qat

        convert_qat(subject.keras_model, output, subject.where)
    elif options.needs_calibration:
        from edgekiln.quantize.ptq import quantize_ptq

        config = ptq_config(options)
        quantize_ptq(subject.keras_model, representative, config, output, subject.where)
    else:
        scheme = _SCHEMES[options.scheme]
        samples = dict(representative) if scheme.needs_representative else None
        convert(_converter_source(subject, Path(scratch)), output, scheme, samples, subject.where)


def ptq_config(options: QuantizeOptions) -> PtqConfig:
    """Returns the options of post-training quantization as its own module takes them."""
    from edgekiln.quantize.calibration import CalibrationMethod
    from edgekiln.quantize.ptq import PtqConfig

    narrow = options.scheme is Format.INT4_WEIGHTS
    return PtqConfig(
        calibration=CalibrationMethod(options.calibration),
        weight_bits=4 if narrow else 8,
        weight_range="mse" if narrow else "max",
        activation_bits=16 if options.scheme is Format.INT16X8 else 8,
        equalize=options.equalize,
        bias_correction=options.bias_correction,
    )


def _summarize(
    subject: _Subject, archive: Archive, data: OwnData, directory: Path, options: QuantizeOptions
) -> dict[str, Any]:
    """Measures the models on the held-out samples; returns the content of ``quantize.json``."""
    floating = (directory / FLOAT_NAME).read_bytes()
    quantized = (directory / options.output_name).read_bytes()
    signature = read_signature(quantized, options.output_name)
    kernels = _choose_kernels(subject, signature, len(data.test))
    wanted = run_real(floating, data.test.x, FLOAT_NAME, _FLOAT_KERNELS, "Running the float model")
    got = run_real(
        quantized, data.test.x, options.output_name, kernels, "Running the quantized model"
    )
    agreement = compare_outputs(wanted, got)
    facts = dict(subject.facts)
    compressed_accuracy = facts.pop("accuracy", None)
    return {
        "model": subject.where.name,
        "data": archive.path.name,
        "options": options.to_json(),
        "split": asdict(data.split),
        "accuracy": {
            "float": _accuracy(wanted, data.test),
            "pruned": compressed_accuracy,
            "int8_host": _accuracy(got, data.test),
            "float_runtime": runtime_name(_FLOAT_KERNELS),
            "int8_runtime": runtime_name(kernels),
            "samples": len(data.test),
        },
        "agreement": [asdict(each) for each in agreement],
        "sparsity": facts.pop("sparsity", None),
        "channels": facts.pop("channels", None),
        "pruning": facts.pop("pruning", None),
        "training": facts.pop("training", None),
        "representative": _describe(data.representative(REPRESENTATIVE_SAMPLES)),
        "bytes": {FLOAT_NAME: len(floating), options.output_name: len(quantized)},
        "inputs": [_port(port) for port in signature.inputs],
        "outputs": [_port(port) for port in signature.outputs],
    }


def _choose_kernels(subject: _Subject, signature: Signature, samples: int) -> Kernels:
    """Returns the reference kernels for codes, unless they would take too long."""
    if not signature.is_integer:
        return _FLOAT_KERNELS
    if subject.macs is None:
        return "BUILTIN_REF"
    return choose_kernels(subject.macs, samples)


def compare_outputs(wanted: Mapping[str, Array], got: Mapping[str, Array]) -> tuple[Agreement, ...]:
    """Compares the outputs of a quantized model with those of the float one.

    Args:
        wanted: The float model's: name to float32 [N, …].
        got: The quantized model's, under the same names.

    Returns:
        One for each output, in the order of ``wanted``.
    """
    return tuple(_compare(name, wanted[name], got[name]) for name in wanted)


def _compare(name: str, wanted: Array, got: Array) -> Agreement:
    error = got.astype(np.float64) - wanted
    noise, signal = float(np.sum(error**2)), float(np.sum(wanted.astype(np.float64) ** 2))
    classes = wanted.ndim == 2 and wanted.shape[1] > 1
    same = np.argmax(got, axis=-1) == np.argmax(wanted, axis=-1)
    return Agreement(
        output=name,
        top1=float(np.mean(same)) if classes else None,
        sqnr_db=10 * float(np.log10(signal / noise)) if noise and signal else None,
        max_abs_error=float(np.abs(error).max()),
    )


def _accuracy(outputs: Mapping[str, Array], part: Part) -> float | None:
    if part.y is None:
        return None
    (values,) = outputs.values()
    return float(np.mean(np.argmax(values, axis=-1) == part.y))


def _describe(representative: Mapping[str, Array]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for array in representative.values():
        digest.update(array.tobytes())
    samples = len(next(iter(representative.values())))
    return {"samples": samples, "from": "training part", "sha256": digest.hexdigest()}


def _port(port: Port) -> dict[str, Any]:
    facts = {**asdict(port), "shape": list(port.shape)}
    del facts["index"]
    return facts


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Returns what was measured, from the content of ``quantize.json``, as a table.

    Without labels it is the agreement with the float model, and the title says so.
    """
    accuracy, samples = summary["accuracy"], summary["accuracy"]["samples"]
    scheme = summary["options"]["scheme"]
    if accuracy["float"] is None:
        return console.make_table(
            f"{summary['model']}: {scheme} against float on {samples} held-out samples, which have "
            "no labels",
            ("output", "same decision", "signal to noise", "largest error"),
            [_agreement_row(each) for each in summary["agreement"]],
        )
    rows: Sequence[tuple[str, float | None, str]] = (
        ("float", accuracy["float"], accuracy["float_runtime"]),
        ("pruned", accuracy["pruned"], "Keras"),
        (scheme, accuracy["int8_host"], accuracy["int8_runtime"]),
    )
    return console.make_table(
        f"{summary['model']}: accuracy on {samples} held-out samples",
        ("model", "accuracy", "against float", "measured with"),
        [
            (name, f"{100 * value:.2f} %", f"{100 * (value - accuracy['float']):+.2f}", runtime)
            for name, value, runtime in rows
            if value is not None
        ],
    )


def _agreement_row(each: Mapping[str, Any]) -> tuple[str, ...]:
    top1, sqnr = each["top1"], each["sqnr_db"]
    return (
        each["output"],
        "-" if top1 is None else f"{100 * top1:.2f} %",
        "-" if sqnr is None else f"{sqnr:.1f} dB",
        f"{each['max_abs_error']:.4g}",
    )
