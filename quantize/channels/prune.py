"""Structured channel pruning: at once, or in rounds with fine-tuning between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.costs import Costs, Measure, count_flash_bytes, count_macs
from edgekiln.quantize.channels.groups import (
    ChannelGroup,
    GroupKey,
    NothingToRemoveError,
    find_groups,
    prunable,
    require_makers,
)
from edgekiln.quantize.channels.importance import Loss, Scores, normalize, score_channels
from edgekiln.quantize.channels.plan import ChannelPruning
from edgekiln.quantize.channels.select import Chooser, Mask, Order, fewest_channels
from edgekiln.quantize.channels.surgery import remove_channels
from edgekiln.quantize.channels.trace import trace
from edgekiln.quantize.channels.tracer import Trace

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


def channel_counts(model: Any) -> dict[str, int]:
    """Returns how many channels each layer of a model makes, by its path.

    Raises:
        BadInputError: The model cannot be followed.
    """
    return {layer.path: len(layer.makes) for layer in trace(model).layers if len(layer.makes)}


def prune_channels(
    model: Any,
    plan: ChannelPruning,
    data: tuple[Any, Any] | None = None,
    loss: str | Loss | None = None,
) -> Any:
    """Returns a smaller model, without the least important channels, all removed at once.

    Where a removed channel has zeros, in every layer that makes or scales it, the outputs are
    those of the original.

    Args:
        model: A functional or Sequential Keras model, built. It is left as it is.
        plan: The target, for this call, and which channels matter.
        data: Inputs and labels for importance ``taylor``; see `score_channels`.
        loss: The loss for it.

    Returns:
        A new Keras model with the same layers and names, not compiled.

    Raises:
        BadInputError: The model cannot be followed, nothing can be removed, the target cannot
            be reached or is ``max_drop_points``, or a named layer makes no channels.
    """
    if plan.max_drop_points is not None:
        raise BadInputError(
            "channels: max_drop_points needs fine-tuning and its accuracy",
            hint="call prune_and_finetune, or give macs_ratio, flash_bytes or keep",
        )
    (goal,) = _goals(trace(model), replace(plan, rounds=1))
    return _prune(model, plan, goal, data, loss)


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
    rounds = [_record(0, model, evaluate, None)]
    if plan.max_drop_points is not None:
        return _prune_to_accuracy(model, plan, rounds, fit, evaluate, data, loss)
    for number, goal in enumerate(_goals(trace(model), plan), start=1):
        model = _prune(model, plan, goal, data, loss)
        last = number == plan.rounds and plan.final_epochs is not None
        epochs = (plan.final_epochs or 0) if last else plan.epochs
        description = f"Fine-tuning after pruning round {number} of {plan.rounds}"
        rounds.append(_finetune(model, number, epochs, description, fit, evaluate))
    return model, tuple(rounds)


def _prune_to_accuracy(
    model: Any,
    plan: ChannelPruning,
    rounds: list[PruningRound],
    fit: Fit,
    evaluate: Evaluate,
    data: tuple[Any, Any] | None,
    loss: str | Loss | None,
) -> tuple[Any, tuple[PruningRound, ...]]:
    least = rounds[0].accuracy - (plan.max_drop_points or 0) / 100
    best, reached = model, rounds[0].accuracy
    fewest = _fewest(trace(model), plan)
    for number in range(1, plan.rounds + 1):
        goal = _Goal(fewest, "macs", int(count_macs(best) * plan.round_ratio))
        try:
            smaller = _prune(best, plan, goal, data, loss)
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
        longer = remove_channels(trace(best), np.ones(trace(best).channels.count, np.bool_))
        number, description = len(rounds), "Fine-tuning after the last round"
        rounds.append(_finetune(longer, number, plan.final_epochs, description, fit, evaluate))
        best = longer if rounds[-1].accuracy >= reached else best
    return best, tuple(rounds)


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


@dataclass(frozen=True)
class _Goal:
    """What one round is to reach.

    Attributes:
        fewest: Channels to leave at least in each group, by its key.
        measure: What is to be at most ``amount``; None where ``counts`` are given instead.
        amount: Steps or bytes.
        counts: Channels to leave, not rounded yet, by the key of a group.
    """

    fewest: Mapping[GroupKey, int]
    measure: Measure | None
    amount: int = 0
    counts: Mapping[GroupKey, float] = field(default_factory=dict)


def _fewest(traced: Trace, plan: ChannelPruning) -> dict[GroupKey, int]:
    return {
        group.key: fewest_channels(len(group.channels), plan)
        for group in _free_groups(traced, plan)
    }


def _goals(traced: Trace, plan: ChannelPruning) -> list[_Goal]:
    """Returns the goal of each round; what is left falls by the same factor from each to the next.

    With the share ``r`` wanted after ``n`` rounds, round ``i`` leaves ``r ** (i / n)``.
    """
    shares = [number / plan.rounds for number in range(1, plan.rounds + 1)]
    kept = _kept_shares(traced, plan)
    fewest = _fewest(traced, plan)
    everything = np.ones(traced.channels.count, np.bool_)
    if plan.macs_ratio is not None:
        macs = Costs(traced, "macs").total(everything)
        return [_Goal(fewest, "macs", int(macs * plan.macs_ratio**share)) for share in shares]
    if plan.flash_bytes is not None:
        size = Costs(traced, "bytes").total(everything)
        ratio = min(1.0, plan.flash_bytes / size)
        amounts = [max(int(size * ratio**share), plan.flash_bytes) for share in shares]
        return [_Goal(fewest, "bytes", amount) for amount in amounts]
    sizes = {group.key: len(group.channels) for group in _free_groups(traced, plan)}
    return [
        _Goal(fewest, None, counts={key: sizes[key] * kept[key] ** share for key in kept})
        for share in shares
    ]


def _kept_shares(traced: Trace, plan: ChannelPruning) -> dict[GroupKey, float]:
    """Returns the share of each group to keep, by its key.

    Raises:
        BadInputError: A layer makes no channels, none that may go, or two layers whose channels
            are tied are to keep different shares.
    """
    require_makers(traced, plan.keep, "no such layer to keep a share of")
    kept: dict[GroupKey, float] = {}
    for name, share in plan.keep.items():
        own = [group for group in _free_groups(traced, plan) if name in group.makers]
        if not own:
            pinned = [g for g in find_groups(traced, plan.exclude) if name in g.makers]
            raise BadInputError(
                "channels: none of the layer's channels can be removed",
                where=f"{traced.model.name}, {name}",
                got=pinned[0].pinned if pinned else "",
            )
        for group in own:
            if kept.setdefault(group.key, share) != share:
                raise BadInputError(
                    "channels: layers whose channels are tied are to keep different shares",
                    where=f"{traced.model.name}, {group.name}",
                    got=f"{kept[group.key]} and {share}",
                )
    return kept


def _free_groups(traced: Trace, plan: ChannelPruning) -> tuple[ChannelGroup, ...]:
    return prunable(traced, find_groups(traced, plan.exclude))


def _prune(
    model: Any,
    plan: ChannelPruning,
    goal: _Goal,
    data: tuple[Any, Any] | None,
    loss: str | Loss | None,
) -> Any:
    traced = trace(model)
    scores = score_channels(traced, plan.importance, data, loss)
    free = _scored(traced, _free_groups(traced, plan), scores, plan)
    chooser = Chooser(
        free,
        normalize(scores, free, plan.normalization),
        [goal.fewest[group.key] for group in free],
        plan.round_to,
    )
    return remove_channels(traced, _choose(traced, chooser, free, plan, goal))


def _scored(
    traced: Trace, free: Sequence[ChannelGroup], scores: Scores, plan: ChannelPruning
) -> tuple[ChannelGroup, ...]:
    """Returns the groups whose channels all have an importance."""
    scored = tuple(group for group in free if not np.isnan(scores[group.channels]).any())
    if not scored:
        raise NothingToRemoveError(
            f"channels: importance {plan.importance} is not defined for any channel",
            where=traced.model.name,
            got=", ".join(group.name for group in free),
            hint="bn_scale needs batch normalization; choose l1 or taylor",
        )
    return scored


def _choose(
    traced: Trace,
    chooser: Chooser,
    free: Sequence[ChannelGroup],
    plan: ChannelPruning,
    goal: _Goal,
) -> Mask:
    if goal.measure is None:
        return chooser.keep_counts(
            {
                place: goal.counts[group.key]
                for place, group in enumerate(free)
                if group.key in goal.counts
            }
        )
    costs = Costs(traced, goal.measure)
    if plan.allocation == "uniform":
        return chooser.reach(costs, goal.amount, "share")
    order: Order = "importance_per_cost" if plan.per_mac else "importance"
    return chooser.reach(costs, goal.amount, order)
