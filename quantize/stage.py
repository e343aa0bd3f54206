"""The quantize stage: a trained recipe in; pruned, converted, audited and measured models out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
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
from edgekiln.quantize.pruning import measure_sparsity
from edgekiln.quantize.ptq import convert_float, convert_int8
from edgekiln.quantize.variants import Step, Variant
from edgekiln.train.datasets import Dataset, load_dataset
from edgekiln.train.kept import kept_file, read_history, unpack_model
from edgekiln.train.loop import accuracy
from edgekiln.train.model_file import read_model, write_model
from edgekiln.train.quiet_keras import keras
from edgekiln.train.recipe import Recipe

PRUNED_NAME = "pruned.keras"
FLOAT_NAME = "float.tflite"
INT8_NAME = "int8.tflite"
SUMMARY_NAME = "quantize.json"

_REPRESENTATIVE_SAMPLES = 200


def quantize_recipe(
    recipe: Recipe,
    model_path: Path,
    directory: Path,
    variant: Variant | None = None,
    *,
    anew: bool = False,
) -> None:
    """Prunes and quantizes a trained model, and measures what each step cost.

    Writes ``float.tflite``, ``int8.tflite``, ``quantize.json`` and, where something is pruned,
    ``pruned.keras`` into ``directory``; shows the table of accuracies.

    Args:
        recipe: Says on which data, and how to prune.
        model_path: The trained model, ``.keras``.
        directory: Where to write.
        variant: What to do instead of the recipe's own pruning.
        anew: Whether to compress again what is kept with the project.

    Raises:
        BadInputError: The model does not take the recipe's data, or the plan for pruning
            makes no sense.
        BadModelError: The model cannot be loaded or converted, or is not int8 throughout.
        CheckFailedError: The training diverged.
    """
    dataset = load_dataset(recipe.dataset)
    model = read_model(model_path)
    _check_fits(model, dataset, model_path)
    float_accuracy = accuracy(model, dataset.x_test, dataset.y_test)
    pruned_accuracy = None
    model, records = _compress(model, recipe, variant, dataset, anew=anew)
    if records:
        pruned_accuracy = accuracy(model, dataset.x_test, dataset.y_test)
        model_path = directory / PRUNED_NAME
        write_model(model, model_path)
    representative = choose_representative(dataset)
    convert_float(model_path, directory / FLOAT_NAME)
    convert_int8(model_path, representative, directory / INT8_NAME)
    int8 = (directory / INT8_NAME).read_bytes()
    kernels = litert.choose_kernels(count_macs(model), len(dataset.y_test))
    summary = {
        "recipe": recipe.name,
        "variant": variant.name if variant else None,
        "seed": recipe.seed,
        "dataset": dataset.name,
        "split": asdict(dataset.split),
        "accuracy": {
            "float": float_accuracy,
            "pruned": pruned_accuracy,
            "int8_host": litert.measure_accuracy(
                int8, dataset.x_test, dataset.y_test, INT8_NAME, kernels
            ),
            "float_runtime": f"keras {keras.__version__}",
            "int8_runtime": litert.runtime_name(kernels),
            "samples": len(dataset.y_test),
        },
        "parameters": model.count_params(),
        "sparsity": measure_sparsity(model),
        "compression": records,
        "representative": {
            "samples": len(representative),
            "from": "training part",
            "sha256": hashlib.sha256(representative.tobytes()).hexdigest(),
        },
        "input": asdict(litert.read_input_spec(int8, INT8_NAME)),
    }
    files.write_json(directory / SUMMARY_NAME, summary)
    console.show(accuracy_table(summary))


def _compress(
    model: Any, recipe: Recipe, variant: Variant | None, dataset: Dataset, *, anew: bool
) -> tuple[Any, list[dict[str, Any]]]:
    """Returns the compressed model, and a record of each step; the kept one where there is one."""
    if variant and not anew and (kept := kept_file(variant_name(recipe, variant))):
        records = read_history(variant_name(recipe, variant))["compression"]
        return unpack_model(kept.read_bytes(), kept), records
    own: tuple[Step, ...] = (recipe.pruning,) if recipe.pruning else ()
    records = []
    for step in variant.steps if variant else own:
        model, record = compress(model, recipe, step, dataset)
        records.append(record)
    return model, records


def variant_name(recipe: Recipe, variant: Variant) -> str:
    """Returns the name of a variant's model."""
    return f"{recipe.name}_{variant.name}"


def choose_representative(dataset: Dataset) -> npt.NDArray[np.float32]:
    """Returns up to 200 training inputs, float32 [N, ...], spread evenly over the data set."""
    count = min(_REPRESENTATIVE_SAMPLES, len(dataset.x_train))
    chosen = np.linspace(0, len(dataset.x_train) - 1, count).round().astype(np.int64)
    return dataset.x_train[chosen]


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
