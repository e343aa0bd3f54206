"""The compressed forms of the recipes, which `make zoo` makes and `make zoo-report` measures."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from edgekiln.errors import BadInputError
from edgekiln.train.recipe import PruningPlan


@dataclass(frozen=True)
class ChannelStep:
    """Channels are removed, of every layer the same share, so that MACs and bytes fall alike.

    Attributes:
        macs_ratio: Share of the multiply-accumulate steps that is left, in (0, 1).
        epochs: Epochs of fine-tuning.
        learning_rate: Learning rate at the start.
        importance: How channels are ranked, as `ChannelPruning` knows it.
    """

    macs_ratio: float
    epochs: int
    learning_rate: float
    importance: Literal["l1", "bn_scale", "taylor"] = "taylor"


@dataclass(frozen=True)
class ClusteringStep:
    """Weights are made to share few values.

    Attributes:
        clusters: Values in a kernel, at most.
        epochs: Epochs of fine-tuning.
        learning_rate: Learning rate at the start.
    """

    clusters: int
    epochs: int
    learning_rate: float


@dataclass(frozen=True)
class QatStep:
    """The model is trained on with quantization in the loop; the last step of a variant.

    Attributes:
        weight_bits: 8 or 4.
        epochs: Epochs of training.
        learning_rate: Learning rate at the start.
        ranges: As in `QatConfig`.
        weight_scale: As in `QatConfig`.
    """

    weight_bits: int
    epochs: int
    learning_rate: float
    ranges: Literal["moving_average", "lsq"] = "lsq"
    weight_scale: Literal["max", "lsq"] = "lsq"


@dataclass(frozen=True)
class PtqStep:
    """The model is quantized without training, by other choices than the usual ones; the last step.

    Attributes:
        weight_bits: As in `PtqConfig`.
        calibration: As in `PtqConfig`.
        weight_range: As in `PtqConfig`.
        equalize: As in `PtqConfig`.
        bias_correction: As in `PtqConfig`.
    """

    weight_bits: int = 8
    calibration: str = "minmax"
    weight_range: Literal["max", "mse"] = "max"
    equalize: bool = False
    bias_correction: bool = False


Step = PruningPlan | ChannelStep | ClusteringStep | QatStep | PtqStep


@dataclass(frozen=True)
class Variant:
    """A compressed form of a recipe's model.

    Attributes:
        name: Its name, a C identifier.
        description: One line for ``edgekiln models``.
        steps: What is done to the trained model, in order.
    """

    name: str
    description: str
    steps: tuple[Step, ...]

    def model_name(self, recipe: str) -> str:
        """Returns what the recipe's model in this form is called, a C identifier."""
        return f"{recipe}_{self.name}"

    @property
    def is_pruned(self) -> bool:
        """Whether weights or channels are removed."""
        return any(isinstance(step, PruningPlan | ChannelStep) for step in self.steps)

    @property
    def is_trained(self) -> bool:
        """Whether making it takes training, so that the result is kept."""
        return any(not isinstance(step, PtqStep) for step in self.steps)


_FOUR_BITS = (
    Variant(
        "ptq_w4",
        "4-bit weights without training",
        (PtqStep(weight_bits=4),),
    ),
    Variant(
        "ptq_w4_repaired",
        "4-bit weights without training: clipped, equalized, biases corrected",
        (PtqStep(4, "mse", "mse", equalize=True, bias_correction=True),),
    ),
    Variant(
        "qat_w4",
        "4-bit weights, trained with them",
        (QatStep(weight_bits=4, epochs=4, learning_rate=5e-4),),
    ),
)

_BLOCKS_80 = Variant(
    "blocks_80",
    "four fifths of the blocks of four weights are zero",
    (PruningPlan(sparsity=0.8, epochs=10, ramp_epochs=5, learning_rate=5e-4, pattern="1x4"),),
)

_PRUNED_80 = Variant(
    "pruned_80",
    "four fifths of the weights are zero",
    (PruningPlan(sparsity=0.8, epochs=10, ramp_epochs=5, learning_rate=5e-4),),
)

VARIANTS: dict[str, tuple[Variant, ...]] = {
    "mnist_mlp_100": (_PRUNED_80,),
    "mnist_mlp_512": (_PRUNED_80, _BLOCKS_80),
    "lenet5": (
        Variant(
            "pruned_80",
            "four fifths of the weights are zero, but for the first layer",
            (
                PruningPlan(
                    sparsity=0.8,
                    epochs=10,
                    ramp_epochs=5,
                    learning_rate=5e-4,
                    exclude=("c1",),
                ),
            ),
        ),
        Variant(
            "pruned_2_4",
            "two of four neighbouring weights are zero",
            (
                PruningPlan(
                    sparsity=0.5,
                    epochs=6,
                    ramp_epochs=2,
                    learning_rate=5e-4,
                    exclude=("c1",),
                    pattern="2:4",
                ),
            ),
        ),
        Variant(
            "clustered_16",
            "sixteen values in a kernel",
            (ClusteringStep(clusters=16, epochs=4, learning_rate=3e-4),),
        ),
    ),
    "mnist_cnn": (
        Variant(
            "channels_50",
            "channels removed, with them half of the MACs",
            (ChannelStep(0.5, epochs=6, learning_rate=7e-4),),
        ),
        Variant(
            "blocks_80",
            "four fifths of the blocks of four weights are zero, but for the first layer",
            (
                PruningPlan(
                    sparsity=0.8,
                    epochs=6,
                    ramp_epochs=3,
                    learning_rate=5e-4,
                    exclude=("conv1",),
                    pattern="1x4",
                ),
            ),
        ),
    ),
    "ds_cnn": (
        Variant(
            "channels_50",
            "channels removed, with them half of the MACs",
            (ChannelStep(0.5, epochs=8, learning_rate=2e-3),),
        ),
        *_FOUR_BITS,
    ),
    "resnet8": (
        Variant(
            "channels_50",
            "channels removed, with them half of the MACs",
            (ChannelStep(0.5, epochs=14, learning_rate=4e-3),),
        ),
        *_FOUR_BITS,
    ),
}
"""Variants by the recipe's name."""


def variants_of(recipe: str) -> tuple[Variant, ...]:
    """Returns the variants of a recipe."""
    return VARIANTS.get(recipe, ())


def find_variant(model: str) -> tuple[str, Variant] | None:
    """Returns the recipe's name and the variant that ``<recipe>_<variant>`` means, or None."""
    return next(
        (
            (recipe, variant)
            for recipe, variants in VARIANTS.items()
            for variant in variants
            if model == variant.model_name(recipe)
        ),
        None,
    )


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
