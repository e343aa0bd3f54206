"""Shows Keras's training on our own progress bar."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress

from edgekiln.train.quiet_keras import keras


class EpochProgress(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Advances a bar by one an epoch, with the loss and accuracy beside it.

    Args:
        bar: A started progress display.
        description: Text before the bar.
        epochs: Length of the bar.
    """

    def __init__(self, bar: Progress, description: str, epochs: int) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task(description, total=epochs, note="")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras after each epoch, counted from 0."""
        logs = logs or {}
        note = f"loss {logs.get('loss', 0.0):.4f}"
        if "val_accuracy" in logs:
            note += f"  validation {100 * logs['val_accuracy']:.1f} %"
        self._bar.update(self._task, completed=epoch + 1, note=note)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras at the end, which early stopping may have brought forward."""
        task = self._bar.tasks[self._task]
        self._bar.update(self._task, total=task.completed)
