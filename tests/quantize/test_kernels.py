"""Which weights of a Keras model are kernels, and along which axis they are summed over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.quantize.kernels import find_kernels, select_kernels
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
LAYERS: list[tuple[Any, tuple[int, ...], int]] = [
    (lambda: layers.Dense(7), (5,), 0),
    (lambda: layers.Dense(7), (3, 5), 0),
    (lambda: layers.Conv1D(7, 3), (8, 5), 1),
    (lambda: layers.Conv2D(7, 3), (8, 8, 5), 2),
    (lambda: layers.Conv3D(7, 3), (8, 8, 8, 5), 3),
    (lambda: layers.Conv1DTranspose(7, 3), (8, 5), 2),
    (lambda: layers.Conv2DTranspose(7, 3), (8, 8, 5), 3),
    (lambda: layers.Conv3DTranspose(7, 3), (8, 8, 8, 5), 4),
    (lambda: layers.SeparableConv1D(7, 3), (8, 5), 1),
    (lambda: layers.SeparableConv2D(7, 3), (8, 8, 5), 2),
    (lambda: layers.EinsumDense("ab,bc->ac", 7), (5,), 0),
    (lambda: layers.EinsumDense("ab,cb->ac", 7), (5,), 1),
    (lambda: layers.EinsumDense("...x,xy->...y", 7), (3, 5), 0),
    (lambda: layers.EinsumDense("abde,dec->abc", (None, 7)), (3, 2, 5), 1),
]


@pytest.mark.parametrize(("build", "shape", "axis"), LAYERS)
def test_the_input_axis(build: Any, shape: tuple[int, ...], axis: int) -> None:
    """Zeroing one input of the kernel makes the layer blind to it."""
    layer = build()
    model = keras.Sequential([layers.Input(shape), layer])
    (kernel,) = find_kernels(model).values()
    assert (kernel.name, kernel.input_axis, kernel.inputs) == (layer.name, axis, 5)
    weights = kernel.read()
    np.moveaxis(weights, axis, 0)[2] = 0
    kernel.variable.assign(weights)
    one = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    other = one.copy()
    other[..., 2] += 1
    assert np.array_equal(layer(one), layer(other))


@pytest.mark.parametrize(
    "layer",
    [
        layers.DepthwiseConv2D(3),
        layers.EinsumDense("abcd,cd->abcd", (None, 8, 5)),
        layers.TimeDistributed(layers.TimeDistributed(layers.Dense(3))),
        layers.BatchNormalization(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_without_a_kernel(layer: Any) -> None:
    assert find_kernels(keras.Sequential([layers.Input((8, 8, 5)), layer])) == {}


def test_a_shared_layer_counts_once() -> None:
    shared = layers.Dense(4, name="shared")
    inner = keras.Sequential([layers.Input((4,)), shared, layers.Dense(4)], name="inner")
    x = layers.Input((4,))
    model = keras.Model(x, inner(shared(inner(x))))
    assert len(find_kernels(model)) == 2


def test_selection_by_name() -> None:
    model = keras.Sequential(
        [layers.Input((4,)), *(layers.Dense(4, name=name) for name in "abcd")], name="net"
    )
    model.get_layer("d").trainable = False
    assert list(select_kernels(model, "prune")) == ["a", "b", "c"]
    assert list(select_kernels(model, "prune", layers=["c", "b"])) == ["b", "c"]
    assert list(select_kernels(model, "prune", layers=["a", "b"], exclude=["a"])) == ["b"]
    with pytest.raises(BadInputError) as caught:
        select_kernels(model, "cluster", layers=["a", "e"])
    assert str(caught.value) == (
        "net: clustering: no such layer to use; got e; allowed: a, b, c, d"
    )
    with pytest.raises(BadInputError, match="to exclude are given as a list; got 'a'"):
        select_kernels(model, "prune", exclude="a")
    with pytest.raises(BadInputError, match="got 4 layers with a kernel, 3 of them excluded, 1 fr"):
        select_kernels(model, "prune", layers=["d"])


def test_a_model_that_is_not_built_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"^late: the layer is not built; give the model an"):
        find_kernels(keras.Sequential([layers.Dense(4, name="late")]))


@pytest.mark.parametrize("change", [lambda x: x.quantize("int8"), lambda x: x.enable_lora(2)])
def test_a_layer_whose_weights_are_not_plain_is_refused(change: Any) -> None:
    model = keras.Sequential([layers.Input((4,)), layers.Dense(4, name="odd")])
    change(model.get_layer("odd"))
    with pytest.raises(BadInputError, match=r"^odd: the layer's kernel is not a plain float"):
        find_kernels(model)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = keras.Sequential([layers.Input((4,)), layers.Dense(4, name="lost")])
    kernel = find_kernels(model)["lost"]
    kernel.variable.assign(np.full((4, 4), np.nan, np.float32))
    with pytest.raises(CheckFailedError, match=r"^lost: the training diverged: weights are not f"):
        kernel.read_finite()


class Block(layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer from outside Keras that holds layers, two of them under one name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first = layers.Dense(5, name="dense")
        self.others = [layers.Dense(5, name="dense"), layers.BatchNormalization(name="norm")]

    def build(self, input_shape: Any) -> None:
        for layer in (self.first, *self.others):
            layer.build(input_shape)

    def call(self, x: Any) -> Any:
        x = self.first(x)
        for layer in self.others:
            x = layer(x)
        return x


def test_kernels_in_layers_from_outside_keras() -> None:
    model = keras.Sequential([layers.Input((5,)), Block(name="block"), layers.Dense(2, name="d")])
    found = find_kernels(model)
    assert list(found) == ["block/dense", "block/dense_2", "d"]
    block = model.get_layer("block")
    assert found["block/dense"].variable is block.first.kernel
    assert found["block/dense_2"].variable is block.others[0].kernel
    assert list(select_kernels(model, "prune", exclude=["block/dense_2"])) == ["block/dense", "d"]
