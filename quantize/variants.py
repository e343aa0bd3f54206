"""The compressed forms of the recipes, which `make zoo` makes and `make zoo-report` measures."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.plan import ChannelPruning
from edgekiln.train.recipe import PruningPlan


@dataclass(frozen=True)
class ChannelStep:
    """Channels are removed, in rounds with fine-tuning.

    Attributes:
        plan: Which channels, and the rounds.
        learning_rate: Learning rate at the start of each round.
    """

    plan: ChannelPruning
    learning_rate: float


Step = PruningPlan | ChannelStep


@dataclass(frozen=True)
class Variant:
    """A compressed form of a recipe's model.

    Attributes:
        name: Its name, a C identifier; ``<recipe>_<name>`` names the model.
        description: One line for ``edgekiln models``.
        steps: What is done to the trained model, in order.
    """

    name: str
    description: str
    steps: tuple[Step, ...]


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "mnist_mlp_512": (
        Variant(
            "pruned_80",
            "four fifths of the weights are zero",
            (PruningPlan(sparsity=0.8, epochs=10, ramp_epochs=5, learning_rate=5e-4),),
        ),
    ),
    "mnist_cnn": (
        Variant(
            "channels_50",
            "channels removed, with them half of the MACs",
            (
                ChannelStep(
                    ChannelPruning(
                        macs_ratio=0.5, importance="taylor", rounds=2, epochs=1, final_epochs=5
                    ),
                    learning_rate=7e-4,
                ),
            ),
        ),
    ),
    "resnet8": (
        Variant(
            "channels_50",
            "channels removed, with them half of the MACs",
            (
                ChannelStep(
                    ChannelPruning(
                        macs_ratio=0.5, importance="taylor", rounds=2, epochs=1, final_epochs=8
                    ),
                    learning_rate=2e-3,
                ),
            ),
        ),
    ),
}
"""Variants by the recipe's name."""


def variants_of(recipe: str) -> tuple[Variant, ...]:
    """Returns the variants of a recipe."""
    return VARIANTS.get(recipe, ())


def load_variant(recipe: str, name: str) -> Variant:
    """Returns a variant of a recipe.

    Raises:
        BadInputError: The recipe has none of that name.
    """
    found = {variant.name: variant for variant in variants_of(recipe)}
    if name not in found:
        close = difflib.get_close_matches(name, found, n=1)
        raise BadInputError(
            f"the recipe {recipe} has no such variant",
            where=name or "''",
            allowed=", ".join(found) or "none",
            hint=f"did you mean {close[0]}?" if close else "see: edgekiln models",
        )
    return found[name]
