"""The pruned model against the silenced one, over many architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from channel_models import inputs_of, outputs_of, shake, silence
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_marks import KERAS

from edgekiln.quantize.channels.groups import find_groups
from edgekiln.quantize.channels.surgery import remove_channels
from edgekiln.quantize.channels.trace import trace
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS

layers = keras.layers
ops = keras.ops
Build = Callable[[Any], Any]


def draw_kept(model: Any, seed: int) -> tuple[Any, np.ndarray]:
    """Traces a model and draws channels to keep, one at least in every group."""
    random = np.random.default_rng(seed)
    traced = trace(model)
    kept = np.ones(traced.channels.count, np.bool_)
    for group in find_groups(traced):
        if not group.pinned:
            kept[group.channels] = random.random(len(group.channels)) < 0.5
            kept[random.choice(group.channels)] = True
    return traced, kept


def check(model: Any, seed: int = 0) -> Any:
    """Prunes a model at random and compares it with the original, silenced; returns it."""
    shake(model, seed)
    traced, kept = draw_kept(model, seed)
    pruned = remove_channels(traced, kept)
    silence(traced, kept)
    inputs = inputs_of(model, seed)
    for got, expected in zip(outputs_of(pruned, inputs), outputs_of(model, inputs), strict=True):
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(got / scale, expected / scale, atol=1e-5)
    return pruned


# ---- Architectures drawn at random ----


def depth(x: Any) -> int:
    return int(x.shape[-1])


def convolution(x: Any, draw: Any) -> Any:
    return layers.Conv2D(
        draw(st.sampled_from([2, 3, 6])),
        draw(st.sampled_from([1, 3])),
        padding="same",
        use_bias=draw(st.booleans()),
        activation=draw(st.sampled_from([None, "relu", "tanh"])),
    )(x)


def normalization(x: Any, draw: Any) -> Any:
    x = layers.BatchNormalization(scale=draw(st.booleans()))(x)
    return draw(
        st.sampled_from(
            [layers.ReLU(), layers.LeakyReLU(), layers.PReLU(shared_axes=[1, 2]), layers.PReLU()]
        )
    )(x)


def depthwise(x: Any, draw: Any) -> Any:
    return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=draw(st.integers(1, 2)))(x)


def identity_residual(x: Any, draw: Any) -> Any:
    y = layers.Conv2D(depth(x), 3, padding="same")(x)
    kinds = [layers.Add(), layers.Subtract(), layers.Maximum(), layers.Average()]
    return draw(st.sampled_from(kinds))([x, y])


def projected_residual(x: Any, draw: Any) -> Any:
    filters = draw(st.sampled_from([3, 4]))
    y = normalization(layers.Conv2D(filters, 3, padding="same")(x), draw)
    y = layers.Conv2D(filters, 1)(y)
    return layers.Add()([layers.Conv2D(filters, 1)(x), y])


def concatenation(x: Any, draw: Any) -> Any:
    branches = [layers.Conv2D(draw(st.integers(1, 4)), 1)(x), x, layers.ReLU()(x)]
    return layers.Concatenate()(branches[: draw(st.integers(2, 3))])


def concatenation_added(x: Any, draw: Any) -> Any:
    """Two branches in a row, added to one that spans both."""
    x = layers.Concatenate()([layers.Conv2D(2, 1)(x), layers.Conv2D(3, 1)(x)])
    return layers.Add()([x, layers.Conv2D(5, 1)(x)])


def squeeze_excite(x: Any, draw: Any) -> Any:
    gate = layers.GlobalAveragePooling2D(keepdims=draw(st.booleans()))(x)
    gate = layers.Dense(2, activation="relu")(gate)
    gate = layers.Dense(depth(x), activation="sigmoid")(gate)
    if len(gate.shape) == 2:
        gate = layers.Reshape((1, 1, depth(x)))(gate)
    return layers.Multiply()([x, gate])


def separable(x: Any, draw: Any) -> Any:
    return layers.SeparableConv2D(4, 3, padding="same", depth_multiplier=2)(x)


def transpose(x: Any, draw: Any) -> Any:
    x = layers.MaxPooling2D(2, padding="same")(x)
    return layers.Conv2DTranspose(3, 3, strides=2, padding="same")(x)


def spread(x: Any, draw: Any) -> Any:
    """A map of one channel that is multiplied with all."""
    return layers.Multiply()([x, layers.Conv2D(1, 1, activation="sigmoid")(x)])


BLOCKS = [
    *(convolution, normalization, depthwise, identity_residual, projected_residual),
    *(concatenation, concatenation_added, squeeze_excite, separable, transpose, spread),
]


def head(x: Any, draw: Any) -> Any:
    if draw(st.booleans()):
        x = layers.GlobalAveragePooling2D()(x)
    else:
        x = layers.Flatten()(layers.AveragePooling2D(2, padding="same")(x))
        x = layers.Dense(4, activation="relu")(x)
    return layers.Dense(3, activation=draw(st.sampled_from([None, "softmax"])))(x)


def draw_model(draw: Any) -> Any:
    keras.backend.clear_session()
    height, width, channels = (draw(st.integers(*bounds)) for bounds in ((3, 6), (3, 6), (1, 3)))
    image = layers.Input((height, width, channels))
    x = convolution(image, draw)
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4)):
        x = block(x, draw)
    outputs = [head(x, draw)]
    if draw(st.integers(0, 4)) == 0:
        outputs.append(layers.Conv2D(2, 1)(x))
    return keras.Model(image, outputs if len(outputs) > 1 else outputs[0])


@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_random_architectures(data: st.DataObject, seed: int) -> None:
    check(draw_model(data.draw), seed)


# ---- One layer at a time ----


def shared_convolution(x: Any) -> Any:
    conv = layers.Conv2D(4, 1, activation="relu", name="shared")
    first, second = layers.Conv2D(3, 3)(x), layers.Conv2D(3, 3)(x)
    return layers.Concatenate()([conv(first), conv(second)])


def nested_twice(x: Any) -> Any:
    inner = keras.Sequential(
        [layers.Input((6, 6, 5)), layers.Conv2D(4, 3, name="c"), layers.ReLU()], name="inner"
    )
    outer_input = layers.Input((6, 6, 5))
    outer = keras.Model(outer_input, layers.Conv2D(3, 1)(inner(outer_input)), name="outer")
    a, b = layers.Conv2D(5, 1)(x), layers.Conv2D(5, 1)(x)
    return layers.Add()([outer(a), outer(b)])


def nested_of_two(x: Any) -> Any:
    left, right = layers.Input((6, 6, 4), name="left"), layers.Input((6, 6, 2), name="right")
    both = layers.Concatenate()([left, right])
    inner = keras.Model({"left": left, "right": right}, [both, layers.Conv2D(3, 1)(both)])
    made = inner({"left": layers.Conv2D(4, 1)(x), "right": layers.Conv2D(2, 1)(x)})
    return layers.Concatenate()(made)


def decoder(x: Any) -> Any:
    x = layers.Dense(2 * 2 * 6, activation="relu")(layers.Flatten()(x))
    x = layers.Reshape((2, 2, 6))(x)
    return layers.Conv2DTranspose(4, 3, strides=2)(x)


def along_time(x: Any) -> Any:
    x = layers.Reshape((-1, 5))(layers.Conv2D(5, 1, activation="relu")(x))
    x = layers.Conv1D(4, 3, padding="causal")(layers.ZeroPadding1D(1)(x))
    x = layers.SeparableConv1D(4, 3)(layers.UpSampling1D(2)(x))
    return layers.DepthwiseConv1D(3)(layers.Cropping1D(1)(layers.MaxPooling1D()(x)))


def rows_become_channels(x: Any) -> Any:
    x = layers.Reshape((6, 6 * 4))(layers.Conv2D(4, 1)(x))
    return layers.Conv1D(3, 3)(x)


def raw_operations(x: Any) -> Any:
    a, b = layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(x)
    return layers.Conv2D(3, 1)(ops.relu(a * 2.0 + b) - ops.maximum(a, b))


def constant_vector(x: Any) -> Any:
    return layers.Conv2D(3, 1)(layers.Conv2D(4, 1)(x) * np.arange(4, dtype=np.float32))


def stays(kind: Callable[[], Any]) -> Build:
    """A layer that mixes channels between two convolutions."""

    def build(x: Any) -> Any:
        x = layers.Conv2D(4, 1)(x)
        return layers.Conv2D(4, 1)(layers.Conv2D(6, 1)(kind()(x)))

    return build


def passes(kind: Callable[[], Any]) -> Build:
    """A layer that keeps channels apart, after a convolution."""

    def build(x: Any) -> Any:
        return layers.Conv2D(3, 1)(kind()(layers.Conv2D(6, 1)(x)))

    return build


def tokens(x: Any) -> Any:
    x = layers.Flatten()(layers.MaxPooling2D(3)(x))
    x = layers.Embedding(7, 5)(ops.cast(ops.clip(ops.abs(x) * 3, 0, 6), "int32"))
    return layers.Conv1D(4, 3)(x)


FREE: dict[str, tuple[Build, int]] = {
    # The number of groups of which channels may go, the head's hidden layer among them.
    "shared convolution": (shared_convolution, 3),
    "nested models, called twice": (nested_twice, 4),
    "a nested model of two inputs": (nested_of_two, 4),
    "a dense layer that becomes an image": (decoder, 3),
    "layers over time": (along_time, 4),
    "rows become channels": (rows_become_channels, 3),
    "operations": (raw_operations, 3),
    "grouped convolution": (passes(lambda: layers.Conv2D(6, 3, groups=3)), 4),
    "dilated convolution": (passes(lambda: layers.Conv2D(4, 3, dilation_rate=2)), 4),
    "padding": (passes(lambda: layers.ZeroPadding2D(1)), 3),
    "cropping": (passes(lambda: layers.Cropping2D(1)), 3),
    "upsampling": (passes(lambda: layers.UpSampling2D(2, interpolation="bilinear")), 3),
    "resizing": (passes(lambda: layers.Resizing(4, 5)), 3),
    "rescaling": (passes(lambda: layers.Rescaling(0.5)), 3),
    "dropout of whole samples": (passes(lambda: layers.Dropout(0.5, (None, 1, 1, 1))), 3),
    "spatial dropout": (passes(lambda: layers.SpatialDropout2D(0.5)), 3),
    "activation": (passes(lambda: layers.Activation("silu")), 3),
    "rows and columns swapped": (passes(lambda: layers.Permute((2, 1, 3))), 3),
    "embedding": (tokens, 3),
    # What needs all its channels: only what lies behind it may go.
    "layer normalization": (stays(layers.LayerNormalization), 3),
    "softmax": (stays(layers.Softmax), 3),
    "softmax as activation": (stays(lambda: layers.Activation("softmax")), 3),
    "dropout of a stated shape": (stays(lambda: layers.Dropout(0.5, (None, 1, 1, 4))), 3),
    "rescaling by a vector": (stays(lambda: layers.Rescaling([1.0, 2.0, 3.0, 4.0])), 3),
    "another axis first": (stays(lambda: layers.Permute((3, 2, 1))), 3),
    "normalization over another axis": (stays(lambda: layers.BatchNormalization(axis=1)), 3),
    "a constant for each channel": (constant_vector, 2),
}


@pytest.mark.parametrize("name", FREE)
def test_layer(name: str) -> None:
    build, groups = FREE[name]
    keras.backend.clear_session()
    image = layers.Input((6, 6, 2))
    x = build(image)
    x = layers.Dense(4, activation="relu")(layers.Flatten()(x))
    model = keras.Model(image, layers.Dense(3)(x))
    assert len([group for group in find_groups(trace(model)) if not group.pinned]) == groups
    pruned = check(model)
    assert pruned.count_params() < model.count_params()


def test_several_inputs_and_outputs() -> None:
    a, b = layers.Input((4, 4, 2), name="a"), layers.Input((4, 4, 3), name="b")
    x, y = layers.Conv2D(6, 1)(a), layers.Conv2D(6, 3, padding="same")(b)
    both = layers.Add()([x, y])
    model = keras.Model([a, b], {"map": layers.Conv2D(2, 1)(both), "sum": both})
    assert all(group.pinned for group in find_groups(trace(model)))
    model = keras.Model([a, b], {"map": layers.Conv2D(2, 1)(both), "x": layers.Conv2D(3, 1)(y)})
    pruned = check(model)
    assert [tensor.name for tensor in pruned.inputs] == ["a", "b"]
    assert list(pruned.output) == ["map", "x"]


def test_recurrent_layers_stay_and_are_fed_less() -> None:
    image = layers.Input((6, 3))
    x = layers.Conv1D(5, 3, activation="relu", name="before")(image)
    x = layers.Conv1D(4, 1)(layers.LSTM(4, return_sequences=True)(x))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    free = [group.makers for group in find_groups(trace(model)) if not group.pinned]
    assert ("before",) not in free and len(free) == 1
    check(model)


class Halved(layers.Conv2D):  # type: ignore[misc]
    """What only looks like a convolution."""

    def call(self, inputs: Any) -> Any:
        return super().call(inputs) / 2


def test_a_subclass_is_another_layer() -> None:
    image = layers.Input((6, 6, 2))
    x = layers.Conv2D(4, 1, name="last")(Halved(5, 1, name="halved")(layers.Conv2D(3, 1)(image)))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    free = [group.makers for group in find_groups(trace(model)) if not group.pinned]
    assert free == [("last",)]
    check(model)
