"""Magnitude pruning as a Keras 3 callback."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from edgekiln import console
from edgekiln.errors import BadInputError
from edgekiln.quantize.kernels import Kernel, find_kernels, select_kernels
from edgekiln.quantize.sparsity import (
    ConstantSchedule,
    Pattern,
    PolynomialSchedule,
    Schedule,
    Unstructured,
)
from edgekiln.train.quiet_keras import keras, tensorflow

Scope = Literal["layer", "global"]


class MagnitudePruning(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """Prunes kernels to a sparsity while a model is trained by `fit`.

    Which layers have kernels is said at `edgekiln.quantize.kernels.find_kernels`. Frozen ones
    are left dense, as nothing could make up for the loss; so are those with fewer inputs than
    the pattern's group. Both are listed in `left_dense`.

    The masks are drawn anew, on the host, at the steps of the schedule. After every batch they
    are applied again, since Adam's momentum would bring pruned weights back; for that they stay
    on the device as variables, beside the weights, and nothing is read back. Where Keras runs
    several steps in one execution, "after every batch" means after every execution, and a
    redraw that falls inside one happens at its end. Steps are batches, whether or not the
    optimizer accumulates gradients, counted from epoch 0 also when `fit` starts at another
    ``initial_epoch``. When training ends, early or not, every kernel has the final sparsity.

    In ``callbacks`` it belongs after an `EarlyStopping` that restores the best weights, and
    that one's ``start_from_epoch`` should lie after the end of the schedule, so that no less
    sparse epoch counts as the best.

    Args:
        schedule: Sparsity over the steps of one call of `fit`.
        exclude: Names of layers to leave dense.
        sparsities: Final sparsity of single layers, by name, in place of the schedule's; their
            schedule is otherwise the same.
        scope: "layer": each kernel is pruned by itself to the schedule's sparsity. "global":
            one threshold over all of them, so that the sparsity holds for them together; layers
            of large weights keep more, and one whose weights are all small may be lost.
        pattern: Which weights go together: `Unstructured`, `NofM` or `Blocks`.

    Raises:
        BadInputError: The options contradict each other.
    """

    def __init__(
        self,
        schedule: Schedule,
        exclude: Collection[str] = (),
        *,
        sparsities: Mapping[str, float] | None = None,
        scope: Scope = "layer",
        pattern: Pattern = Unstructured(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__()
        _check_options(schedule, sparsities or {}, scope, pattern)
        self._schedule = schedule
        self._exclude = exclude
        self._schedules = {
            name: schedule.with_final(sparsity) for name, sparsity in (sparsities or {}).items()
        }
        self._scope = scope
        self._pattern = pattern
        self._kernels: dict[str, Kernel] = {}
        self._left_dense: dict[str, str] = {}
        self._masks: dict[str, Any] = {}
        self._apply: Callable[[], None] = lambda: None
        self._step = 0
        self._first_step_of_epoch = 0
        self._begun = False

    @property
    def pruned_layers(self) -> tuple[str, ...]:
        """Names of the layers that are pruned, in the model's order; empty before `fit`."""
        return tuple(self._kernels)

    @property
    def left_dense(self) -> dict[str, str]:
        """Layers that are not pruned though nobody excluded them, each with the reason."""
        return dict(self._left_dense)

    def set_model(self, model: Any) -> None:
        """Called by Keras before training.

        Raises:
            BadInputError: A layer that is named does not exist, or there is none to prune.
        """
        super().set_model(model)
        found = find_prunable(model, self._exclude)
        _check_named(self._schedules, found, model)
        group = self._pattern.group
        self._left_dense = {
            name: "frozen"
            for name, kernel in find_kernels(model).items()
            if not kernel.trainable and name not in self._exclude
        }
        for name, kernel in found.items():
            if kernel.inputs < group:
                self._left_dense[name] = f"{kernel.inputs} inputs, fewer than {group}"
        self._kernels = {name: found[name] for name in found if name not in self._left_dense}
        if not self._kernels:
            raise BadInputError(
                f"pruning: no layer has the {group} inputs of {self._pattern}", where=model.name
            )
        for name, reason in self._left_dense.items():
            console.say(f"pruning leaves {name} dense: {reason}")

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras before the first epoch."""
        self._step = 0
        self._begun = False
        with self.model.distribute_strategy.scope():
            self._masks = {
                name: tensorflow.Variable(
                    tensorflow.ones(kernel.variable.shape, tensorflow.bool), trainable=False
                )
                for name, kernel in self._kernels.items()
            }
        self._apply = _compile_masking(self._kernels, self._masks)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras before each epoch.

        Raises:
            BadInputError: Training will be over before the schedule is.
        """
        steps = self.params.get("steps")
        if steps:
            self._step = epoch * steps
        self._first_step_of_epoch = self._step
        if not self._begun:
            self._begun = True
            self._check_length()
            if self._step >= self._schedule.begin_step:
                self._draw_masks()
                self._apply()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras after each batch, or after the last of several in one execution."""
        before = self._step
        # The last execution of an epoch counts steps for which there was no data.
        in_epoch = min(batch + 1, self.params.get("steps") or batch + 1)
        self._step = self._first_step_of_epoch + in_epoch
        if any(self._schedule.updates_at(step) for step in range(before + 1, self._step + 1)):
            self._draw_masks()
        self._apply()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Called by Keras at the end, when other weights may be in place."""
        if not self._begun:
            return
        self._step = max(self._step, self._schedule.last_step)
        self._draw_masks()
        self._apply()

    def _check_length(self) -> None:
        epochs, steps = self.params.get("epochs"), self.params.get("steps")
        if epochs and steps and epochs * steps < self._schedule.last_step:
            raise BadInputError(
                "pruning: end_step lies after the end of training",
                got=self._schedule.last_step,
                allowed=f"at most {epochs * steps}",
            )

    def _draw_masks(self) -> None:
        if self._scope == "global":
            self._draw_together(list(self._kernels), self._schedule)
            return
        for name in self._kernels:
            self._draw_together([name], self._schedules.get(name, self._schedule))

    def _draw_together(self, names: Sequence[str], schedule: Schedule) -> None:
        kernels = [self._kernels[name] for name in names]
        masks = self._pattern.masks(
            [kernel.read_finite() for kernel in kernels],
            [kernel.input_axis for kernel in kernels],
            schedule.sparsity_at(self._step),
        )
        for name, mask in zip(names, masks, strict=True):
            self._masks[name].assign(mask)


