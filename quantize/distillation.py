"""Knowledge distillation: a small, pruned or quantized model learns from the float model.

Hinton et al., "Distilling the knowledge in a neural network" (arXiv:1503.02531), section 2: with
both models' logits divided by a temperature T, the student learns the teacher's probabilities, the
small ones among them, which tell what a class is like. The loss is

    alpha * T^2 * KL(teacher_T || student_T) + (1 - alpha) * loss(labels, student)

where T^2 keeps the first term's gradient of one size whatever T is. For a model that ends in a
softmax, the logarithm of its output serves as logits: they differ by a constant for each sample,
which the softmax takes away again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekiln.errors import BadInputError
from edgekiln.quantize.keras_graph import functional_model
from edgekiln.train.quiet_keras import keras

_ops = keras.ops


def distill(
    student: Any,
    teacher: Any,
    temperature: float = 4.0,
    alpha: float = 0.5,
    from_logits: bool = False,
) -> Any:
    """Returns a model to compile and fit, which trains ``student`` to be like ``teacher``.

    It has the layers of ``student`` itself: what it learns ``student`` has learned, and callbacks
    find the layers under their names. Compile it with the loss for the labels, as usual. It is for
    training only; save ``student``.

    Args:
        student: The functional or Sequential model to train.
        teacher: A trained model of the same inputs and output; it stays as it is.
        temperature: What logits are divided by, above 0; 1 leaves probabilities as they are.
        alpha: Share of the teacher in the loss, in [0, 1].
        from_logits: Whether the models give logits, not probabilities.

    Raises:
        BadInputError: A value is out of its range, or the models do not go together.
        BadModelError: The student is subclassed.
    """
    if not (0 < temperature < float("inf")):
        raise BadInputError("distill: temperature", got=temperature, allowed="above 0")
    if not 0 <= alpha <= 1:
        raise BadInputError("distill: alpha", got=alpha, allowed="0 to 1")
    shapes = [_shapes(model) for model in (student, teacher)]
    if shapes[0] != shapes[1] or len(student.outputs) != 1:
        raise BadInputError(
            "distill: student and teacher do not go together",
            got=f"'{student.name}' {shapes[0]} and '{teacher.name}' {shapes[1]}",
            allowed="the same inputs and one output",
        )
    return _Distilled(student, teacher, float(temperature), float(alpha), from_logits)


def _shapes(model: Any) -> str:
    inputs, outputs = (
        ", ".join(str(tuple(tensor.shape[1:])) for tensor in tensors)
        for tensors in (model.inputs, model.outputs)
    )
    return f"{inputs} -> {outputs}"


def soft_divergence(teacher: Any, student: Any, temperature: float, from_logits: bool) -> Any:
    """Returns KL(teacher_T || student_T) of each sample.

    Args:
        teacher: float32 [N, ..., classes], probabilities, or logits.
        student: Likewise.
        temperature: T.
        from_logits: Which of the two they are.

    Returns:
        float32 [N, ...].
    """
    wanted, got = (
        _ops.log_softmax(_logits(output, from_logits) / temperature)
        for output in (teacher, student)
    )
    return _ops.sum(_ops.exp(wanted) * (wanted - got), axis=-1)


def _logits(output: Any, from_logits: bool) -> Any:
    if from_logits:
        return output
    return _ops.log(_ops.maximum(output, keras.config.epsilon()))


class _Distilled(keras.Model):  # type: ignore[misc]  # Keras has no types
    """The student's graph with another loss."""

    def __init__(
        self, student: Any, teacher: Any, temperature: float, alpha: float, from_logits: bool
    ) -> None:
        graph = functional_model(student, student.name)
        super().__init__(graph.input, graph.output, name=student.name)
        # Inside a function Keras does not see it: it is no layer of this model.
        self._ask_teacher: Callable[[Any], Any] = lambda x: teacher(x, training=False)
        self._temperature, self._alpha = temperature, alpha
        self._from_logits = from_logits

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss of the labels and that of the teacher, weighed."""
        labels = super().compute_loss(x, y, y_pred, sample_weight, training)
        wanted = _ops.stop_gradient(self._ask_teacher(x))
        divergence = soft_divergence(wanted, y_pred, self._temperature, self._from_logits)
        if sample_weight is not None:
            divergence = divergence * sample_weight
        soft = self._temperature**2 * _ops.mean(divergence)
        return self._alpha * soft + (1.0 - self._alpha) * labels
