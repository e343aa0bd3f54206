"""Float Keras models rewritten to fake-quantized ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError, BadModelError, UnsupportedOpError
from edgekiln.quantize.fake_quant import QuantizedDense
from edgekiln.quantize.qat import (
    QatConfig,
    activation_quantizers,
    calibrate_ranges,
    observation_model,
    observing,
    quantize_model,
    weight_quantizers,
)
from edgekiln.train.quiet_keras import keras, tensorflow

pytestmark = KERAS

layers = keras.layers
IMAGES = np.random.default_rng(3).normal(size=(24, 6, 6, 3)).astype(np.float32)
LABELS = np.arange(24) % 3


def run(model: Any, inputs: Any) -> Any:
    """Computes without the seconds that compiling the model takes."""
    return keras.tree.map_structure(np.asarray, model(inputs, training=False))


def compile_model(model: Any, optimizer: Any, traced: bool = False) -> None:
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, run_eagerly=not traced, jit_compile=False)


def image_model(body: Callable[[Any], Any], shape: tuple[int, ...] = (6, 6, 3)) -> Any:
    keras.utils.set_random_seed(5)
    image = layers.Input(shape, name="image")
    return keras.Model(image, body(image), name="small")


def conv(name: str, **options: Any) -> Any:
    return layers.Conv2D(4, 3, padding="same", name=name, **options)


def residual_body(x: Any) -> Any:
    x = layers.ReLU(6.0, name="relu")(layers.BatchNormalization()(conv("first")(x)))
    y = conv("second", activation="relu")(x)
    x = layers.ReLU(name="relu2")(layers.Add(name="add")([x, y]))
    x = layers.MaxPooling2D(2)(layers.Dropout(0.2)(x))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return layers.Dense(3, activation="softmax", name="classes")(x)


@pytest.fixture(scope="module")
def residual() -> Any:
    return image_model(residual_body)


def test_what_is_quantized(residual: Any) -> None:
    model = quantize_model(residual, QatConfig(), IMAGES)
    assert list(weight_quantizers(model)) == ["first", "second", "classes"]
    found = activation_quantizers(model)
    # One range for each op that TensorFlow Lite fuses; pooling and dropout keep theirs.
    assert list(found) == [
        "image",
        "first",
        "second",
        "add",
        "mean",
        "classes",
        "classes_softmax",
    ]
    assert [each.nonnegative for each in found.values()] == [
        False,
        True,
        True,
        True,
        True,
        False,
        True,
    ]
    assert found["classes_softmax"].fixed_range == (0, 255 / 256)
    assert found["first"].zero_point == -128
    low, high = found["image"].range
    assert low == pytest.approx(IMAGES.min(), abs=0.02)
    assert high == pytest.approx(IMAGES.max(), abs=0.02)


def test_outputs_are_near_and_float_ones_when_observed(residual: Any) -> None:
    model = quantize_model(residual, QatConfig(), IMAGES)
    want = run(residual, IMAGES)
    got = run(model, IMAGES)
    assert 0 < np.abs(got - want).max() < 0.02
    np.testing.assert_array_equal(got * 256, np.round(got * 256))
    with observing(model):
        np.testing.assert_allclose(run(model, IMAGES), want, atol=1e-6)
        activations = run(observation_model(model), IMAGES)
    np.testing.assert_array_equal(run(model, IMAGES), got)
    assert activations.keys() == activation_quantizers(model).keys()
    np.testing.assert_array_equal(activations["image"][0], IMAGES)
    by_layer = keras.Model(residual.input, residual.get_layer("relu").output)
    np.testing.assert_allclose(activations["first"][0], run(by_layer, IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        QatConfig(),
        QatConfig(weight_bits=4, weight_scale="lsq", ranges="lsq"),
        QatConfig(weight_bits=4, layer_weight_bits={"first": 8, "classes": 8}),
    ],
    ids=["8 bits", "4 bits lsq", "mixed"],
)
def test_trains_saves_and_loads(residual: Any, config: QatConfig, tmp_path: Path) -> None:
    calibration = IMAGES if config.ranges == "lsq" else None
    model = quantize_model(residual, config, calibration)
    bits = {name: each.weight_bits for name, each in weight_quantizers(model).items()}
    other = config.weight_bits
    assert bits == {"first": other, "second": other, "classes": other} | dict(
        config.layer_weight_bits
    )
    keras.utils.set_random_seed(1)
    compile_model(model, keras.optimizers.Adam(1e-2), traced=config == QatConfig())
    before = {name: each.weight_scales() for name, each in weight_quantizers(model).items()}
    losses = model.fit(IMAGES, LABELS, batch_size=8, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all(each.has_range for each in activation_quantizers(model).values())
    for name, each in weight_quantizers(model).items():
        assert (each.weight_scales() != before[name]).any()
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_array_equal(run(loaded, IMAGES), run(model, IMAGES))
    assert list(activation_quantizers(loaded)) == list(activation_quantizers(model))
    # What was loaded goes on learning.
    compile_model(loaded, "sgd")
    assert np.isfinite(loaded.fit(IMAGES, LABELS, verbose=0).history["loss"][0])


def test_the_loss_sees_the_logits_of_the_last_softmax() -> None:
    model = image_model(
        lambda x: layers.Dense(3, activation="softmax", name="d")(layers.Flatten()(x))
    )
    model.get_layer("d").kernel.assign_add(np.random.default_rng(0).normal(size=(108, 3)) * 30)
    # Only the range of the logits matters: the probabilities are 0 and 1 in 8 bits.
    quantized = quantize_model(model, QatConfig(), IMAGES)
    compile_model(quantized, "sgd")
    with tensorflow.GradientTape() as tape:
        output = quantized(IMAGES, training=True)
        loss = quantized.compute_loss(IMAGES, LABELS, output)
    assert float(loss) > 20
    kernel = quantized.get_layer("d").kernel
    assert np.abs(np.asarray(tape.gradient(loss, kernel.value))).max() > 0.01


def branches(x: Any) -> Any:
    a = conv("a", activation="relu")(x)
    b = conv("b", activation="sigmoid")(a)
    c = layers.Concatenate(name="joined")([a, conv("c")(a), b])
    return layers.Concatenate(name="again")(
        [layers.AveragePooling2D(2)(c), conv("d", strides=2)(c)]
    )


def test_branches_of_a_concatenation_share_its_range() -> None:
    model = quantize_model(image_model(branches), QatConfig(), IMAGES)
    found = activation_quantizers(model)
    assert set(found) == {"image", "b", "b_sigmoid", "again"}
    shared = found["again"]
    # a, c, b after its own range, and d; the average is rounded again, and no site.
    assert shared.sites == 4 and not shared.nonnegative
    observed = run(observation_model(model), IMAGES)
    assert [each.shape[-1] for each in observed["again"]] == [4, 4, 4, 4]
    with observing(model):
        observed = run(observation_model(model), IMAGES)
    low, high = shared.range
    assert low == pytest.approx(min(each.min() for each in observed["again"]), abs=0.03)
    assert high == pytest.approx(max(each.max() for each in observed["again"]), abs=0.03)
    output = run(model, IMAGES)
    steps = output / shared.scale
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


class Block(layers.Layer):  # type: ignore[misc]
    """A layer of one's own, made of Keras's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.conv, self.norm = conv("inner"), layers.BatchNormalization()

    def call(self, x: Any) -> Any:
        return keras.ops.relu(self.norm(self.conv(x)) + x)


