"""The quantize stage: a trained recipe in; pruned, converted, audited and measured models out."""

from __future__ import annotations

import hashlib
import math
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
from edgekiln.quantize.converter import convert_float, convert_int8
from edgekiln.quantize.pruning import MagnitudePruning, measure_sparsity
from edgekiln.quantize.sparsity import PolynomialSchedule
from edgekiln.train.datasets import Dataset, load_dataset
from edgekiln.train.loop import accuracy, early_stopping, fit, make_reproducible, steps_per_epoch
from edgekiln.train.model_file import read_model, write_model
from edgekiln.train.quiet_keras import keras
from edgekiln.train.recipe import PruningPlan, Recipe

PRUNED_NAME = "pruned.keras"
FLOAT_NAME = "float.tflite"
INT8_NAME = "int8.tflite"
SUMMARY_NAME = "quantize.json"

_MASKS_PER_EPOCH = 10
_REPRESENTATIVE_SAMPLES = 200


def quantize_recipe(recipe: Recipe, model_path: Path, directory: Path) -> None:
    """Prunes and quantizes a trained model, and measures what each step cost.

    Writes ``float.tflite``, ``int8.tflite``, ``quantize.json`` and, where the recipe prunes,
    ``pruned.keras`` into ``directory``; shows the table of accuracies.

    Args:
        recipe: Says on which data, and how to prune.
        model_path: The trained model, ``.keras``.
        directory: Where to write.

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
    pruned_accuracy, pruning = None, None
    if recipe.pruning is not None:
        pruning = prune_model(model, recipe, recipe.pruning, dataset)
        pruned_accuracy = accuracy(model, dataset.x_test, dataset.y_test)
        model_path = directory / PRUNED_NAME
        write_model(model, model_path)
    representative = choose_representative(dataset)
    convert_float(model_path, directory / FLOAT_NAME)
    convert_int8(model_path, representative, directory / INT8_NAME)
    int8 = (directory / INT8_NAME).read_bytes()
    summary = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "dataset": dataset.name,
        "split": asdict(dataset.split),
        "accuracy": {
            "float": float_accuracy,
            "pruned": pruned_accuracy,
            "int8_host": litert.measure_accuracy(int8, dataset.x_test, dataset.y_test, INT8_NAME),
            "float_runtime": f"keras {keras.__version__}",
            "int8_runtime": litert.runtime_name(),
            "samples": len(dataset.y_test),
        },
        "sparsity": measure_sparsity(model),
        "pruning": pruning,
        "representative": {
            "samples": len(representative),
            "from": "training part",
            "sha256": hashlib.sha256(representative.tobytes()).hexdigest(),
        },
        "input": asdict(litert.read_input_spec(int8, INT8_NAME)),
    }
    files.write_json(directory / SUMMARY_NAME, summary)
    console.show(accuracy_table(summary))


def prune_model(model: Any, recipe: Recipe, plan: PruningPlan, dataset: Dataset) -> dict[str, Any]:
    """Prunes a trained model in place while it is fine-tuned.

    Args:
        model: Keras model.
        recipe: How it is trained.
        plan: How it is pruned.
        dataset: What it is fine-tuned on.

    Returns:
        The plan, the names of the pruned layers, and the history, as for ``quantize.json``.

    Raises:
        BadInputError: The plan makes no sense, or there is nothing to prune.
        CheckFailedError: The training diverged.
    """
    steps = steps_per_epoch(recipe, dataset)
    schedule = PolynomialSchedule(
        final_sparsity=plan.sparsity,
        begin_step=0,
        end_step=plan.ramp_epochs * steps,
        frequency=math.ceil(steps / _MASKS_PER_EPOCH),
    )
    pruner = MagnitudePruning(schedule, plan.exclude)
    make_reproducible(recipe.seed)
    epochs = fit(
        model,
        recipe,
        dataset,
        epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        description=f"Pruning {recipe.name} to {100 * plan.sparsity:.0f} %",
        callbacks=[early_stopping(recipe.patience, first_epoch=plan.ramp_epochs), pruner],
    )
    return {**asdict(plan), "layers": list(pruner.pruned_layers), "history": epochs}


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
