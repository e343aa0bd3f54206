"""What pruning and clustering cost in accuracy, on the digits of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.quantize.clustering import WeightClustering, measure_clusters
from edgekiln.quantize.prune_to_accuracy import prune_to_accuracy
from edgekiln.quantize.pruning import MagnitudePruning, measure_sparsity
from edgekiln.quantize.sparsity import Blocks, NofM, PolynomialSchedule
from edgekiln.train.datasets import load_dataset
from edgekiln.train.loop import accuracy
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

DIGITS = load_dataset("digits")
BATCH = 32
STEPS = -(-len(DIGITS.x_train) // BATCH)


def compile_and_fit(model: Any, epochs: int, *callbacks: Any) -> None:
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(
        DIGITS.x_train,
        DIGITS.y_train,
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
    )


def validation_accuracy(model: Any) -> float:
    return accuracy(model, DIGITS.x_val, DIGITS.y_val)


def held_out_accuracy(model: Any) -> float:
    """On the validation and the test images, as each part has only some hundreds."""
    images = np.concatenate([DIGITS.x_val, DIGITS.x_test])
    return accuracy(model, images, np.concatenate([DIGITS.y_val, DIGITS.y_test]))


@pytest.fixture(scope="module")
def dense() -> tuple[Any, list[np.ndarray], float]:
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.layers.Input(DIGITS.x_train.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="one"),
            keras.layers.Dense(32, activation="relu", name="two"),
            keras.layers.Dense(10, activation="softmax", name="out"),
        ]
    )
    compile_and_fit(model, 30)
    return model, model.get_weights(), held_out_accuracy(model)


@pytest.fixture
def trained(dense: tuple[Any, list[np.ndarray], float]) -> tuple[Any, float]:
    """The trained model, as it was, and its accuracy on the held-out images."""
    model, weights, measured = dense
    model.set_weights(weights)
    keras.utils.set_random_seed(5)
    return model, measured


RAMP = PolynomialSchedule(0.8, 0, 4 * STEPS, STEPS // 3)


@pytest.mark.parametrize(
    ("pruning", "sparsity"),
    [
        (MagnitudePruning(RAMP), 0.8),
        (MagnitudePruning(RAMP, scope="global"), 0.8),
        (MagnitudePruning(RAMP.with_final(0.5), pattern=NofM(2, 4)), 0.5),
        (MagnitudePruning(RAMP.with_final(0.75), pattern=NofM(1, 4)), 0.75),
        (MagnitudePruning(RAMP.with_final(0.7), pattern=Blocks(4)), 0.7),
    ],
    ids=["layer", "global", "2:4", "1:4", "1x4"],
)
def test_accuracy_is_kept(trained: tuple[Any, float], pruning: Any, sparsity: float) -> None:
    """Within 2 points of dense: -1.0 to +0.8 points when this was written."""
    model, before = trained
    compile_and_fit(model, 6, pruning)
    found = measure_sparsity(model)
    sizes = {"one": 64 * 64, "two": 64 * 32, "out": 32 * 10}
    zeros = sum(found[name] * size for name, size in sizes.items())
    assert zeros / sum(sizes.values()) == pytest.approx(sparsity, abs=1e-3)
    assert before > 0.93 and held_out_accuracy(model) > before - 0.02


@pytest.mark.parametrize("clusters", [16, 32])
def test_pruned_and_clustered(trained: tuple[Any, float], clusters: int) -> None:
    model, before = trained
    compile_and_fit(model, 6, MagnitudePruning(RAMP))
    sparsity = measure_sparsity(model)
    compile_and_fit(model, 2, WeightClustering(clusters))
    assert measure_sparsity(model) == sparsity
    assert set(measure_clusters(model).values()) == {clusters}
    assert held_out_accuracy(model) > before - 0.02


def test_pruning_goes_as_far_as_the_bound_allows(
    trained: tuple[Any, float], capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = trained
    before = validation_accuracy(model)
    result = prune_to_accuracy(
        model,
        lambda model, pruning: compile_and_fit(model, 2, pruning),
        validation_accuracy,
        max_drop_points=3,
        sparsities=(0.5, 0.8, 0.98),
        exclude=["out"],
    )
    assert [trial.candidate for trial in result.trials] == [0.5, 0.8, 0.98]
    assert [trial.accepted for trial in result.trials] == [True, True, False]
    assert result.accepted is not None and result.accepted.candidate == 0.8
    assert validation_accuracy(model) == result.accepted.score >= before - 0.03
    assert measure_sparsity(model) == pytest.approx({"one": 0.8, "two": 0.8, "out": 0}, abs=1e-3)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("pruned to 50 %: accuracy 9") and said[0].endswith("kept")
    assert "pruned to 98 %" in said[2] and said[2].endswith("undone")


def test_a_bound_that_cannot_be_kept_leaves_the_model_as_it_was(
    trained: tuple[Any, float],
) -> None:
    model, _ = trained
    weights = model.get_weights()
    result = prune_to_accuracy(
        model,
        lambda model, pruning: compile_and_fit(model, 1, pruning),
        validation_accuracy,
        max_drop_points=0,
        sparsities=(0.99,),
    )
    assert result.accepted is None and len(result.trials) == 1
    for one, two in zip(weights, model.get_weights(), strict=True):
        assert np.array_equal(one, two)


def test_an_error_on_the_way_leaves_the_model_as_it_was(trained: tuple[Any, float]) -> None:
    model, _ = trained
    weights = model.get_weights()

    def fine_tune(model: Any, pruning: Any) -> None:
        model.get_layer("one").kernel.assign(np.zeros((64, 64)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_to_accuracy(model, fine_tune, validation_accuracy, max_drop_points=1)
    for one, two in zip(weights, model.get_weights(), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop_points": -1}, "max_drop_points is out of range; got -1; allowed: 0 to 100"),
        ({"sparsities": ()}, r"sparsities must rise; got \[\]; allowed: numbers in \(0, 1\)"),
        ({"sparsities": (0.5, 0.5)}, "sparsities must rise"),
        ({"sparsities": (0.5, 1.0)}, "sparsities must rise"),
        ({"exclude": ["conv"]}, "no such layer to exclude; got conv; allowed: one, two, out"),
    ],
)
def test_wrong_use_is_refused(
    trained: tuple[Any, float], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        prune_to_accuracy(
            trained[0], compile_and_fit, validation_accuracy, **{"max_drop_points": 1, **options}
        )


def test_the_whole_step_is_pruned_from_the_first_batch_on(trained: tuple[Any, float]) -> None:
    """Each turn fine-tunes at its sparsity, so that what was measured is what is kept."""
    seen: list[dict[str, float]] = []

    class Record(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 0:
                seen.append(measure_sparsity(self.model))

    prune_to_accuracy(
        trained[0],
        lambda model, pruning: compile_and_fit(model, 1, pruning, Record()),
        validation_accuracy,
        max_drop_points=100,
        sparsities=(0.25, 0.5),
        exclude=["out", "two"],
    )
    assert [one["one"] for one in seen] == [0.25, 0.5]
