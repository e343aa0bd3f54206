"""Magnitude pruning inside Keras's own training loop."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.quantize.pruning import MagnitudePruning, find_prunable, measure_sparsity
from edgekiln.quantize.sparsity import PolynomialSchedule
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
STEPS = 6
EPOCHS = 4
SCHEDULE = PolynomialSchedule(0.7, begin_step=2, end_step=12, frequency=3)


def build() -> Any:
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            layers.Input((6, 6, 2)),
            layers.Conv2D(5, 3, name="conv"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(),
            layers.Dense(7, activation="relu", name="hidden"),
            layers.Dense(3, name="out"),
        ]
    )


def fit(model: Any, callbacks: Sequence[Any], epochs: int = EPOCHS) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * 8, 6, 6, 2)).astype(np.float32)
    y = random.normal(size=(STEPS * 8, 3)).astype(np.float32)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(
        *(x, y), batch_size=8, epochs=epochs, validation_data=(x, y), verbose=0, callbacks=callbacks
    )


def kernel(model: Any, name: str) -> np.ndarray:
    array: np.ndarray = keras.ops.convert_to_numpy(model.get_layer(name).kernel)
    return array


def zeros(model: Any) -> dict[str, int]:
    return {
        layer.name: int(np.count_nonzero(kernel(model, layer.name) == 0))
        for layer in model.layers
        if hasattr(layer, "kernel")
    }


class Record(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps which weights are zero after each batch; goes after the pruning callback."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.patterns: list[np.ndarray] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.patterns.append(kernel(self.model, self.name) == 0)


@pytest.mark.parametrize("sparsity", [0.0, 0.33, 0.7, 0.95])
def test_the_sparsity_is_reached_exactly_in_every_layer(sparsity: float) -> None:
    model = build()
    pruner = MagnitudePruning(PolynomialSchedule(sparsity, 0, 12, 5))
    fit(model, [pruner])
    assert pruner.pruned_layers == ("conv", "hidden", "out")
    sizes = {"conv": 3 * 3 * 2 * 5, "hidden": 2 * 2 * 5 * 7, "out": 7 * 3}
    expected = {name: round(sparsity * size) for name, size in sizes.items()}
    assert zeros(model) == {**expected, "depthwise": 0}
    assert measure_sparsity(model) == {name: expected[name] / sizes[name] for name in sizes}


def test_the_schedule_is_followed_and_zeros_stay_zero() -> None:
    model = build()
    record = Record("hidden")
    fit(model, [MagnitudePruning(SCHEDULE), record])
    counts = [int(np.count_nonzero(pattern)) for pattern in record.patterns]
    updates = {2, 5, 8, 11, 12}
    wanted, current = [], 0
    for step in range(1, STEPS * EPOCHS + 1):
        if step in updates:
            current = round(SCHEDULE.sparsity_at(step) * 140)
        wanted.append(current)
    assert counts == wanted and wanted[-1] == 98
    for earlier, later in itertools.pairwise(record.patterns):
        assert not np.any(earlier & ~later)


def test_adam_would_revive_the_zeros_without_the_masks() -> None:
    """What the test above guards against does happen."""

    class PruneOnce(MagnitudePruning):
        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            self._step += 1
            if self._step == 12:
                self._draw_masks()
                self._apply_masks()

        def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
            pass

    model = build()
    record = Record("hidden")
    fit(model, [PruneOnce(SCHEDULE), record])
    assert np.count_nonzero(record.patterns[11]) == 98
    assert np.count_nonzero(record.patterns[-1]) < 98


def test_the_rest_is_still_trained() -> None:
    model = build()
    before = kernel(model, "hidden")
    fit(model, [MagnitudePruning(SCHEDULE)])
    after = kernel(model, "hidden")
    assert np.all(after[after != 0] != before[after != 0])


def test_excluded_layers_stay_dense() -> None:
    model = build()
    pruner = MagnitudePruning(SCHEDULE, exclude=["conv", "out"])
    fit(model, [pruner])
    assert pruner.pruned_layers == ("hidden",)
    assert zeros(model) == {"conv": 0, "depthwise": 0, "hidden": 98, "out": 0}


@pytest.mark.parametrize("pruner_first", [False, True])
def test_restored_weights_are_as_sparse(pruner_first: bool) -> None:
    """The best epoch is the first one after the ramp; later ones are made worse."""

    class Spoil(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            bias = self.model.get_layer("out").bias
            bias.assign(bias + 1.0)

    model = build()
    stop = keras.callbacks.EarlyStopping(
        "val_loss", restore_best_weights=True, patience=9, start_from_epoch=2
    )
    pruner = MagnitudePruning(SCHEDULE)
    fit(model, [Spoil(), *((pruner, stop) if pruner_first else (stop, pruner))])
    assert stop.best_epoch == 2
    assert zeros(model) == {"conv": 63, "depthwise": 0, "hidden": 98, "out": 15}


def test_training_that_stops_early_is_pruned_to_the_end() -> None:
    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            self.model.stop_training = True

    model = build()
    fit(model, [Stop(), MagnitudePruning(SCHEDULE)])
    assert zeros(model) == {"conv": 63, "depthwise": 0, "hidden": 98, "out": 15}


def test_nested_models_are_pruned_by_path() -> None:
    inner = keras.Sequential([layers.Input((4,)), layers.Dense(6, name="dense")], name="inner")
    model = keras.Sequential(
        [layers.Input((4,)), inner, layers.Dense(3, name="dense")], name="outer"
    )
    assert list(find_prunable(model)) == ["inner/dense", "dense"]
    assert list(find_prunable(model, frozenset({"dense"}))) == ["inner/dense"]


def test_a_schedule_longer_than_the_training_is_refused() -> None:
    pruner = MagnitudePruning(PolynomialSchedule(0.5, 0, STEPS * EPOCHS + 1))
    with pytest.raises(BadInputError) as caught:
        fit(build(), [pruner])
    assert str(caught.value) == (
        "pruning: end_step lies after the end of training; got 25; allowed: at most 24"
    )


def test_a_layer_to_exclude_must_exist() -> None:
    with pytest.raises(BadInputError) as caught:
        fit(build(), [MagnitudePruning(SCHEDULE, exclude=["depthwise"])])
    assert "no such layer to exclude; got depthwise; allowed: conv, hidden, out" in str(
        caught.value
    )


def test_there_must_be_a_layer_to_prune() -> None:
    model = keras.Sequential(
        [layers.Input((6, 6, 2)), layers.DepthwiseConv2D(3), layers.GlobalAveragePooling2D()],
        name="pools",
    )
    with pytest.raises(BadInputError, match=r"^pools: pruning: no layer to prune; got 0 Conv2D"):
        find_prunable(model)
    with pytest.raises(BadInputError, match=r"3 Conv2D or Dense layers, 3 of them excluded"):
        find_prunable(build(), frozenset({"conv", "hidden", "out"}))
