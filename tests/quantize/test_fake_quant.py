"""Fake-quantized layers: grids, gradients, state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.quantize.fake_quant import (
    ActivationQuantizer,
    QuantizedConv2D,
    QuantizedConv2DTranspose,
    QuantizedDense,
    QuantizedDepthwiseConv2D,
)
from edgekiln.train.quiet_keras import keras, tensorflow

pytestmark = KERAS

X = np.random.default_rng(2).normal(size=(8, 5)).astype(np.float32)


def quantizer(**options: Any) -> Any:
    made = ActivationQuantizer(name="here", **options)
    made.build((None, 5))
    return made


def run(layer: Any, x: Any, **options: Any) -> np.ndarray:
    return np.asarray(layer(keras.ops.convert_to_tensor(x), **options))


RANGES = st.floats(-100, 100, width=32)
SHARED = {ranges: quantizer(ranges=ranges) for ranges in ("moving_average", "lsq")}


@pytest.mark.parametrize("ranges", SHARED)
@settings(max_examples=25)
@given(
    low=RANGES,
    width=st.floats(0.0078125, 100, width=32),
    values=st.lists(RANGES, min_size=1, max_size=20),
)
def test_values_lie_on_a_grid_with_a_zero(
    ranges: str, low: float, width: float, values: list[float]
) -> None:
    layer = SHARED[ranges]
    high = low + width
    layer.set_range(low, high)
    scale, zero_point = layer.scale, layer.zero_point
    assert -128 <= zero_point <= 127
    first, last = layer.range
    assert first <= 0 <= last
    assert first == pytest.approx(min(low, 0), abs=scale * 0.501)
    assert last == pytest.approx(max(high, 0), abs=scale * 0.501)
    got = run(layer, np.array([[0.0, *values]], np.float32))[0]
    assert got[0] == 0
    codes = got.astype(np.float64) / scale + zero_point
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    assert codes.min() > -128.5 and codes.max() < 127.5
    inside = np.clip(np.array(values), first, last)
    np.testing.assert_allclose(got[1:], inside, atol=scale * 0.501)
    np.testing.assert_allclose(run(layer, got[None])[0], got, rtol=1e-6)


def test_codes_are_those_of_the_formula() -> None:
    layer = quantizer()
    layer.set_range(-1.0, 3.0)
    assert layer.scale == np.float32(4 / 255)
    assert layer.zero_point == -64
    codes = np.clip(np.round(X / np.float32(4 / 255)) - 64, -128, 127)
    np.testing.assert_allclose(run(layer, X), (codes + 64) * np.float32(4 / 255), rtol=1e-6)


def test_sixteen_bits_are_symmetric() -> None:
    layer = quantizer()
    layer.set_range(-1.0, 3.0)
    layer.bits = 16
    assert layer.bits == 16 and layer.zero_point == 0
    assert layer.scale == pytest.approx(3 / 32767)
    np.testing.assert_allclose(run(layer, X), X.clip(-3, 3), atol=1e-4)


def test_off_until_it_has_a_range_and_when_switched_off() -> None:
    layer = quantizer()
    assert not layer.has_range
    np.testing.assert_array_equal(run(layer, X), X)
    layer.set_range(-1, 1)
    assert layer.has_range and layer.enabled
    assert run(layer, X).max() < 1.01
    layer.enabled = False
    assert not layer.enabled
    np.testing.assert_array_equal(run(layer, X), X)


def test_a_moving_average_begins_with_the_first_batch() -> None:
    layer = quantizer(momentum=0.75)
    run(layer, [[-1.0, 3.0]], training=False)
    assert not layer.has_range
    run(layer, [[-1.0, 3.0]], training=True)
    assert layer.range == pytest.approx((-1, 3), abs=0.01)
    run(layer, [[-2.0, 7.0]], training=True)
    assert layer.range == pytest.approx((-1.25, 4), abs=0.02)
    run(layer, [[-20.0, 70.0]], training=False)
    assert layer.range == pytest.approx((-1.25, 4), abs=0.02)


def test_a_range_covers_all_sites() -> None:
    layer = quantizer(sites=2, momentum=0.5)
    run(layer, [[-1.0, 0.5]], site=0, training=True)
    assert not layer.has_range
    run(layer, [[0.25, 8.0]], site=1, training=True)
    assert layer.range == pytest.approx((-1, 8), abs=0.02)
    run(layer, [[50.0]], site=-1, training=True)
    assert layer.range == pytest.approx((-1, 8), abs=0.02)


@pytest.mark.parametrize("ranges", ["moving_average", "lsq"])
def test_nonnegative_values_get_all_codes(ranges: str) -> None:
    layer = quantizer(ranges=ranges, nonnegative=True)
    layer.set_range(-0.5, 2.55)
    assert layer.zero_point == -128
    assert layer.scale == pytest.approx(0.01)
    assert len(layer.trainable_weights) == (1 if ranges == "lsq" else 0)


def test_a_fixed_range() -> None:
    layer = quantizer(ranges="fixed", fixed_range=(-1.0, 127 / 128), in_training=False)
    assert (layer.scale, layer.zero_point) == (1 / 128, 0)
    np.testing.assert_array_equal(run(layer, [[0.3, 5.0]]), [[38 / 128, 127 / 128]])
    np.testing.assert_array_equal(run(layer, X, training=True), X)
    with pytest.raises(BadInputError) as caught:
        layer.set_range(0, 1)
    assert str(caught.value).startswith("here: activation quantizer: set_range; got 0 to 1; allow")


@pytest.mark.parametrize("ends", [(1.0, -1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_ranges_that_are_none(ends: tuple[float, float]) -> None:
    with pytest.raises(BadInputError, match="two finite numbers, the lower one first"):
        quantizer().set_range(*ends)


def test_gradients_of_learned_ranges_are_lsqs() -> None:
    layer = quantizer(ranges="lsq")
    layer.set_range(-1.0, 1.55)
    scale, zero_point = layer.scale, layer.zero_point
    assert (zero_point, scale) == (-28, pytest.approx(0.01, rel=1e-5))
    x = np.array([[-2.0, -0.9, 0.0, 0.123, 1.2345, 5.0]], np.float32)
    upstream = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], np.float32)
    variable = tensorflow.Variable(x)
    with tensorflow.GradientTape() as tape:
        loss = keras.ops.sum(layer(variable) * upstream)
    log_scale, offset = (weight.value for weight in layer.trainable_weights)
    by_scale, by_offset, by_x = tape.gradient(loss, [log_scale, offset, variable])
    steps = x / scale
    # LSQ's formula 3 with LSQ+'s offset: -128 - zero_point and 127 - zero_point are the ends.
    inside = (steps > -100) & (steps < 155)
    of_scale = np.where(inside, np.round(steps) - steps, np.clip(steps, -100, 155))
    gradscale = 1 / math.sqrt(5 * 127)
    # A step of the logarithm is the scale's, relative to it.
    assert float(by_scale) == pytest.approx(
        float((of_scale * upstream).sum()) * gradscale / scale, rel=1e-4
    )
    of_zero_point = np.where(inside, 0.0, -scale)
    assert float(by_offset) == pytest.approx(
        float((of_zero_point * upstream).sum()) * 256 * gradscale / (256 * scale) ** 2, rel=1e-4
    )
    np.testing.assert_array_equal(np.asarray(by_x), np.where(inside, upstream, 0))


def test_the_gradient_scale_of_nonnegative_values_counts_all_codes() -> None:
    """LSQ, section 2.2: Q_P is 2^b - 1 for unsigned data."""
    layer = quantizer(ranges="lsq", nonnegative=True)
    layer.set_range(0.0, 2.55)
    x = tensorflow.constant([[0.0, 0.123, 1.2345, 2.0, 0.5, 5.0]])
    with tensorflow.GradientTape() as tape:
        loss = keras.ops.sum(layer(x))
    (by_scale,) = tape.gradient(loss, [weight.value for weight in layer.trainable_weights])
    steps = np.asarray(x, np.float64) / 0.01
    of_scale = np.where(steps < 255, np.round(steps) - steps, 255).sum()
    assert float(by_scale) == pytest.approx(of_scale / math.sqrt(5 * 255) / 0.01, rel=1e-3)


KERNELS = {
    "conv": (QuantizedConv2D, {"filters": 4, "kernel_size": 3}, (0, 1, 2)),
    "depthwise": (QuantizedDepthwiseConv2D, {"kernel_size": 3, "depth_multiplier": 2}, (0, 1)),
    "transposed": (QuantizedConv2DTranspose, {"filters": 4, "kernel_size": 2}, (0, 1, 3)),
    "dense": (QuantizedDense, {"units": 6}, (0,)),
}


def kernel_layer(name: str, **options: Any) -> Any:
    kind, arguments, _ = KERNELS[name]
    layer = kind(name=name, **arguments, **options)
    layer.build((None, 5, 5, 3))
    shape = layer.kernel.shape
    layer.kernel.assign(np.random.default_rng(4).normal(size=shape).astype(np.float32))
    return layer


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("weight_scale", ["max", "lsq"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_codes_times_scales(name: str, weight_scale: str, bits: int) -> None:
    layer = kernel_layer(name, weight_bits=bits, weight_scale=weight_scale)
    reduced = KERNELS[name][2]
    kernel = np.asarray(layer.kernel)
    largest = {8: 127, 4: 7}[bits]
    if weight_scale == "lsq":
        layer.fit_weight_scales()
    codes = layer.weight_codes()
    assert codes.dtype == np.int8 and abs(codes).max() == largest
    scales = np.expand_dims(layer.weight_scales().reshape(codes.max(reduced).shape), reduced)
    quantized = np.asarray(layer.quantized_kernel())
    np.testing.assert_allclose(quantized, codes * scales, rtol=1e-6)
    if weight_scale == "max":
        np.testing.assert_allclose(scales, abs(kernel).max(reduced, keepdims=True) / largest)
        assert (abs(codes).max(reduced) == largest).all()
    else:
        coarse = abs(kernel).max(reduced, keepdims=True) / largest
        rounded = np.round(kernel / coarse) * coarse
        fitted, simple = (((each - kernel) ** 2).sum() for each in (quantized, rounded))
        assert fitted <= simple * (1 + 1e-4)
    layer.weights_enabled = False
    np.testing.assert_array_equal(np.asarray(layer.quantized_kernel()), kernel)


def test_a_dead_channel_has_a_scale() -> None:
    layer = kernel_layer("dense")
    kernel = np.asarray(layer.kernel).copy()
    kernel[:, 2] = 0
    layer.kernel.assign(kernel)
    scales = layer.weight_scales()
    assert scales[2] == pytest.approx(abs(kernel).max() / 127 / 4096)
    assert (layer.weight_codes()[:, 2] == 0).all()


def gradient_of_kernel(layer: Any, wanted: list[Any]) -> list[np.ndarray]:
    with tensorflow.GradientTape() as tape:
        loss = keras.ops.sum(layer.quantized_kernel() * 2.0)
    return [np.asarray(each) for each in tape.gradient(loss, [v.value for v in wanted])]


def test_kernels_get_the_gradient_straight_through() -> None:
    layer = kernel_layer("dense", weight_bits=4)
    (gradient,) = gradient_of_kernel(layer, [layer.kernel])
    np.testing.assert_array_equal(gradient, np.full(gradient.shape, 2.0))


def test_gradients_of_learned_weight_scales_are_lsqs() -> None:
    layer = kernel_layer("dense", weight_bits=4, weight_scale="lsq")
    kernel = np.asarray(layer.kernel)
    layer.set_weight_scales(np.full(6, 0.1))
    by_kernel, by_scale = gradient_of_kernel(layer, [layer.kernel, layer.trainable_weights[2]])
    steps = kernel / np.float32(0.1)
    inside = abs(steps) < 7
    assert 0 < inside.mean() < 1
    np.testing.assert_array_equal(by_kernel, np.where(inside, 2.0, 0.0))
    of_scale = np.where(inside, np.round(steps) - steps, np.clip(steps, -7, 7))
    gradscale = 1 / math.sqrt(3 * 7)
    want = 2 * of_scale.sum(axis=0, keepdims=True) * gradscale / 0.1
    np.testing.assert_allclose(by_scale, want, rtol=1e-4)


def test_zeros_stay_zero() -> None:
    layer = kernel_layer("conv", keep_zeros=True)
    kernel = np.asarray(layer.kernel).copy()
    kernel[0] = 0
    layer.kernel.assign(kernel)
    layer.set_zeros()
    (gradient,) = gradient_of_kernel(layer, [layer.kernel])
    np.testing.assert_array_equal(gradient == 0, kernel == 0)
    layer.kernel.assign_add(np.ones(kernel.shape))
    np.testing.assert_array_equal(layer.weight_codes()[0], 0)
    np.testing.assert_array_equal(np.asarray(layer.quantized_kernel())[0], 0)


def test_a_change_of_width_fits_learned_scales_anew() -> None:
    layer = kernel_layer("dense", weight_scale="lsq")
    layer.fit_weight_scales()
    fine = layer.weight_scales()
    layer.weight_bits = 4
    assert layer.weight_bits == 4
    assert (layer.weight_scales() > 4 * fine).all()
    assert abs(layer.weight_codes()).max() == 7


def test_all_state_is_saved(tmp_path: Path) -> None:
    image = keras.Input((5, 5, 3))
    options = {"weight_bits": 4, "weight_scale": "lsq", "keep_zeros": True}
    conv = QuantizedConv2D(4, 3, name="conv", **options)
    x = ActivationQuantizer(ranges="lsq", name="learned")(conv(image))
    x = ActivationQuantizer(sites=2, name="averaged")(x, site=1)
    model = keras.Model(image, ActivationQuantizer(name="wide", bits=16)(x))
    conv.fit_weight_scales()
    for name in ("learned", "averaged", "wide"):
        model.get_layer(name).set_range(-0.75, 1.25)
    model.get_layer("averaged").enabled = False
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert not loaded.get_layer("averaged").enabled
    assert loaded.get_layer("wide").bits == 16
    np.testing.assert_array_equal(loaded.get_layer("conv").weight_codes(), conv.weight_codes())
    images = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def test_options_that_make_no_sense() -> None:
    with pytest.raises(BadInputError, match=r"^here: bits; got 4; allowed: 8 or 16$"):
        quantizer(bits=4)
    with pytest.raises(
        BadInputError, match=r"^here: activation quantizer: ranges; got 'fixed' with"
    ):
        quantizer(ranges="fixed")
    with pytest.raises(BadInputError, match=r"^d: bits; got 2; allowed: 4 or 8$"):
        QuantizedDense(3, name="d", weight_bits=2)
    with pytest.raises(BadInputError, match=r"^d: weight_scale; got min; allowed: 'max' or 'lsq'$"):
        QuantizedDense(3, name="d", weight_scale="min")
    with pytest.raises(BadInputError, match=r"^dense: set_weight_scales; got weight_scale 'max'"):
        kernel_layer("dense").set_weight_scales(np.ones(6))