class Own(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return tensorflow.sort(x)


def test_a_layer_made_of_layers_is_taken_apart() -> None:
    float_model = image_model(lambda x: Block(name="block")(conv("stem")(conv("stem0")(x))))
    model = quantize_model(float_model, QatConfig(), IMAGES)
    assert list(weight_quantizers(model)) == ["stem0", "stem", "block_inner"]
    *names, last = activation_quantizers(model)
    assert names == ["image", "stem0", "stem", "block_inner"]
    assert re.fullmatch(r"block_add(_\d+)?", last)
    with observing(model):
        np.testing.assert_allclose(run(model, IMAGES), run(float_model, IMAGES), atol=1e-5)


def every_activation(x: Any) -> Any:
    x = conv("silu", activation="silu")(x)
    x = layers.LeakyReLU(0.1)(conv("c2")(x))
    x = layers.ReLU(negative_slope=0.2)(conv("c3")(x))
    x = layers.Activation("tanh")(conv("c4")(x))
    return layers.Softmax()(layers.Multiply()([x, x]))


BODIES: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "activations": (every_activation, (6, 6, 3)),
    "one dimension": (
        lambda x: layers.Dense(2)(
            layers.GlobalAveragePooling1D()(
                layers.ReLU()(
                    layers.BatchNormalization()(
                        layers.DepthwiseConv1D(3, activation="tanh")(
                            layers.Conv1D(4, 3, dilation_rate=2, padding="causal")(x)
                        )
                    )
                )
            )
        ),
        (9, 2),
    ),
    "separable": (
        lambda x: layers.SeparableConv2D(4, 3, strides=2, depth_multiplier=2, activation="relu")(x),
        (6, 6, 3),
    ),
    "moves": (
        lambda x: layers.Permute((2, 1, 3))(
            layers.UpSampling2D(2)(layers.ZeroPadding2D(1)(layers.Cropping2D(1)(conv("c")(x))))
        ),
        (6, 6, 3),
    ),
    "bilinear": (lambda x: layers.UpSampling2D(2, interpolation="bilinear")(x), (6, 6, 3)),
    "norms": (
        lambda x: layers.Dense(2)(
            layers.BatchNormalization()(
                layers.Flatten()(layers.ReLU()(layers.BatchNormalization()(x)))
            )
        ),
        (6, 6, 3),
    ),
    "sums": (lambda x: layers.Subtract()([layers.Add()([x, x, x]), x]), (6, 6, 3)),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_float_model_is_kept(name: str) -> None:
    body, shape = BODIES[name]
    float_model = image_model(body, shape)
    generator = np.random.default_rng(5)
    for layer in float_model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.3, 1.2, w.shape) for w in layer.weights])
    inputs = generator.normal(size=(8, *shape)).astype(np.float32)
    model = quantize_model(float_model, QatConfig(), inputs)
    want = run(float_model, inputs)
    with observing(model):
        np.testing.assert_allclose(run(model, inputs), want, rtol=1e-4, atol=1e-4)
    error = np.abs(run(model, inputs) - want).max()
    assert 0 < error < 0.05 * np.abs(want).max()


