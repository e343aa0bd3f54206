"""Pruning as far as a bound on the accuracy allows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

from edgekiln import console
from edgekiln.errors import BadInputError
from edgekiln.quantize.pruning import MagnitudePruning, Scope, find_prunable
from edgekiln.quantize.search import Search, Trial, search_stepwise
from edgekiln.quantize.sparsity import ConstantSchedule

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975)


def prune_to_accuracy(
    model: Any,
    fine_tune: Callable[[Any, MagnitudePruning], None],
    measure: Callable[[Any], float],
    *,
    max_drop_points: float,
    sparsities: Sequence[float] = SPARSITIES,
    exclude: Collection[str] = (),
    scope: Scope = "layer",
) -> Search[list[Any], float]:
    """Prunes a model in place, step by step, as far as its accuracy allows.

    Prune and fine-tune in turns, each turn from the weights that the last one left, as Han et
    al., "Learning both Weights and Connections for Efficient Neural Networks"
    (arXiv:1506.02626), section 3. It ends at the first sparsity whose accuracy has fallen by
    more than the bound, and the model gets the weights back that it had before that one. The
    accuracies decide, so they should be those of a validation set.

    Args:
        model: Trained Keras model.
        fine_tune: Called with the model and a callback that prunes it; compiles the model and
            calls its `fit` with that callback.
        measure: Returns the accuracy of the model, in [0, 1].
        max_drop_points: Percentage points of accuracy that may be lost, 0 or more.
        sparsities: What to try, rising, each in (0, 1).
        exclude: Names of layers to leave dense.
        scope: As for `MagnitudePruning`.

    Returns:
        All that was tried, and the weights that the model now has. ``accepted`` is None where
        even the first sparsity cost too much: the model is then as it was.

    Raises:
        BadInputError: A value is out of its range, or there is nothing to prune.
    """
    _check_search(max_drop_points, sparsities)
    find_prunable(model, exclude)
    bound = measure(model) - max_drop_points / 100
    best = model.get_weights()

    def attempt(weights: list[Any], sparsity: float) -> list[Any]:
        model.set_weights(weights)
        schedule = ConstantSchedule(sparsity)
        fine_tune(model, MagnitudePruning(schedule, exclude, scope=scope))
        tuned: list[Any] = model.get_weights()
        return tuned

    def report(trial: Trial[float]) -> None:
        verdict = "kept" if trial.accepted else f"below {100 * bound:.2f} %, undone"
        console.say(
            f"pruned to {100 * trial.candidate:g} %: accuracy {100 * trial.score:.2f} %, {verdict}"
        )

    try:
        result = search_stepwise(
            best,
            sparsities,
            attempt=attempt,
            measure=lambda weights: measure(model),
            accept=lambda accuracy: accuracy >= bound,
            report=report,
        )
        best = result.state
    finally:
        model.set_weights(best)
    return result


def _check_search(max_drop_points: float, sparsities: Sequence[float]) -> None:
    if not 0 <= max_drop_points <= 100:
        raise BadInputError(
            "pruning: max_drop_points is out of range", got=max_drop_points, allowed="0 to 100"
        )
    rising = all(one < two for one, two in itertools.pairwise(sparsities))
    if not (sparsities and rising and sparsities[0] > 0 and sparsities[-1] < 1):
        raise BadInputError(
            "pruning: sparsities must rise", got=list(sparsities), allowed="numbers in (0, 1)"
        )
