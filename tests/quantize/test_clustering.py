"""Weight clustering inside Keras's own training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.quantize.clustering import WeightClustering, estimate_packed_bits, measure_clusters
from edgekiln.quantize.codebook import find_codebook
from edgekiln.quantize.pruning import MagnitudePruning, measure_sparsity
from edgekiln.quantize.sparsity import ConstantSchedule, NofM
from edgekiln.train.quiet_keras import keras, tensorflow

pytestmark = KERAS

layers = keras.layers
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(48, 6, 6, 2)).astype(np.float32)
Y = RANDOM.normal(size=(48, 3)).astype(np.float32)


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


def fit(model: Any, callbacks: Sequence[Any], optimizer: Any = None, **options: Any) -> None:
    optimizer = optimizer or keras.optimizers.Adam(0.01)
    model.compile(optimizer, "mse", jit_compile=False, **options)
    model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)


def kernel(model: Any, name: str) -> np.ndarray:
    array: np.ndarray = keras.ops.convert_to_numpy(model.get_layer(name).kernel)
    return array


class Record(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps a kernel after each batch; goes after the clustering callback."""

    def __init__(self, name: str = "hidden") -> None:
        super().__init__()
        self.name = name
        self.kernels: list[np.ndarray] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.kernels.append(kernel(self.model, self.name))


@pytest.mark.parametrize("init", ["linear", "density", "k-means++"])
def test_every_kernel_has_few_values(init: Any) -> None:
    model = build()
    clustering = WeightClustering(8, init=init)
    fit(model, [clustering])
    assert clustering.clustered_layers == ("conv", "hidden", "out")
    assert measure_clusters(model) == {"conv": 8, "hidden": 8, "out": 8}
    assert len(np.unique(kernel(model, "depthwise"))) > 8


@pytest.mark.parametrize(
    "options", [{}, {"run_eagerly": True}, {"steps_per_execution": 4}], ids=lambda value: str(value)
)
def test_the_values_move_and_the_members_stay(options: dict[str, Any]) -> None:
    model = build()
    book = find_codebook(kernel(model, "hidden"), 8)
    record = Record()
    fit(model, [WeightClustering(8), record], **options)
    before = book.centroids
    for weights in record.kernels:
        values = np.array([weights[book.assignment == index][0] for index in range(8)])
        assert np.array_equal(values[book.assignment], weights)
        assert not np.any(values == before)
        before = values


def test_a_centroid_learns_from_the_sum_of_its_gradients() -> None:
    """Formula 3 of Deep Compression, at the learning rate divided by the members."""

    class Shared(layers.Layer):  # type: ignore[misc]
        """A dense layer whose only weights are the centroids."""

        def __init__(self, book: Any) -> None:
            super().__init__()
            self.assignment = book.assignment
            self.centroids = self.add_weight(shape=(6,), initializer="zeros")
            self.centroids.assign(book.centroids)

        def call(self, x: Any) -> Any:
            return keras.ops.matmul(x, keras.ops.take(self.centroids, self.assignment, axis=0))

    x = X.reshape(48, -1)
    keras.utils.set_random_seed(1)
    ours = keras.Sequential([layers.Input((72,)), layers.Dense(3, use_bias=False, name="dense")])
    book = find_codebook(kernel(ours, "dense"), 6)
    theirs = Shared(book)
    members = np.bincount(book.assignment.ravel())
    ours.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    ours.fit(x, Y, batch_size=48, epochs=3, verbose=0, callbacks=[WeightClustering(6)])
    for _ in range(3):
        with tensorflow.GradientTape() as tape:
            loss = keras.ops.mean((theirs(x) - Y) ** 2)
        gradient = keras.ops.convert_to_numpy(tape.gradient(loss, theirs.centroids.value))
        theirs.centroids.assign(theirs.centroids - 0.1 / members * gradient)
    expected = keras.ops.convert_to_numpy(theirs.centroids)[book.assignment]
    np.testing.assert_allclose(kernel(ours, "dense"), expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected - book.centroids[book.assignment]).max() > 1e-3


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_mixed_precision(policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = build()
        fit(model, [WeightClustering(4)])
    finally:
        keras.config.set_dtype_policy("float32")
    assert max(measure_clusters(model).values()) <= 4


def test_pruned_weights_stay_zero_when_clustered_afterwards() -> None:
    model = build()
    fit(model, [MagnitudePruning(ConstantSchedule(0.75), ["conv"], pattern=NofM(1, 4))])
    before = {name: kernel(model, name) == 0 for name in ("hidden", "out")}
    fit(model, [WeightClustering(4)])
    assert measure_clusters(model) == {"conv": 4, "hidden": 4, "out": 4}
    assert measure_sparsity(model)["conv"] == 0
    for name, zeros in before.items():
        assert np.array_equal(kernel(model, name) == 0, zeros)


def test_pruning_and_clustering_in_one_fit() -> None:
    model = build()
    record = Record()
    fit(model, [MagnitudePruning(ConstantSchedule(0.8)), WeightClustering(4), record])
    for weights in record.kernels:
        assert len(np.unique(weights)) == 4
        assert np.count_nonzero(weights == 0) == round(0.8 * 140)
        assert np.array_equal(weights == 0, record.kernels[0] == 0)


def test_zeros_may_be_given_up() -> None:
    model = build()
    fit(model, [MagnitudePruning(ConstantSchedule(0.5))])
    fit(model, [WeightClustering(4, preserve_zeros=False)])
    assert max(measure_sparsity(model).values()) == 0


def test_layers_are_chosen_by_name() -> None:
    model = build()
    fit(model, [WeightClustering(4, layers=["conv", "hidden"], exclude=["conv"])])
    assert measure_clusters(model) == {"conv": 90, "hidden": 4, "out": 21}


def test_restored_weights_are_clustered() -> None:
    """The best epoch is the one before training: weights that never were clustered."""

    class Restore(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
            self.model.set_weights(weights)

    model = build()
    weights = model.get_weights()
    fit(model, [Restore(), WeightClustering(8)])
    assert measure_clusters(model) == {"conv": 8, "hidden": 8, "out": 8}


def test_the_packed_size() -> None:
    model = build()
    fit(model, [WeightClustering(8, exclude=["out"])])
    assert estimate_packed_bits(model) == {
        "conv": 90 * 3 + 8 * 32,
        "hidden": 140 * 3 + 8 * 32,
        "out": 21 * 5 + 21 * 32,
    }
    assert estimate_packed_bits(model, value_bits=8)["hidden"] == 140 * 3 + 8 * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 1}, "clustering: clusters is out of range; got 1; allowed: 2 to 256"),
        ({"clusters": 257}, "clustering: clusters is out of range; got 257; allowed: 2 to 256"),
        ({"init": "random"}, "unknown init; got random; allowed: linear, density, k-means++"),
        ({"exclude": ["depthwise"]}, "clustering: no such layer to exclude; got depthwise; allo"),
        ({"layers": []}, "clustering: no layer to cluster; got 3 layers with a kernel, 3 of them"),
    ],
)
def test_wrong_use_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        fit(build(), [WeightClustering(**options)])
    assert message in str(caught.value)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = build()
    model.get_layer("conv").kernel.assign(np.full((3, 3, 2, 5), np.inf, np.float32))
    with pytest.raises(CheckFailedError, match=r"^conv: the training diverged"):
        fit(model, [WeightClustering()])