def test_several_inputs_and_outputs_shared_and_nested_layers() -> None:
    tower = keras.Sequential([layers.Input((6, 6, 3)), conv("c", activation="relu")], name="tower")
    one, two = layers.Input((6, 6, 3), name="one"), layers.Input((6, 6, 3), name="two")
    first, second = tower(one), tower(two)
    outputs = {"sum": layers.Add(name="sum")([first, second]), "first": first}
    float_model = keras.Model({"one": one, "two": two}, outputs)
    inputs = {"one": IMAGES, "two": IMAGES[::-1]}
    config = QatConfig(layer_weight_bits={"tower/c": 4})
    model = quantize_model(float_model, config, inputs)
    assert {n: w.weight_bits for n, w in weight_quantizers(model).items()} == {"tower_c": 4}
    assert len(activation_quantizers(model)) == 5
    with observing(model):
        got, want = run(model, inputs), run(float_model, inputs)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def test_zeros_of_a_pruned_model_stay_zero(residual: Any) -> None:
    model = keras.models.clone_model(residual)
    kernel = np.asarray(residual.get_layer("second").kernel).copy()
    kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
    model.get_layer("second").kernel.assign(kernel)
    quantized = quantize_model(model, QatConfig(), IMAGES)
    assert [w.keep_zeros for w in weight_quantizers(quantized).values()] == [False, True, False]
    compile_model(quantized, keras.optimizers.Adam(1e-2))
    quantized.fit(IMAGES, LABELS, batch_size=8, epochs=2, verbose=0)
    assert (quantized.get_layer("second").weight_codes()[kernel == 0] == 0).all()
    assert (quantized.get_layer("second").weight_codes()[kernel != 0] != 0).mean() > 0.9
    free = quantize_model(model, QatConfig(keep_zeros=False))
    assert not any(each.keep_zeros for each in weight_quantizers(free).values())


def test_excluded_layers_stay_float(residual: Any) -> None:
    model = quantize_model(residual, QatConfig(exclude=("second",)), IMAGES)
    assert list(weight_quantizers(model)) == ["first", "classes"]
    assert "second" not in activation_quantizers(model)


