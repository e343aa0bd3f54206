"""Runs Keras models on named data, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekiln.quantize.representative import Array, batches
from edgekiln.train.quiet_keras import keras

BATCH_SIZE = 64


def run_batches(model: Any, data: Mapping[str, Array]) -> Iterator[Any]:
    """Yields what a model gives for each batch of the data, as numpy arrays in its structure.

    Args:
        model: A functional model.
        data: float32 [N, ...] for each input, in the order of the model's inputs.
    """
    for batch in batches(data, BATCH_SIZE):
        taken = keras.tree.pack_sequence_as(model.input, list(batch.values()))
        yield model.predict_on_batch(taken)
