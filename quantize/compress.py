"""The steps by which a trained recipe is compressed: what each does, and its record."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from edgekiln.quantize.calibration import CalibrationMethod
from edgekiln.quantize.channels import ChannelPruning, prune_and_finetune
from edgekiln.quantize.clustering import (
    WeightClustering,
    estimate_packed_bits,
    measure_clusters,
)
from edgekiln.quantize.pruning import MagnitudePruning
from edgekiln.quantize.ptq import PtqConfig, make_ptq_model, read_inputs
from edgekiln.quantize.qat import QatConfig, quantize_model
from edgekiln.quantize.sparsity import parse_pattern, ramp_schedule
from edgekiln.quantize.variants import ChannelStep, ClusteringStep, PtqStep, QatStep, Step
from edgekiln.train.datasets import Dataset
from edgekiln.train.loop import accuracy, early_stopping, fit, make_reproducible, steps_per_epoch
from edgekiln.train.recipe import PruningPlan, Recipe

_IMPORTANCE_SAMPLES = 1024
_CALIBRATION_SAMPLES = 512


def compress(
    model: Any, recipe: Recipe, step: Step, dataset: Dataset
) -> tuple[Any, dict[str, Any]]:
    """Takes one step of compression, with the fine-tuning that belongs to it.

    Args:
        model: Keras model; some steps change it in place.
        recipe: How it is trained.
        step: What to do.
        dataset: What it is fine-tuned on.

    Returns:
        The compressed Keras model, and the record of the step, JSON values.

    Raises:
        BadInputError: The step makes no sense for the model.
        CheckFailedError: The training diverged.
    """
    make_reproducible(recipe.seed)
    match step:
        case PruningPlan():
            return model, _prune(model, recipe, step, dataset)
        case ChannelStep():
            return _prune_channels(model, recipe, step, dataset)
        case ClusteringStep():
            return model, _cluster(model, recipe, step, dataset)
        case QatStep():
            return _train_quantized(model, recipe, step, dataset)
        case PtqStep():
            return _quantize(model, step, dataset)


def _prune(model: Any, recipe: Recipe, plan: PruningPlan, dataset: Dataset) -> dict[str, Any]:
    steps = steps_per_epoch(recipe, dataset)
    schedule = ramp_schedule(plan.sparsity, plan.ramp_epochs * steps, steps)
    pruner = MagnitudePruning(schedule, plan.exclude, pattern=parse_pattern(plan.pattern))
    epochs = fit(
        model,
        recipe,
        dataset,
        epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        description=f"Pruning {recipe.name} to {100 * plan.sparsity:.0f} %",
        callbacks=[early_stopping(recipe.patience, first_epoch=plan.ramp_epochs), pruner],
    )
    return {
        "step": "pruning",
        **asdict(plan),
        "layers": list(pruner.pruned_layers),
        "history": epochs,
    }


def _cluster(model: Any, recipe: Recipe, step: ClusteringStep, dataset: Dataset) -> dict[str, Any]:
    epochs = fit(
        model,
        recipe,
        dataset,
        epochs=step.epochs,
        learning_rate=step.learning_rate,
        description=f"Clustering {recipe.name} to {step.clusters} values a kernel",
        callbacks=[early_stopping(recipe.patience), WeightClustering(step.clusters)],
    )
    return {
        "step": "clustering",
        **asdict(step),
        "distinct_values": measure_clusters(model),
        "packed_bits": estimate_packed_bits(model),
        "history": epochs,
    }


def _prune_channels(
    model: Any, recipe: Recipe, step: ChannelStep, dataset: Dataset
) -> tuple[Any, dict[str, Any]]:
    def fine_tune(smaller: Any, epochs: int, description: str) -> list[dict[str, float]]:
        return fit(
            smaller,
            recipe,
            dataset,
            epochs=epochs,
            learning_rate=step.learning_rate,
            description=description,
            callbacks=[early_stopping(recipe.patience)],
        )

    plan = ChannelPruning(
        macs_ratio=step.macs_ratio,
        allocation="uniform",
        importance=step.importance,
        epochs=step.epochs,
    )
    smaller, rounds = prune_and_finetune(
        model,
        plan,
        fine_tune,
        lambda candidate: accuracy(candidate, dataset.x_val, dataset.y_val),
        (dataset.x_train[:_IMPORTANCE_SAMPLES], dataset.y_train[:_IMPORTANCE_SAMPLES]),
        "sparse_categorical_crossentropy",
    )
    return smaller, {
        "step": "channels",
        **asdict(step),
        "rounds": [asdict(one) for one in rounds],
    }


def _train_quantized(
    model: Any, recipe: Recipe, step: QatStep, dataset: Dataset
) -> tuple[Any, dict[str, Any]]:
    config = QatConfig(
        weight_bits=step.weight_bits, ranges=step.ranges, weight_scale=step.weight_scale
    )
    quantized = quantize_model(model, config, dataset.x_train[:_CALIBRATION_SAMPLES])
    epochs = fit(
        quantized,
        recipe,
        dataset,
        epochs=step.epochs,
        learning_rate=step.learning_rate,
        description=f"Training {recipe.name} with {step.weight_bits}-bit weights",
        callbacks=[early_stopping(recipe.patience)],
    )
    return quantized, {"step": "qat", **asdict(step), "history": epochs}


def _quantize(model: Any, step: PtqStep, dataset: Dataset) -> tuple[Any, dict[str, Any]]:
    config = PtqConfig(
        calibration=CalibrationMethod(step.calibration),
        weight_bits=step.weight_bits,
        weight_range=step.weight_range,
        equalize=step.equalize,
        bias_correction=step.bias_correction,
    )
    data = read_inputs(model, dataset.x_train[:_CALIBRATION_SAMPLES], model.name)
    quantized = make_ptq_model(model, data, config)
    return quantized, {"step": "ptq", **asdict(step)}
