"""The quantize stage: a trained recipe in; pruned, converted, audited and measured models out."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from edgekiln import console, files
from edgekiln.errors import BadInputError
from edgekiln.quantize import litert
from edgekiln.quantize.channels import count_macs
from edgekiln.quantize.compress import compress
from edgekiln.quantize.converter import convert_float, convert_int8
from edgekiln.quantize.pruning import measure_sparsity
from edgekiln.quantize.qat import weight_quantizers
from edgekiln.quantize.qat_convert import convert_qat
from edgekiln.quantize.variants import Step, Variant
from edgekiln.train.datasets import Dataset, load_dataset, spread_evenly
from edgekiln.train.kept import kept_file, read_history, unpack_model
from edgekiln.train.loop import predict_classes
from edgekiln.train.model_file import read_model, write_model
from edgekiln.train.quiet_keras import keras
from edgekiln.train.recipe import Recipe

PRUNED_NAME = "pruned.keras"
FLOAT_NAME = "float.tflite"
INT8_NAME = "int8.tflite"
SUMMARY_NAME = "quantize.json"
PREDICTIONS_NAME = "predictions.npz"

_REPRESENTATIVE_SAMPLES = 200


def quantize_recipe(
    recipe: Recipe,
    model_path: Path,
    directory: Path,
    variant: Variant | None = None,
    *,
    anew: bool = False,
    run_int8: bool = True,
) -> None:
    """Prunes and quantizes a trained model, and measures what each step cost.

    Writes ``float.tflite``, ``int8.tflite``, ``quantize.json``, ``predictions.npz`` (the class
    that each Keras model finds for each sample of the test set, int16 [N]) and, where something
    is pruned, ``pruned.keras`` into ``directory``; shows the table of accuracies.

    Args:
        recipe: Says on which data, and how to prune.
        model_path: The trained model, ``.keras``.
        directory: Where to write.
        variant: What to do instead of the recipe's own pruning.
        anew: Whether to compress again what is kept with the project.
        run_int8: Whether to measure the int8 model's accuracy with LiteRT.

    Raises:
        BadInputError: The model does not take the recipe's data, or the plan for pruning
            makes no sense.
        BadModelError: The model cannot be loaded or converted, or is not int8 throughout.
        CheckFailedError: The training diverged.
    """
    dataset = load_dataset(recipe.dataset)
    model = read_model(model_path)
    _check_fits(model, dataset, model_path)
    predictions = {"float": predict_classes(model, dataset.x_test)}
    representative = choose_representative(dataset)
    made = _compress(model, recipe, variant, dataset, anew=anew)
    if made.model is not None:
        model, model_path = made.model, directory / PRUNED_NAME
        write_model(model, model_path)
    convert_float(model_path, directory / FLOAT_NAME)
    if made.int8 is not None:
        files.write_bytes(directory / INT8_NAME, made.int8)
    else:
        convert_int8(model_path, representative, directory / INT8_NAME)
    if made.classes is not None:
        predictions["pruned"] = made.classes
    files.write_bytes(directory / PREDICTIONS_NAME, _pack(predictions))
    int8 = (directory / INT8_NAME).read_bytes()
    kernels = litert.choose_kernels(count_macs(model), len(dataset.y_test))
    summary = {
        "recipe": recipe.name,
        "variant": variant.name if variant else None,
        "seed": recipe.seed,
        "dataset": dataset.name,
        "split": asdict(dataset.split),
        "accuracy": {
            "float": _share(predictions["float"], dataset),
            "pruned": made.accuracy,
            "int8_host": litert.measure_accuracy(
                int8, dataset.x_test, dataset.y_test, INT8_NAME, kernels
            )
            if run_int8
            else None,
            "float_runtime": f"keras {keras.__version__}",
            "int8_runtime": litert.runtime_name(kernels) if run_int8 else None,
            "samples": len(dataset.y_test),
        },
        "parameters": model.count_params(),
        "sparsity": measure_sparsity(model),
        "compression": made.records,
        "representative": {
            "samples": len(representative),
            "from": "training part",
            "sha256": hashlib.sha256(representative.tobytes()).hexdigest(),
        },
        "input": asdict(litert.read_input_spec(int8, INT8_NAME)),
    }
    files.write_json(directory / SUMMARY_NAME, summary)
    console.show(accuracy_table(summary))


@dataclass(frozen=True)
class _Made:
    """What compression made.

    Attributes:
        model: A Keras model; None where nothing was compressed, or training was quantized.
        int8: The .tflite of a model that was trained quantized, or None.
        accuracy: Of the Keras model, quantized in training or not, on the test set.
        records: One for each step.
        classes: What that model finds for each sample of the test set, int64 [N]; None of a
            .tflite that is kept.
    """

    model: Any
    int8: bytes | None
    accuracy: float | None
    records: list[dict[str, Any]]
    classes: npt.NDArray[np.int64] | None = None


def _compress(
    model: Any, recipe: Recipe, variant: Variant | None, dataset: Dataset, *, anew: bool
) -> _Made:
    """Compresses a trained model, or takes what is kept of that."""
    if variant and not anew and (kept := kept_file(variant.model_name(recipe.name))):
        return _read_kept(kept, dataset)
    own: tuple[Step, ...] = (recipe.pruning,) if recipe.pruning else ()
    records = []
    for step in variant.steps if variant else own:
        model, record = compress(model, recipe, step, dataset)
        records.append(record)
    if not records:
        return _Made(None, None, None, [])
    if not weight_quantizers(model):
        return _measure(model, records, dataset)
    classes = predict_classes(model, dataset.x_test)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        output = Path(scratch) / INT8_NAME
        convert_qat(model, output, recipe.name)
        return _Made(None, output.read_bytes(), _share(classes, dataset), records, classes)


def _measure(model: Any, records: list[dict[str, Any]], dataset: Dataset) -> _Made:
    classes = predict_classes(model, dataset.x_test)
    return _Made(model, None, _share(classes, dataset), records, classes)


def _read_kept(path: Path, dataset: Dataset) -> _Made:
    """Returns what is kept; a Keras model, which keeping has rounded, is measured as it is."""
    history = read_history(path.stem)
    records = history["compression"]
    if path.suffix == ".tflite":
        return _Made(None, path.read_bytes(), history["accuracy"]["pruned"], records)
    return _measure(unpack_model(path.read_bytes(), path), records, dataset)


def _share(classes: npt.NDArray[np.int64], dataset: Dataset) -> float:
    return float(np.mean(classes == dataset.y_test))


def _pack(arrays: Mapping[str, npt.NDArray[np.int64]]) -> bytes:
    stream = io.BytesIO()
    narrow: dict[str, Any] = {name: array.astype(np.int16) for name, array in arrays.items()}
    np.savez_compressed(stream, **narrow)
    return stream.getvalue()


def choose_representative(dataset: Dataset) -> npt.NDArray[np.float32]:
    """Returns up to 200 training inputs, float32 [N, ...], spread evenly over the data set."""
    return dataset.x_train[spread_evenly(len(dataset.x_train), _REPRESENTATIVE_SAMPLES)]


def accuracy_table(summary: Mapping[str, Any]) -> Table:
    """Returns the table of accuracies from the content of ``quantize.json``."""
    measured = summary["accuracy"]
    rows = [
        ("float", measured["float"], measured["float_runtime"]),
        ("pruned", measured["pruned"], measured["float_runtime"]),
        ("int8", measured["int8_host"], measured["int8_runtime"]),
    ]
    return console.make_table(
        f"{summary['recipe']}: accuracy on {measured['samples']} held-out samples",
        ("model", "accuracy", "against float", "measured with"),
        [
            (name, f"{100 * value:.2f} %", f"{100 * (value - measured['float']):+.2f}", runtime)
            for name, value, runtime in rows
            if value is not None
        ],
    )


def _check_fits(model: Any, dataset: Dataset, where: Path) -> None:
    """Refuses a model whose input or output is not the data set's."""
    got = [tuple(tensor.shape[1:]) for tensor in (*model.inputs, *model.outputs)]
    wanted = [dataset.x_train.shape[1:], (len(dataset.class_names),)]
    if got != wanted:
        raise BadInputError(
            f"the model does not fit the data set {dataset.name}",
            where=where,
            got=f"shapes {got}",
            allowed=f"input and output of shapes {wanted}",
        )
