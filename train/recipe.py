"""What a recipe is: a model, its data and its schedule, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Augmentation:
    """Small random distortions of the training images.

    Attributes:
        copies: Distorted copies that join each original image, drawn once, before training.
            0 means that every epoch sees each image once, distorted anew.
        rotation_degrees: Largest rotation to either side.
        shift_pixels: Largest shift along each axis; need not be whole.
        zoom: Largest relative change of size, so 0.1 means 90 % to 110 %.
        flip: Whether half of the images are mirrored, left to right.
    """

    copies: int
    rotation_degrees: float
    shift_pixels: float
    zoom: float
    flip: bool = False


@dataclass(frozen=True)
class PruningPlan:
    """How a trained model is pruned, and how long it is trained on meanwhile.

    The sparsity rises with the epochs up to ``ramp_epochs``; the rest of the epochs let the
    weights that are left settle.

    Attributes:
        sparsity: Share of zeros in every pruned kernel at the end, in [0, 1).
        epochs: Epochs of fine-tuning in all.
        ramp_epochs: Epochs over which the sparsity rises, at most ``epochs``.
        learning_rate: Learning rate at the start of fine-tuning.
        exclude: Names of layers to leave dense.
        pattern: Which weights go together: ``unstructured``, ``n:m`` (n of m neighbours stay,
            2:4 for instance, and the sparsity is 1 - n/m) or ``1xw`` (w neighbours go together).
    """

    sparsity: float
    epochs: int
    ramp_epochs: int
    learning_rate: float
    exclude: tuple[str, ...] = ()
    pattern: str = "unstructured"


@dataclass(frozen=True)
class Recipe:
    """A model, its data and its schedule.

    Attributes:
        name: The recipe's name and its file's; a C identifier, as generated code carries it.
        description: One line for ``edgekiln models``.
        dataset: Name of the data set, as `edgekiln.train.datasets.load_dataset` knows it.
        build_model: Returns a new Keras model, not compiled, whose last layer is a softmax.
            It imports Keras when it is called, so that listing recipes stays cheap.
        epochs: Most epochs to train.
        batch_size: Images per step.
        learning_rate: Learning rate at the start; it falls to zero along a half cosine.
        patience: Epochs without a better validation loss after which training stops.
        seed: Seed of the weights, the shuffling, the dropout and the augmentation.
        augmentation: Distortions of the training images, or None.
        pruning: How the trained model is pruned, or None to leave it dense.
        min_float_accuracy: Test accuracy that the float model reaches, in [0, 1].
    """

    name: str
    description: str
    dataset: str
    build_model: Callable[[], Any]
    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    seed: int
    augmentation: Augmentation | None
    pruning: PruningPlan | None
    min_float_accuracy: float
