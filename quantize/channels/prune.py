"""Structured channel pruning at once: a model and a goal in, a smaller model out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.costs import Costs
from edgekiln.quantize.channels.goals import Goal, free_groups, goals_of
from edgekiln.quantize.channels.groups import ChannelGroup, NothingToRemoveError
from edgekiln.quantize.channels.importance import Loss, Scores, normalize, score_channels
from edgekiln.quantize.channels.plan import ChannelPruning
from edgekiln.quantize.channels.select import Chooser, Mask, Order
from edgekiln.quantize.channels.surgery import remove_channels
from edgekiln.quantize.channels.trace import trace
from edgekiln.quantize.channels.tracer import Trace


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
    (goal,) = goals_of(trace(model), replace(plan, rounds=1))
    return prune_to(model, plan, goal, data, loss)


def prune_to(
    model: Any,
    plan: ChannelPruning,
    goal: Goal,
    data: tuple[Any, Any] | None,
    loss: str | Loss | None,
) -> Any:
    """Returns a smaller model that reaches ``goal``, which takes the place of the plan's target.

    Raises:
        BadInputError: The goal cannot be reached, or the importance cannot be measured.
    """
    traced = trace(model)
    scores = score_channels(traced, plan.importance, data, loss)
    free = _scored(traced, free_groups(traced, plan), scores, plan)
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
    goal: Goal,
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
