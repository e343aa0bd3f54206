"""Models that are kept: small, the same bytes for the same model, and safe to read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadModelError
from edgekiln.train.kept import kept_file, pack_model, round_model, unpack_model
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS
IMAGES = np.random.default_rng(3).normal(size=(4, 8, 8, 1)).astype(np.float32)


def model() -> object:
    keras.utils.set_random_seed(1)
    image = keras.layers.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, use_bias=False)(image)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(x))
    return keras.Model(image, x, name="small")


def test_a_kept_model_is_the_model_in_half_precision() -> None:
    before = model()
    data = pack_model(before)
    assert data == pack_model(before)
    after = unpack_model(data, "small")
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    for kept, original in zip(after.get_weights(), before.get_weights(), strict=True):
        assert kept.dtype == np.float32
        half = original.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(kept, half if original.size >= 1024 else original)
    np.testing.assert_allclose(
        after.predict(IMAGES, verbose=0), before.predict(IMAGES, verbose=0), atol=2e-3
    )
    assert len(data) < 3 * before.count_params()


def test_a_rounded_model_is_kept_as_it_is() -> None:
    rounded = round_model(model())
    for again, once in zip(round_model(rounded).get_weights(), rounded.get_weights(), strict=True):
        np.testing.assert_array_equal(again, once)


def test_what_is_no_kept_model_is_refused() -> None:
    lambdas = keras.Sequential([keras.layers.Input((2,)), keras.layers.Lambda(lambda x: x)])
    infinite = model()
    infinite.set_weights([np.full_like(value, np.inf) for value in infinite.get_weights()])
    pickled = io.BytesIO()
    np.savez(pickled, layers=np.array([object()]))
    for data in (b"", b"PK", pickled.getvalue(), pack_model(lambdas), pack_model(infinite)):
        with pytest.raises(BadModelError, match=r"^x: (is not a kept model|a weight is not fin)"):
            unpack_model(data, "x")


def test_nothing_is_kept_of_what_is_trained_in_a_minute() -> None:
    assert kept_file("digits_cnn") is None
