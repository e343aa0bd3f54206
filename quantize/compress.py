"""The steps by which a trained recipe is compressed: what each does, and its record."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any

from edgekiln.quantize.channels import ChannelPruning, prune_and_finetune
from edgekiln.quantize.pruning import MagnitudePruning
from edgekiln.quantize.sparsity import PolynomialSchedule
from edgekiln.quantize.variants import ChannelStep, Step
from edgekiln.train.datasets import Dataset
from edgekiln.train.loop import accuracy, early_stopping, fit, make_reproducible, steps_per_epoch
from edgekiln.train.recipe import PruningPlan, Recipe

_MASKS_PER_EPOCH = 10
_IMPORTANCE_SAMPLES = 1024


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
    if isinstance(step, PruningPlan):
        return model, _prune(model, recipe, step, dataset)
    return _prune_channels(model, recipe, step, dataset)


def _prune(model: Any, recipe: Recipe, plan: PruningPlan, dataset: Dataset) -> dict[str, Any]:
    steps = steps_per_epoch(recipe, dataset)
    schedule = PolynomialSchedule(
        final_sparsity=plan.sparsity,
        begin_step=0,
        end_step=plan.ramp_epochs * steps,
        frequency=math.ceil(steps / _MASKS_PER_EPOCH),
    )
    pruner = MagnitudePruning(schedule, plan.exclude)
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


def _as_json(plan: ChannelPruning) -> dict[str, Any]:
    values = {one.name: getattr(plan, one.name) for one in fields(plan)}
    return {**values, "keep": dict(plan.keep)}


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

    smaller, rounds = prune_and_finetune(
        model,
        step.plan,
        fine_tune,
        lambda candidate: accuracy(candidate, dataset.x_val, dataset.y_val),
        (dataset.x_train[:_IMPORTANCE_SAMPLES], dataset.y_train[:_IMPORTANCE_SAMPLES]),
        "sparse_categorical_crossentropy",
    )
    return smaller, {
        "step": "channels",
        **_as_json(step.plan),
        "learning_rate": step.learning_rate,
        "rounds": [asdict(one) for one in rounds],
    }