def _check_options(
    schedule: Schedule, sparsities: Mapping[str, float], scope: Scope, pattern: Pattern
) -> None:
    if not isinstance(schedule, ConstantSchedule | PolynomialSchedule):
        raise BadInputError(
            "pruning: schedule is not one",
            got=repr(schedule),
            allowed="ConstantSchedule or PolynomialSchedule",
        )
    if not isinstance(pattern, Pattern):
        raise BadInputError(
            "pruning: pattern is not one",
            got=repr(pattern),
            allowed="Unstructured(), NofM(n, m) or Blocks(width)",
        )
    if scope not in get_args(Scope):
        raise BadInputError(
            "pruning: unknown scope", got=scope, allowed=" or ".join(get_args(Scope))
        )
    fixed = pattern.fixed_sparsity
    if fixed is not None and abs(schedule.final_sparsity - fixed) > 1e-6:
        raise BadInputError(
            f"pruning: {pattern} has one sparsity",
            got=f"final_sparsity {schedule.final_sparsity}",
            allowed=f"{fixed:g}",
        )
    if sparsities and (scope == "global" or fixed is not None):
        reason = "one threshold over all layers" if scope == "global" else str(pattern)
        raise BadInputError(
            f"pruning: sparsities of single layers do not go with {reason}",
            got=", ".join(sparsities),
        )
    if scope == "global" and fixed is not None:
        raise BadInputError(
            f"pruning: {pattern} is the same in every layer", got="scope global", allowed="layer"
        )


def _check_named(named: Mapping[str, Any], found: Mapping[str, Kernel], model: Any) -> None:
    unknown = named.keys() - found.keys()
    if unknown:
        raise BadInputError(
            "pruning: a sparsity is given for a layer that is not pruned",
            where=model.name,
            got=", ".join(sorted(unknown)),
            allowed=", ".join(found),
        )


def _compile_masking(kernels: Mapping[str, Kernel], masks: Mapping[str, Any]) -> Any:
    """Returns a function that zeroes pruned weights where they are, on every replica."""
    pairs = [(kernels[name].variable, mask) for name, mask in masks.items()]

    def apply() -> None:
        for variable, mask in pairs:
            weights = variable.value
            variable.assign(tensorflow.where(mask, weights, tensorflow.zeros_like(weights)))

    return tensorflow.function(apply, autograph=False)


def find_prunable(model: Any, exclude: Collection[str] = ()) -> dict[str, Kernel]:
    """Returns the model's kernels that can be pruned, by layer name, less ``exclude``.

    Raises:
        BadInputError: An excluded layer is not among them, or none is left.
    """
    return select_kernels(model, "prune", exclude=exclude)


def measure_sparsity(model: Any) -> dict[str, float]:
    """Returns the share of zeros in each kernel of the model, by layer name."""
    return {
        name: float(np.mean(kernel.read() == 0)) for name, kernel in find_kernels(model).items()
    }
