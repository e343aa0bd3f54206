"""Trains a model from outside a little further, on its own data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln import console
from edgekiln.errors import CheckFailedError
from edgekiln.quantize.own_data import Part
from edgekiln.train.progress import EpochProgress
from edgekiln.train.quiet_keras import keras

Array = npt.NDArray[Any]

BATCH_SIZE = 32
#: Sums of softmax outputs differ from 1 by rounding; those of logits differ by far more.
_SUM_TOLERANCE = 1e-3


class Teaching:
    """What a model is to learn from its own data.

    With labels it is their classes. Without labels it is what the float model itself gives, which
    keeps a smaller or rounded model close to it (Hinton et al. 2015, arXiv:1503.02531, with a
    temperature of 1): class probabilities by their cross-entropy, anything else by the mean
    squared error.

    Args:
        model: The float model, with one or more inputs and outputs.
        data: What to train on.
    """

    def __init__(self, model: Any, data: Part) -> None:
        outputs = predict(model, data.x)
        classifies = len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1
        probable = classifies and _are_probabilities(outputs[0])
        self._x = data.x
        self._targets: list[Array] = outputs
        self.loss: Any = "mse"
        if data.y is not None:
            self._targets = [data.y]
            self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not probable)
        elif probable:
            self.loss = keras.losses.CategoricalCrossentropy()
        self.samples = len(data)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer in an epoch."""
        return math.ceil(self.samples / BATCH_SIZE)

    def fit(
        self,
        model: Any,
        *,
        epochs: int,
        learning_rate: float,
        description: str,
        callbacks: Sequence[Any] = (),
    ) -> list[dict[str, float]]:
        """Trains a model in place with Adam, behind a progress bar.

        Args:
            model: A model with the inputs and outputs of the float one; compiled here.
            epochs: How many.
            learning_rate: Where the half cosine starts; it ends at zero.
            description: Text of the bar.
            callbacks: More Keras callbacks.

        Returns:
            One dict an epoch: epoch (from 1) and loss.

        Raises:
            CheckFailedError: The loss became infinite or not a number.
        """
        schedule = keras.optimizers.schedules.CosineDecay(
            learning_rate, epochs * self.steps_per_epoch
        )
        targets = keras.tree.pack_sequence_as(_outputs_of(model), self._targets)
        losses = keras.tree.map_structure(lambda _: self.loss, targets)
        model.compile(optimizer=keras.optimizers.Adam(schedule), loss=losses)
        with console.progress() as bar:
            log = model.fit(
                pack_inputs(model, self._x),
                targets,
                batch_size=BATCH_SIZE,
                epochs=epochs,
                verbose=0,
                callbacks=[*callbacks, EpochProgress(bar, description, epochs)],
            )
        history = [float(loss) for loss in log.history["loss"]]
        if not np.isfinite(history).all():
            raise CheckFailedError(
                "the training diverged: the loss is not finite",
                where=description,
                hint="give a smaller --learning-rate",
            )
        return [{"epoch": number, "loss": loss} for number, loss in enumerate(history, start=1)]


def pack_inputs(model: Any, x: Mapping[str, Array]) -> Any:
    """Returns arrays in the structure in which a model takes them.

    Args:
        model: A functional or Sequential Keras model.
        x: Input's name to its array.
    """
    taken = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(lambda tensor: x[tensor.name], taken)


def predict(model: Any, x: Mapping[str, Array]) -> list[Array]:
    """Returns a model's outputs, float32 [N, …] each."""
    outputs = model.predict(pack_inputs(model, x), batch_size=256, verbose=0)
    return [np.asarray(output, np.float32) for output in keras.tree.flatten(outputs)]


def _outputs_of(model: Any) -> Any:
    return model.outputs[0] if isinstance(model, keras.Sequential) else model.output


def _are_probabilities(outputs: Array) -> bool:
    sums = outputs.sum(axis=-1)
    return bool(outputs.min() >= 0 and np.abs(sums - 1).max() < _SUM_TOLERANCE)
