"""Knowledge distillation from a float model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError
from edgekiln.quantize.distillation import distill, soft_divergence
from edgekiln.quantize.qat import QatConfig, quantize_model, weight_quantizers
from edgekiln.train.quiet_keras import keras, tensorflow

pytestmark = KERAS

layers = keras.layers
X = np.random.default_rng(3).normal(size=(64, 6)).astype(np.float32)
Y = np.arange(64) % 3


def perceptron(name: str, seed: int, activation: str = "softmax") -> Any:
    keras.utils.set_random_seed(seed)
    hidden = layers.Dense(8, activation="relu", name="hidden")
    head = layers.Dense(3, activation=activation, name="head")
    return keras.Sequential([layers.Input((6,)), hidden, head], name=name)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def divergence(teacher: np.ndarray, student: np.ndarray, temperature: float) -> np.ndarray:
    """The definition, in float64."""
    p, q = (softmax(np.log(each.astype(np.float64)) / temperature) for each in (teacher, student))
    return np.asarray((p * np.log(p / q)).sum(axis=-1))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_divergence_is_that_of_the_softened_outputs(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32) * 3
    teacher, student = softmax(logits)
    want = divergence(teacher, student, temperature)
    for inputs, from_logits in (((teacher, student), False), (tuple(logits), True)):
        got = soft_divergence(*map(keras.ops.convert_to_tensor, inputs), temperature, from_logits)
        np.testing.assert_allclose(np.asarray(got), want, rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_is_the_papers(alpha: float) -> None:
    student, teacher = perceptron("student", 1), perceptron("teacher", 2)
    model = distill(student, teacher, temperature=3.0, alpha=alpha)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    p, q = (np.asarray(each(X)) for each in (teacher, student))
    labels = -np.log(q[np.arange(64), Y])
    soft = 9 * divergence(p, q, 3.0)
    got = model.evaluate(X, Y, batch_size=64, verbose=0)
    assert got == pytest.approx((1 - alpha) * labels.mean() + alpha * soft.mean(), rel=1e-4)
    weights = np.linspace(0, 2, 64).astype(np.float32)
    got = model.evaluate(X, Y, batch_size=64, verbose=0, sample_weight=weights)
    want = ((1 - alpha) * labels + alpha * soft) * weights
    assert got == pytest.approx(want.mean(), rel=1e-4)


def test_a_quantized_student_learns_from_its_teacher() -> None:
    teacher = perceptron("teacher", 2)
    student = quantize_model(perceptron("student", 1), QatConfig(weight_bits=4), X)
    model = distill(student, teacher, temperature=2.0, alpha=1.0)
    assert [each.name for each in model.layers] == [each.name for each in student.layers]
    assert model.count_params() == student.count_params()
    before = [np.asarray(each) for each in teacher.weights]

    def distance() -> float:
        p, q = (np.asarray(each(X, training=False)) for each in (teacher, student))
        return float(np.abs(p - q).mean())

    far = distance()
    model.compile(keras.optimizers.Adam(0.04), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(X, np.zeros(64, np.int64), batch_size=32, epochs=15, verbose=0)
    # The labels are nonsense, and with alpha 1 they have no say.
    assert distance() < far / 3
    for one, other in zip(before, teacher.weights, strict=True):
        np.testing.assert_array_equal(one, np.asarray(other))
    assert set(weight_quantizers(student)) == {"hidden", "head"}


def test_only_the_student_has_a_gradient() -> None:
    student, teacher = perceptron("student", 1), perceptron("teacher", 2)
    model = distill(student, teacher, alpha=1.0)
    model.compile("sgd", "sparse_categorical_crossentropy")
    with tensorflow.GradientTape() as tape:
        loss = model.compute_loss(X, Y, model(X, training=True))
    of_student = student.trainable_weights[0].value
    of_teacher = teacher.trainable_weights[0].value
    gradients = tape.gradient(loss, [of_student, of_teacher])
    assert np.abs(np.asarray(gradients[0])).max() > 0 and gradients[1] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "distill: temperature; got 0.0; allowed: above 0"),
        ({"temperature": float("nan")}, "distill: temperature; got nan; allowed: above 0"),
        ({"alpha": 1.5}, "distill: alpha; got 1.5; allowed: 0 to 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        distill(perceptron("student", 1), perceptron("teacher", 2), **options)
    assert str(caught.value) == message


def test_models_that_do_not_go_together() -> None:
    other = keras.Sequential([layers.Input((6,)), layers.Dense(4)], name="other")
    with pytest.raises(BadInputError) as caught:
        distill(perceptron("student", 1), other)
    assert str(caught.value) == (
        "distill: student and teacher do not go together; got 'student' (6,) -> (3,) and "
        "'other' (6,) -> (4,); allowed: the same inputs and one output"
    )
