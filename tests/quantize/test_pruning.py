"""Magnitude pruning inside Keras's own training loop."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.quantize.kernels import find_kernels
from edgekiln.quantize.pruning import MagnitudePruning, find_prunable, measure_sparsity
from edgekiln.quantize.sparsity import (
    Blocks,
    ConstantSchedule,
    NofM,
    PolynomialSchedule,
    n_of_m_mask,
)
from edgekiln.train.quiet_keras import keras, tensorflow

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


def fit(
    model: Any,
    callbacks: Sequence[Any],
    epochs: int = EPOCHS,
    optimizer: Any = None,
    initial_epoch: int = 0,
    validate: bool = False,
    **options: Any,
) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * 8, 6, 6, 2)).astype(np.float32)
    y = random.normal(size=(STEPS * 8, 3)).astype(np.float32)
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", jit_compile=False, **options)
    model.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        initial_epoch=initial_epoch,
        validation_data=(x, y) if validate else None,
        verbose=0,
        callbacks=callbacks,
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


@pytest.mark.parametrize("sparsity", [0.0, 0.33, 0.95])
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
                self._apply()

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
    fit(model, [Spoil(), *((pruner, stop) if pruner_first else (stop, pruner))], validate=True)
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
    assert list(find_prunable(model, ["dense"])) == ["inner/dense"]


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
    with pytest.raises(BadInputError) as caught:
        find_prunable(model)
    assert str(caught.value) == (
        "pools: pruning: no layer to prune; got 0 layers with a kernel, 0 of them excluded, "
        "0 frozen; allowed: at least one trainable Dense, EinsumDense, Conv, ConvTranspose or "
        "SeparableConv layer"
    )
    with pytest.raises(BadInputError, match=r"got 3 layers with a kernel, 3 of them excluded"):
        find_prunable(build(), ["conv", "hidden", "out"])


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": keras.optimizers.SGD(0.01, momentum=0.9)},
        {"optimizer": keras.optimizers.Adam(0.01, gradient_accumulation_steps=4)},
        {"optimizer": keras.optimizers.Adam(0.01, use_ema=True)},
        {"optimizer": keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=5)},
        {"run_eagerly": True},
        {"steps_per_execution": 4},
    ],
    ids=lambda options: ", ".join(map(str, options)),
)
def test_masks_hold_after_every_batch(options: dict[str, Any]) -> None:
    """From the end of the schedule on the same weights are zero, and no others."""
    model = build()
    record = Record("hidden")
    fit(model, [MagnitudePruning(SCHEDULE), record], **options)
    settled = record.patterns[len(record.patterns) // 2 :]
    assert all(np.count_nonzero(pattern) == 98 for pattern in settled)
    if not getattr(options.get("optimizer"), "use_ema", False):
        assert all(np.array_equal(pattern, settled[0]) for pattern in settled)
    assert zeros(model) == {"conv": 63, "depthwise": 0, "hidden": 98, "out": 15}


def test_steps_within_one_execution_are_counted() -> None:
    """Six steps an epoch, four in an execution: the second execution of an epoch has two."""
    model = build()
    record = Record("hidden")
    schedule = PolynomialSchedule(0.7, 2, 12, frequency=5, power=1.0)
    fit(model, [MagnitudePruning(schedule), record], steps_per_execution=4)
    counts = [int(np.count_nonzero(pattern)) for pattern in record.patterns]
    wanted = [schedule.sparsity_at(step) for step in (4, 4, 10, 12, 12, 12, 12, 12)]
    assert counts == [round(140 * sparsity) for sparsity in wanted]


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_mixed_precision(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = build()
        record = Record("hidden")
        fit(model, [MagnitudePruning(SCHEDULE), record])
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(np.count_nonzero(pattern) == 98 for pattern in record.patterns[12:])
    assert zeros(model) == {"conv": 63, "depthwise": 0, "hidden": 98, "out": 15}


def test_training_that_goes_on_keeps_its_place_in_the_schedule() -> None:
    model = build()
    record = Record("hidden")
    fit(model, [MagnitudePruning(SCHEDULE), record], initial_epoch=2)
    counts = [int(np.count_nonzero(pattern)) for pattern in record.patterns]
    assert counts == [98] * 2 * STEPS


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_data_of_unknown_length() -> None:
    model = build()
    record = Record("hidden")
    model.compile("adam", "mse", jit_compile=False)
    one = (np.ones((4, 6, 6, 2), np.float32), np.ones((4, 3), np.float32))
    data = tensorflow.data.Dataset.from_tensors(one).repeat(STEPS).filter(lambda x, y: True)
    callbacks = [MagnitudePruning(SCHEDULE), record]
    model.fit(data, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    counts = [int(np.count_nonzero(pattern)) for pattern in record.patterns]
    assert counts[0] == 0 and counts[9] < counts[10]
    assert counts[10:] == [98] * (STEPS * EPOCHS - 10)


def test_the_weights_are_left_alone_when_there_is_no_epoch() -> None:
    model = build()
    fit(model, [MagnitudePruning(ConstantSchedule(0.5))], epochs=2, initial_epoch=2)
    assert sum(zeros(model).values()) == 0


def test_a_constant_schedule_prunes_at_once() -> None:
    model = build()
    record = Record("hidden")
    fit(model, [MagnitudePruning(ConstantSchedule(0.5, begin_step=3)), record], epochs=1)
    counts = [int(np.count_nonzero(pattern)) for pattern in record.patterns]
    assert counts == [0, 0, 70, 70, 70, 70]


def test_single_layers_may_have_their_own_sparsity() -> None:
    model = build()
    pruner = MagnitudePruning(SCHEDULE, ["out"], sparsities={"conv": 0.2, "hidden": 0.9})
    fit(model, [pruner])
    assert zeros(model) == {"conv": 18, "depthwise": 0, "hidden": 126, "out": 0}


def test_one_threshold_over_all_layers() -> None:
    model = build()
    model.get_layer("out").kernel.assign(model.get_layer("out").kernel * 10)
    fit(model, [MagnitudePruning(SCHEDULE, scope="global")])
    found = zeros(model)
    assert sum(found.values()) == round(0.7 * (90 + 140 + 21))
    assert found["out"] < round(0.7 * 21)


@pytest.mark.parametrize("n", [1, 2])
def test_n_of_four_weights_are_left(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = build()
    record = Record("hidden")
    pruner = MagnitudePruning(PolynomialSchedule(1 - n / 4, 0, 12, 3), pattern=NofM(n, 4))
    fit(model, [pruner, record])
    assert (pruner.pruned_layers, pruner.left_dense) == (
        ("hidden", "out"),
        {"conv": "2 inputs, fewer than 4"},
    )
    assert "pruning leaves conv dense: 2 inputs, fewer than 4" in capsys.readouterr().err
    assert zeros(model)["conv"] == 0
    for name, pattern in (("hidden", record.patterns[-1]), ("out", kernel(model, "out") == 0)):
        wanted = n_of_m_mask(kernel(model, name), n, 4, axis=0)
        assert np.array_equal(pattern, ~wanted), name
    counts = [np.count_nonzero(pattern) for pattern in record.patterns]
    assert counts == sorted(counts) and counts[-1] == 140 * (4 - n) // 4


def test_blocks_of_four_weights_go_together() -> None:
    model = build()
    record = Record("hidden")
    fit(model, [MagnitudePruning(SCHEDULE, pattern=Blocks(4)), record])
    for pattern in record.patterns:
        blocks = pattern.reshape(5, 4, 7)
        assert np.array_equal(blocks.all(axis=1), blocks.any(axis=1))
    assert np.count_nonzero(record.patterns[-1]) == 4 * round(0.7 * 35)
    # 7 inputs: a block of four and one of three, for each of three outputs
    out = kernel(model, "out") == 0
    halves = [out[:4].all(axis=0), out[4:].all(axis=0)]
    assert np.count_nonzero(halves) == round(0.7 * 6)
    assert np.count_nonzero(out) == 4 * np.sum(halves[0]) + 3 * np.sum(halves[1])


def test_all_kinds_of_kernels_are_pruned() -> None:
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            layers.Input((6, 6, 2)),
            layers.SeparableConv2D(8, 3, name="separable"),
            layers.Conv2DTranspose(8, 3, name="transposed"),
            layers.Reshape((6, 48)),
            layers.Conv1D(8, 3, name="conv1d"),
            layers.EinsumDense("abc,bcd->ad", 3, name="einsum"),
        ]
    )
    fit(model, [MagnitudePruning(ConstantSchedule(0.5), exclude=["separable"], pattern=NofM(2, 4))])
    assert measure_sparsity(model) == {
        **{"separable": 0, "transposed": 0.5, "conv1d": 0.5, "einsum": 0.5}
    }
    for name in ("transposed", "conv1d", "einsum"):
        found = find_kernels(model)[name]
        weights = found.read()
        assert np.array_equal(weights != 0, n_of_m_mask(weights, 2, 4, axis=found.input_axis))


def test_frozen_layers_stay_dense() -> None:
    model = build()
    model.get_layer("hidden").trainable = False
    pruner = MagnitudePruning(SCHEDULE)
    fit(model, [pruner])
    assert pruner.left_dense == {"hidden": "frozen"}
    assert zeros(model) == {"conv": 63, "depthwise": 0, "hidden": 0, "out": 15}


def test_training_that_diverges_ends_in_one_line() -> None:
    with pytest.raises(CheckFailedError, match="the training diverged: weights are not finite"):
        fit(build(), [MagnitudePruning(SCHEDULE)], optimizer=keras.optimizers.SGD(1e30))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": 0.5}, "schedule is not one; got 0.5; allowed: ConstantSchedule or Polynom"),
        ({"pattern": "2:4"}, "pattern is not one; got '2:4'; allowed: Unstructured(), NofM(n, m)"),
        ({"scope": "model"}, "unknown scope; got model; allowed: layer or global"),
        ({"pattern": NofM(2, 4)}, "NofM(n=2, m=4) has one sparsity; got final_sparsity 0.7; allow"),
        (
            {"sparsities": {"a": 0.5}, "scope": "global"},
            "sparsities of single layers do not go with one threshold over",
        ),
        ({"sparsities": {"a": 1.5}}, "final_sparsity is out of range; got 1.5; allowed: [0, 1)"),
        (
            {"pattern": NofM(1, 2), "schedule": ConstantSchedule(0.5), "scope": "global"},
            "NofM(n=1, m=2) is the same in every layer; got scope global; allowed: layer",
        ),
        (
            {"pattern": NofM(1, 2), "schedule": ConstantSchedule(0.5), "sparsities": {"a": 0.5}},
            "sparsities of single layers do not go with NofM(n=1, m=2); got a",
        ),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        MagnitudePruning(**{"schedule": SCHEDULE, **options})
    assert f"pruning: {message}" in str(caught.value)


def test_a_layer_with_its_own_sparsity_must_be_pruned() -> None:
    with pytest.raises(BadInputError, match=r"for a layer that is not pruned; got out; allowed: c"):
        fit(build(), [MagnitudePruning(SCHEDULE, ["out"], sparsities={"out": 0.5})])


def test_a_layer_must_have_enough_inputs() -> None:
    pruner = MagnitudePruning(ConstantSchedule(0.5), ["hidden", "out"], pattern=NofM(2, 4))
    with pytest.raises(BadInputError, match=r"no layer has the 4 inputs of NofM\(n=2, m=4\)"):
        fit(build(), [pruner])
