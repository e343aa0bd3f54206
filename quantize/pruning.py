"""Magnitude pruning as a Keras 3 callback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from edgekiln.errors import BadInputError
from edgekiln.quantize.sparsity import PolynomialSchedule, magnitude_mask
from edgekiln.train.quiet_keras import keras


class MagnitudePruning(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Prunes the kernels of Conv2D and Dense layers while a model is trained.

    Each kernel is pruned by itself to the schedule's sparsity. After every batch the masks
    are applied again, since Adam's momentum would bring pruned weights back. When training
    ends, early or not, every kernel has the schedule's final sparsity.

    In ``callbacks`` it belongs after an `EarlyStopping` that restores the best weights, and
    that one's ``start_from_epoch`` should lie after the end of the schedule, so that no less
    sparse epoch counts as the best.

    Args:
        schedule: Sparsity over the steps of one call of `fit`.
        exclude: Names of layers to leave dense.
    """

    def __init__(self, schedule: PolynomialSchedule, exclude: Sequence[str] = ()) -> None:
        super().__init__()
        self._schedule = schedule
        self._exclude = frozenset(exclude)
        self._layers: dict[str, Any] = {}
        self._masks: dict[str, Any] = {}
        self._step = 0

    @property
    def pruned_layers(self) -> tuple[str, ...]:
        """Names of the layers that are pruned, in the model's order; empty before `fit`."""
        return tuple(self._layers)

    def set_model(self, model: Any) -> None:
        """Called by Keras before training.

        Raises:
            BadInputError: An excluded layer does not exist, or there is none to prune.
        """
        super().set_model(model)
        self._layers = find_prunable(model, self._exclude)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras before the first step.

        Raises:
            BadInputError: Training will be over before the schedule is.
        """
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        if epochs and steps and epochs * steps < self._schedule.end_step:
            raise BadInputError(
                "pruning: end_step lies after the end of training",
                got=self._schedule.end_step,
                allowed=f"at most {epochs * steps}",
            )
        self._step = 0
        self._masks = {}
        self._prune()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras after each step of the optimizer."""
        self._step += 1
        self._prune()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras at the end, after which other weights may be in place."""
        self._step = max(self._step, self._schedule.end_step)
        self._draw_masks()
        self._apply_masks()

    def _prune(self) -> None:
        if self._schedule.updates_at(self._step):
            self._draw_masks()
        self._apply_masks()

    def _draw_masks(self) -> None:
        sparsity = self._schedule.sparsity_at(self._step)
        for name, layer in self._layers.items():
            keep = magnitude_mask(_kernel(layer), sparsity)
            self._masks[name] = keras.ops.convert_to_tensor(keep)

    def _apply_masks(self) -> None:
        for name, keep in self._masks.items():
            kernel = self._layers[name].kernel
            kernel.assign(keras.ops.where(keep, kernel, keras.ops.zeros_like(kernel)))


def find_prunable(model: Any, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Returns the model's Conv2D and Dense layers, in order, less ``exclude``.

    A layer of a nested model is named ``<model>/<layer>``. Depthwise kernels are not pruned:
    they hold few weights, and each of them matters.

    Raises:
        BadInputError: An excluded layer is not among them, or none is left.
    """
    found = dict(_walk(model, ""))
    unknown = exclude - found.keys()
    if unknown:
        raise BadInputError(
            "pruning: no such layer to exclude",
            where=model.name,
            got=", ".join(sorted(unknown)),
            allowed=", ".join(found),
        )
    layers = {name: layer for name, layer in found.items() if name not in exclude}
    if not layers:
        raise BadInputError(
            "pruning: no layer to prune",
            where=model.name,
            got=f"{len(found)} Conv2D or Dense layers, {len(exclude)} of them excluded",
            allowed="at least one Conv2D or Dense layer",
        )
    return layers


def measure_sparsity(model: Any) -> dict[str, float]:
    """Returns the share of zeros in the kernel of each Conv2D and Dense layer, by name."""
    return {name: float(np.mean(_kernel(layer) == 0)) for name, layer in _walk(model, "")}


def _walk(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        name = prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from _walk(layer, name + "/")
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            yield name, layer


def _kernel(layer: Any) -> Any:
    return keras.ops.convert_to_numpy(layer.kernel)