def test_trains_under_a_strategy(residual: Any) -> None:
    strategy = tensorflow.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = quantize_model(residual, QatConfig())
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    losses = model.fit(IMAGES, LABELS, batch_size=8, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert all(each.has_range for each in activation_quantizers(model).values())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x: Own(name="own")(x), "layer 'own' (Own): has no fake-quantized form; got code; "),
        (
            lambda x: conv("c", activation="gelu")(x),
            "layer 'c' (Conv2D): has no fake-quantized form; got activation gelu; allowed: ",
        ),
        (
            lambda x: layers.ReLU(3.0, name="r")(x),
            "layer 'r' (ReLU): has no fake-quantized form; got max_value 3.0, ",
        ),
        (
            lambda x: layers.LayerNormalization(name="n")(x),
            "layer 'n' (LayerNormalization): has no fake-quantized form; replace the layer",
        ),
        (
            lambda x: keras.Sequential(
                [layers.Input((6, 6, 3)), layers.UnitNormalization(name="u")], name="part"
            )(x),
            "layer 'part/u' (UnitNormalization): has no fake-quantized form; replace the layer",
        ),
        (
            lambda x: keras.ops.exp(x),
            "layer 'exp' (Exp): has no fake-quantized form; replace the layer",
        ),
        (
            lambda x: layers.Resizing(3, 3, interpolation="bicubic", name="r")(x),
            "layer 'r' (Resizing): has no fake-quantized form; got interpolation bicubic; allowed",
        ),
        (lambda x: x + 1.0, "layer 'add' (Add): has no fake-quantized form; got an argument that "),
        (
            lambda x: layers.Softmax(axis=1, name="s")(x),
            "layer 's' (Softmax): has no fake-quantized form; got axis 1; allowed: the last axis",
        ),
        (
            lambda x: layers.BatchNormalization(axis=1, name="b")(x),
            "layer 'b' (BatchNormalization): has no fake-quantized form; got axis 1; allowed",
        ),
    ],
)
def test_a_layer_without_an_int8_form_is_named(body: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        quantize_model(image_model(body), QatConfig())
    assert re.sub(r"(add|exp)_\d+", r"\1", str(caught.value)).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_subclassed_model_is_refused() -> None:
    with pytest.raises(BadModelError, match="is not a functional or Sequential model"):
        quantize_model(keras.Model(), QatConfig())


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (IMAGES[:0], "do not fit the model's inputs; got samples of shape (6, 6, 3); allowed: at "),
        (IMAGES[..., 0], "do not fit the model's inputs; got samples of shape (6, 6); allowed: at"),
        ([IMAGES, IMAGES], "do not fit the model's inputs; got samples of shape (6, 6, 3), (6, "),
        (np.where(IMAGES > 3, np.nan, IMAGES), "hold NaN or infinity; got "),
    ],
)
def test_calibration_data_that_cannot_be_used(residual: Any, samples: Any, message: str) -> None:
    model = quantize_model(residual, QatConfig())
    with pytest.raises(BadInputError) as caught:
        calibrate_ranges(model, samples)
    assert str(caught.value).startswith(f"model 'small': the calibration data {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 2}, "quantize: weight_bits; got 2; allowed: 8 or 4"),
        ({"activation_bits": 4}, "quantize: activation_bits; got 4; allowed: 8 or 16"),
        ({"ranges": "max"}, "quantize: ranges; got max; allowed: moving_average or lsq"),
        ({"weight_scale": "mse"}, "quantize: weight_scale; got mse; allowed: max or lsq"),
        ({"momentum": 1.0}, "quantize: momentum; got 1.0; allowed: [0, 1)"),
        ({"layer_weight_bits": {"a": 3}}, "quantize: layer_weight_bits of 'a'; got 3; allowed: 8 "),
    ],
)
def test_configurations_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        QatConfig(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("option", ["exclude", "layer_weight_bits"])
def test_names_of_no_layer(residual: Any, option: str) -> None:
    given: Sequence[str] | dict[str, int] = ("relu",) if option == "exclude" else {"relu": 4}
    with pytest.raises(BadInputError) as caught:
        quantize_model(residual, QatConfig(**{option: given}))  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"model 'small': quantize: {option} names no layer with weights; got relu; "
        "allowed: classes, first, second"
    )


def test_quantized_layers_are_keras_layers(residual: Any) -> None:
    model = quantize_model(residual, QatConfig())
    assert isinstance(model.get_layer("first"), layers.Conv2D)
    assert isinstance(model.get_layer("classes"), QuantizedDense)
    assert isinstance(model.get_layer("classes"), layers.Dense)


@pytest.mark.parametrize("half", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_mixed_precision_is_quantized_in_float32(residual: Any, half: str) -> None:
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(half)
        model = image_model(residual_body)
        model.set_weights(residual.get_weights())
        quantized = quantize_model(model, QatConfig(weight_bits=4, ranges="lsq"), IMAGES)
        assert keras.config.dtype_policy().name == half
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.dtype_policy.name for layer in quantized.layers} == {"float32"}
    assert model.get_layer("first").dtype_policy.name == half
    wanted = quantize_model(residual, QatConfig(weight_bits=4, ranges="lsq"), IMAGES)
    np.testing.assert_array_equal(run(quantized, IMAGES), run(wanted, IMAGES))
    compile_model(quantized, keras.optimizers.SGD(0.01))
    quantized.fit(IMAGES, LABELS, epochs=1, verbose=0)
