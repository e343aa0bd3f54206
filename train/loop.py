"""The training loop: a recipe in, a model and its history out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln import console, files
from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.train.augment import augment, distort
from edgekiln.train.datasets import Dataset, Images, Labels, load_dataset
from edgekiln.train.kept import kept_file, read_history, unpack_model
from edgekiln.train.model_file import write_model
from edgekiln.train.progress import EpochProgress
from edgekiln.train.quiet_keras import keras, tensorflow
from edgekiln.train.recipe import Augmentation, Recipe

MODEL_NAME = "model.keras"
HISTORY_NAME = "history.json"


def train_recipe(recipe: Recipe, directory: Path) -> None:
    """Trains ``recipe`` and writes ``model.keras`` and ``history.json`` into ``directory``.

    The weights kept are those of the epoch with the lowest validation loss. The test set
    is used once, at the end.

    Raises:
        BadInputError: The data set does not exist, or the directory cannot be written.
        CheckFailedError: The training diverged, or ended below the accuracy that the recipe
            states.
    """
    dataset = load_dataset(recipe.dataset)
    make_reproducible(recipe.seed)
    model = recipe.build_model()
    epochs = fit(
        model,
        recipe,
        dataset,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        description=f"Training {recipe.name}",
        callbacks=[early_stopping(recipe.patience)],
    )
    test_accuracy = accuracy(model, dataset.x_test, dataset.y_test)
    _require_accuracy(recipe, test_accuracy)
    history = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "dataset": dataset.name,
        "split": asdict(dataset.split),
        "parameters": model.count_params(),
        "accuracy": {
            "validation": accuracy(model, dataset.x_val, dataset.y_val),
            "test": test_accuracy,
        },
        "best_epoch": 1 + int(np.argmin([epoch["val_loss"] for epoch in epochs])),
        "epochs": epochs,
        "versions": {
            "keras": keras.__version__,
            "numpy": np.__version__,
            "tensorflow": tensorflow.__version__,
        },
    }
    write_model(model, directory / MODEL_NAME)
    files.write_json(directory / HISTORY_NAME, history)


def restore_recipe(recipe: Recipe, directory: Path) -> None:
    """Writes what `train_recipe` writes, from the model that is kept with the project.

    Raises:
        BadInputError: None is kept, or the directory cannot be written.
        BadModelError: The kept file is damaged.
    """
    kept = kept_file(recipe.name)
    if kept is None:
        raise BadInputError("no trained model is kept", where=recipe.name)
    write_model(unpack_model(files.read_input_file(kept), kept), directory / MODEL_NAME)
    files.write_json(directory / HISTORY_NAME, read_history(recipe.name))


def _require_accuracy(recipe: Recipe, test_accuracy: float) -> None:
    if test_accuracy < recipe.min_float_accuracy:
        raise CheckFailedError(
            "the trained model is below the recipe's accuracy",
            where=recipe.name,
            got=f"{test_accuracy:.4f}",
            allowed=f"{recipe.min_float_accuracy} or more",
            hint="change the recipe's seed or schedule",
        )


def make_reproducible(seed: int) -> None:
    """Seeds Python, numpy and TensorFlow, and makes TensorFlow's ops deterministic."""
    keras.utils.set_random_seed(seed)
    tensorflow.config.experimental.enable_op_determinism()


def early_stopping(patience: int, first_epoch: int = 0) -> Any:
    """Returns a callback that stops after ``patience`` epochs without a lower validation loss.

    Args:
        patience: Epochs to wait.
        first_epoch: Epochs, counted from 0, before this one are never the best.

    Returns:
        A Keras callback, which also puts the best epoch's weights back at the end.
    """
    return keras.callbacks.EarlyStopping(
        monitor="val_loss",
        mode="min",
        patience=patience,
        restore_best_weights=True,
        start_from_epoch=first_epoch,
    )


