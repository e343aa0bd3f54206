"""How much each channel matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError
from edgekiln.quantize.channels.groups import ChannelGroup
from edgekiln.quantize.channels.plan import Importance, Normalization
from edgekiln.quantize.channels.tracer import Trace, WeightAxis
from edgekiln.train.quiet_keras import keras, tensorflow

Scores = npt.NDArray[np.float64]
"""float64 [channels]: one importance for each channel, NaN where the criterion has none."""

Loss = Callable[[Any, Any], Any]
"""(labels, outputs of the model) to the loss, a scalar or one value a sample."""

_BATCH = 64


def score_channels(
    trace: Trace,
    importance: Importance,
    data: tuple[Any, Any] | None = None,
    loss: str | Loss | None = None,
) -> Scores:
    """Returns the importance of every channel of a model.

    The channels of a group are summed over all layers that have a part in them:

    - ``l1``: ``sum |w|`` over the weights that make the channel, without biases.
    - ``bn_scale``: ``sum |gamma|`` over the channel's batch normalizations.
    - ``taylor``: ``sum (dL/dw * w)`` over the weights that read the channel, which is the
      derivative of the loss by a gate that multiplies the channel where it is read: the gate
      form of Molchanov et al. 2019 (arXiv:1906.10771, section 3). The square of its mean over
      a batch of 64 is averaged over the batches. The model runs as at inference.

    Args:
        trace: The model with its channels.
        importance: The criterion.
        data: Inputs and labels for ``taylor``: arrays whose first axis is samples, or lists or
            dicts of them for a model of several inputs or outputs.
        loss: For ``taylor``: a Keras loss by name or object, or a function of labels and
            outputs. None: the loss the model was compiled with.

    Raises:
        BadInputError: ``taylor`` without data or loss, or the loss is not finite.
    """
    if importance == "taylor":
        return _taylor(trace, data, loss)
    role = "makes" if importance == "l1" else "scales"
    scores = np.full(trace.channels.count, np.nan)
    for axis in _axes(trace, role):
        magnitudes = np.abs(keras.ops.convert_to_numpy(axis.variable).astype(np.float64))
        _add(trace, scores, axis, _sum_other_axes(magnitudes, axis.axis))
    return scores


def normalize(
    scores: Scores, groups: Sequence[ChannelGroup], normalization: Normalization
) -> Scores:
    """Returns scores of which those of different groups can be compared.

    ``l2``: ``s / sqrt(sum s**2)`` over the group, as Molchanov et al. 2017 do per layer
    (arXiv:1611.06440, section 2.2); ``mean``: ``s / mean(s)``. A group of zeros stays zero.
    """
    result = scores.copy()
    for group in groups:
        own = scores[group.channels]
        norms = {"l2": float(np.linalg.norm(own)), "mean": float(np.mean(own)), "none": 1.0}
        result[group.channels] = own / (norms[normalization] or 1.0)
    return result


def _axes(trace: Trace, role: str) -> Iterator[WeightAxis]:
    for layer in trace.layers:
        yield from (axis for axis in layer.axes if axis.role == role)


def _sum_other_axes(values: npt.NDArray[np.float64], axis: int) -> Scores:
    others = tuple(each for each in range(values.ndim) if each != axis)
    summed: Scores = values.sum(axis=others)
    return summed


def _add(trace: Trace, scores: Scores, axis: WeightAxis, values: Scores) -> None:
    channels = trace.channels.of_lane[axis.lanes]
    scores[channels] = np.nan_to_num(scores[channels])
    np.add.at(scores, channels, values)


def _taylor(trace: Trace, data: tuple[Any, Any] | None, loss: str | Loss | None) -> Scores:
    if data is None:
        raise BadInputError(
            "channels: importance taylor needs data",
            where=trace.model.name,
            hint="pass data=(inputs, labels), or choose l1 or bn_scale",
        )
    measure = _loss_of(trace.model, loss)
    axes = list(_axes(trace, "reads"))
    variables = [axis.variable for axis in axes]
    total, batches = np.zeros(trace.channels.count), 0
    for inputs, labels in _batches(trace.model.name, *data):
        gradients = _gradients(trace.model, measure, inputs, labels, variables)
        gates = np.zeros(trace.channels.count)
        for axis, products in zip(axes, gradients, strict=True):
            np.add.at(
                gates,
                trace.channels.of_lane[axis.lanes],
                _sum_other_axes(products, axis.axis),
            )
        total, batches = total + gates**2, batches + 1
    return total / batches


def _gradients(
    model: Any, measure: Loss, inputs: Any, labels: Any, variables: Sequence[Any]
) -> list[npt.NDArray[np.float64]]:
    """Returns ``dL/dw * w`` for each variable, which need not be trainable."""
    values = [variable.value for variable in variables]
    with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        loss = keras.ops.mean(measure(labels, model(inputs, training=False)))
    if not np.isfinite(loss):
        raise BadInputError("channels: the loss is not finite", where=model.name, got=float(loss))
    gradients = tape.gradient(loss, values, unconnected_gradients="zero")
    return [
        np.asarray(keras.ops.convert_to_numpy(gradient * value), np.float64)
        for gradient, value in zip(gradients, values, strict=True)
    ]


def _loss_of(model: Any, loss: str | Loss | None) -> Loss:
    if isinstance(loss, str):
        try:
            found: Loss = keras.losses.get(loss)
        except ValueError:
            raise BadInputError("channels: the loss is not one of Keras's", got=loss) from None
        return found
    if loss is not None:
        return loss
    if not model.compiled:
        raise BadInputError(
            "channels: importance taylor needs a loss",
            where=model.name,
            hint="pass loss=, or compile the model",
        )
    return lambda labels, outputs: model.compute_loss(y=labels, y_pred=outputs, training=False)


def _batches(where: str, inputs: Any, labels: Any) -> Iterator[tuple[Any, Any]]:
    sizes = {len(array) for array in keras.tree.flatten((inputs, labels))}
    if len(sizes) != 1 or 0 in sizes:
        raise BadInputError(
            "channels: inputs and labels must have the same number of samples, at least one",
            where=where,
            got=", ".join(map(str, sorted(sizes))) or "none",
        )
    for start in range(0, sizes.pop(), _BATCH):
        yield tuple(
            keras.tree.map_structure(
                lambda array, first=start: keras.ops.convert_to_tensor(
                    array[first : first + _BATCH]
                ),
                part,
            )
            for part in (inputs, labels)
        )
