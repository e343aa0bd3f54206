"""Channel pruning in rounds, with fine-tuning between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.costs import count_flash_bytes, count_macs
from edgekiln.quantize.channels.goals import Goal, fewest_of, goals_of
from edgekiln.quantize.channels.groups import NothingToRemoveError
from edgekiln.quantize.channels.importance import Loss
from edgekiln.quantize.channels.plan import ChannelPruning
from edgekiln.quantize.channels.prune import channel_counts, prune_to
from edgekiln.quantize.channels.surgery import remove_channels
from edgekiln.quantize.channels.trace import trace

Fit = Callable[[Any, int, str], Any]
"""(model, epochs, description) trains the model in place and returns a history of any kind."""

Evaluate = Callable[[Any], float]
"""Returns the accuracy of a model, in [0, 1]."""


@dataclass(frozen=True)
class PruningRound:
    """A model after a round of pruning and fine-tuning.

    Attributes:
        number: The round, from 1; 0 for the model before all rounds.
        accuracy: What `evaluate` said, in [0, 1].
        macs: Multiply-accumulate steps of one inference; None where a layer's are not known.
        flash_bytes: As `count_flash_bytes` counts them.
        parameters: Number of weights.
        channels: Channels left, by the layer that makes them.
        history: What `fit` returned; None where nothing was trained.
    """

    number: int
    accuracy: float
    macs: int | None
    flash_bytes: int
    parameters: int
    channels: Mapping[str, int]
    history: Any


def prune_and_finetune(
    model: Any,
    plan: ChannelPruning,
    fit: Fit,
    evaluate: Evaluate,
    data: tuple[Any, Any] | None = None,
    loss: str | Loss | None = None,
) -> tuple[Any, tuple[PruningRound, ...]]:
    """Prunes a model in rounds, each followed by fine-tuning.

    For ``macs_ratio``, ``flash_bytes`` and ``keep`` every round removes the same share of what
    the one before left, so that the last one meets the target. For ``max_drop_points`` every
    round leaves ``round_ratio`` of the multiply-accumulate steps, until a round loses more
    accuracy than allowed; the model before that round is the result.

    Args:
        model: A functional or Sequential Keras model, built and trained. It is left as it is.
        plan: The target and the rounds.
        fit: Trains a model in place; given it, the epochs and a line that says which round.
            It compiles the model.
        evaluate: Returns a model's accuracy, in [0, 1].
        data: Inputs and labels for importance ``taylor``; see `score_channels`.
        loss: The loss for it.

    Returns:
        The smaller model (the original one when no round stayed within ``max_drop_points``),
        and the rounds, the first of them number 0: the original.

    Raises:
        BadInputError: As `prune_channels`; or the accuracy is not in [0, 1].
    """
    if plan.max_drop_points is not None:
        return _prune_to_accuracy(model, plan, fit, evaluate, data, loss)
    goals = goals_of(trace(model), plan)
    rounds = [_record(0, model, evaluate, None)]
    for number, goal in enumerate(goals, start=1):
        model = prune_to(model, plan, goal, data, loss)
        last = number == plan.rounds and plan.final_epochs is not None
        epochs = (plan.final_epochs or 0) if last else plan.epochs
        description = f"Fine-tuning after pruning round {number} of {plan.rounds}"
        rounds.append(_finetune(model, number, epochs, description, fit, evaluate))
    return model, tuple(rounds)


def _prune_to_accuracy(
    model: Any,
    plan: ChannelPruning,
    fit: Fit,
    evaluate: Evaluate,
    data: tuple[Any, Any] | None,
    loss: str | Loss | None,
) -> tuple[Any, tuple[PruningRound, ...]]:
    fewest = fewest_of(trace(model), plan)
    rounds = [_record(0, model, evaluate, None)]
    least = rounds[0].accuracy - (plan.max_drop_points or 0) / 100
    best, reached = model, rounds[0].accuracy
    for number in range(1, plan.rounds + 1):
        goal = Goal(fewest, "macs", int(count_macs(best) * plan.round_ratio))
        try:
            smaller = prune_to(best, plan, goal, data, loss)
        except NothingToRemoveError:
            if best is model:
                raise
            break
        description = f"Fine-tuning after pruning round {number}"
        rounds.append(_finetune(smaller, number, plan.epochs, description, fit, evaluate))
        if rounds[-1].accuracy < least:
            break
        best, reached = smaller, rounds[-1].accuracy
    if plan.final_epochs and best is not model:
        longer = _copy(best)
        number, description = len(rounds), "Fine-tuning after the last round"
        rounds.append(_finetune(longer, number, plan.final_epochs, description, fit, evaluate))
        best = longer if rounds[-1].accuracy >= reached else best
    return best, tuple(rounds)


def _copy(model: Any) -> Any:
    traced = trace(model)
    return remove_channels(traced, np.ones(traced.channels.count, np.bool_))


def _finetune(
    model: Any, number: int, epochs: int, description: str, fit: Fit, evaluate: Evaluate
) -> PruningRound:
    history = fit(model, epochs, description) if epochs else None
    return _record(number, model, evaluate, history)


def _record(number: int, model: Any, evaluate: Evaluate, history: Any) -> PruningRound:
    accuracy = float(evaluate(model))
    if not 0 <= accuracy <= 1:
        raise BadInputError("channels: the accuracy is not in [0, 1]", got=accuracy)
    traced = trace(model)
    return PruningRound(
        number,
        accuracy,
        None if traced.uncounted else count_macs(model),
        count_flash_bytes(model),
        model.count_params(),
        channel_counts(model),
        history,
    )