def fit(
    model: Any,
    recipe: Recipe,
    dataset: Dataset,
    *,
    epochs: int,
    learning_rate: float,
    description: str,
    callbacks: Sequence[Any],
) -> list[dict[str, float]]:
    """Fits a model to a data set with Adam, in the way of ``recipe``, behind a progress bar.

    Args:
        model: Keras model that ends in a softmax; compiled here.
        recipe: Gives the batch size, the augmentation and its seed.
        dataset: What to fit to, and the validation part.
        epochs: Most epochs.
        learning_rate: Where the half cosine starts; it would end at zero after ``epochs``.
        description: Text of the progress bar.
        callbacks: More Keras callbacks, called in this order.

    Returns:
        One dict an epoch: epoch (from 1), loss, accuracy, val_loss, val_accuracy.

    Raises:
        CheckFailedError: The loss became infinite or not a number.
    """
    images, labels = augment(dataset.x_train, dataset.y_train, recipe.augmentation, recipe.seed)
    steps = epochs * steps_per_epoch(recipe, dataset)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    with console.progress() as bar:
        log = model.fit(
            Batches(images, labels, recipe),
            epochs=epochs,
            validation_data=(dataset.x_val, dataset.y_val),
            verbose=0,
            callbacks=[*callbacks, EpochProgress(bar, description, epochs)],
        )
    return _epochs(log.history, recipe)


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # Keras has no types
    """The training images in a new order every epoch, and distorted anew where the recipe says so.

    Args:
        images: float32 [N, H, W, C].
        labels: int64 [N].
        recipe: Gives the batch size, the augmentation and the seed.
    """

    def __init__(self, images: Images, labels: Labels, recipe: Recipe) -> None:
        super().__init__(workers=2, max_queue_size=16)
        self._images, self._labels = images, labels
        self._batch_size = recipe.batch_size
        plan = recipe.augmentation
        self._plan: Augmentation | None = plan if plan and plan.copies == 0 else None
        self._seed, self._epoch = recipe.seed, 0
        self._order = self._draw_order()

    def __len__(self) -> int:
        """Returns the number of batches."""
        return math.ceil(len(self._labels) / self._batch_size)

    def __getitem__(self, index: int) -> tuple[Images, Labels]:
        """Returns a batch: float32 [B, H, W, C] and int64 [B]."""
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        images = self._images[chosen]
        if self._plan is not None:
            random = np.random.default_rng((self._seed, self._epoch, index))
            images = distort(images, self._plan, random)
        return images, self._labels[chosen]

    def on_epoch_end(self) -> None:
        """Called by Keras after each epoch."""
        self._epoch += 1
        self._order = self._draw_order()

    def _draw_order(self) -> npt.NDArray[np.int64]:
        return np.random.default_rng((self._seed, self._epoch)).permutation(len(self._labels))


def steps_per_epoch(recipe: Recipe, dataset: Dataset) -> int:
    """Returns how many steps of the optimizer `fit` makes in an epoch."""
    copies = recipe.augmentation.copies if recipe.augmentation else 0
    return math.ceil(len(dataset.x_train) * (1 + copies) / recipe.batch_size)


def predict_classes(model: Any, images: Images) -> Labels:
    """Returns the class that a Keras model finds for each of ``images`` (float32 [N, ...])."""
    outputs = model.predict(images, batch_size=256, verbose=0)
    classes: Labels = np.argmax(outputs, axis=-1).astype(np.int64)
    return classes


def accuracy(model: Any, images: Images, labels: Labels) -> float:
    """Returns the share of ``images`` (float32 [N, ...]) whose class the Keras model finds."""
    return float(np.mean(predict_classes(model, images) == labels))


def _epochs(history: dict[str, list[float]], recipe: Recipe) -> list[dict[str, float]]:
    if not np.isfinite(history["loss"] + history["val_loss"]).all():
        raise CheckFailedError(
            "the training diverged: the loss is not finite",
            where=recipe.name,
            hint="lower the recipe's learning_rate",
        )
    keys = ("loss", "accuracy", "val_loss", "val_accuracy")
    return [
        {"epoch": number, **{key: float(history[key][number - 1]) for key in keys}}
        for number in range(1, len(history["loss"]) + 1)
    ]
