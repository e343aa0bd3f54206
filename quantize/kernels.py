"""The kernels of a Keras model that pruning and clustering work on."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.quantize.keras_graph import is_from_keras
from edgekiln.train.quiet_keras import keras

Verb: TypeAlias = Literal["prune", "cluster"]

_layers = keras.layers
_DENSE = (_layers.Dense,)
_CONVOLUTIONS = (_layers.Conv1D, _layers.Conv2D, _layers.Conv3D)
_TRANSPOSED = (_layers.Conv1DTranspose, _layers.Conv2DTranspose, _layers.Conv3DTranspose)
_SEPARABLE = (_layers.SeparableConv1D, _layers.SeparableConv2D)
_SUPPORTED = "Dense, EinsumDense, Conv, ConvTranspose or SeparableConv"


@dataclass(frozen=True)
class Kernel:
    """The weights of a layer that make nearly all of its size.

    Attributes:
        name: The layer's name; ``<outer>/<layer>`` in a nested model, and in a layer from outside
            Keras that holds others.
        variable: The Keras variable that holds them.
        input_axis: The axis that the layer sums over, the last one where it has several.
    """

    name: str
    variable: Any
    input_axis: int

    @property
    def inputs(self) -> int:
        """Length of the input axis."""
        return int(self.variable.shape[self.input_axis])

    @property
    def trainable(self) -> bool:
        """Whether training changes the kernel."""
        return bool(self.variable.trainable)

    def read(self) -> npt.NDArray[np.float32]:
        """Returns a copy of the weights."""
        return np.array(keras.ops.convert_to_numpy(self.variable), dtype=np.float32)

    def read_finite(self) -> npt.NDArray[np.float32]:
        """Returns a copy of the weights.

        Raises:
            CheckFailedError: One of them is not a finite number.
        """
        weights = self.read()
        if not np.isfinite(weights).all():
            raise CheckFailedError(
                "the training diverged: weights are not finite",
                where=self.name,
                hint="lower the learning rate",
            )
        return weights


def find_kernels(model: Any) -> dict[str, Kernel]:
    """Returns the kernels of a model, by name, in the order of its layers.

    Kernels are those of Dense, EinsumDense, Conv1D to Conv3D and their transposed forms, and
    the pointwise part of SeparableConv1D and 2D. A layer that is shared counts once. Depthwise
    kernels do not: they hold few weights, and each of them matters. Nor do those of layers
    inside other layers of Keras (MultiHeadAttention, TimeDistributed, Bidirectional), of
    recurrent layers, of Embedding, and of EinsumDense without an axis to sum over.

    Raises:
        BadInputError: A layer is not built, or its weights are not plain floats any more.
    """
    found: dict[str, Kernel] = {}
    for kernel in _walk(model, "", set()):
        name, number = kernel.name, 1
        while name in found:
            # Layers inside a layer may bear one name.
            number += 1
            name = f"{kernel.name}_{number}"
        found[name] = replace(kernel, name=name)
    return found


def select_kernels(
    model: Any,
    verb: Verb,
    *,
    layers: Collection[str] | None = None,
    exclude: Collection[str] = (),
) -> dict[str, Kernel]:
    """Returns those kernels of a model that training changes, less the excluded ones.

    Args:
        model: Keras model, built.
        verb: What is to be done with them, for messages.
        layers: Names of layers to take; None for all.
        exclude: Names of layers not to take.

    Raises:
        BadInputError: A named layer has no kernel, or no kernel is left.
    """
    what = f"{verb.removesuffix('e')}ing"
    found = find_kernels(model)
    for purpose, names in (("use", layers or ()), ("exclude", exclude)):
        if isinstance(names, str):
            raise BadInputError(f"{what}: layers to {purpose} are given as a list", got=repr(names))
        unknown = set(names) - found.keys()
        if unknown:
            raise BadInputError(
                f"{what}: no such layer to {purpose}",
                where=model.name,
                got=", ".join(sorted(unknown)),
                allowed=", ".join(found),
            )
    named = {
        name: kernel
        for name, kernel in found.items()
        if name not in exclude and (layers is None or name in layers)
    }
    selected = {name: kernel for name, kernel in named.items() if kernel.trainable}
    if not selected:
        raise BadInputError(
            f"{what}: no layer to {verb}",
            where=model.name,
            got=f"{len(found)} layers with a kernel, {len(found) - len(named)} of them excluded, "
            f"{len(named)} frozen",
            allowed=f"at least one trainable {_SUPPORTED} layer",
        )
    return selected


def _walk(outer: Any, prefix: str, seen: set[int]) -> Iterator[Kernel]:
    for layer in _layers_in(outer):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        located = _locate(layer)
        if located is None and (isinstance(layer, keras.Model) or not is_from_keras(layer)):
            yield from _walk(layer, f"{prefix}{layer.name}/", seen)
        if located is not None:
            attribute, axis = located
            name = prefix + layer.name
            yield Kernel(name, _variable(layer, attribute, name), axis)


def _layers_in(outer: Any) -> Iterator[Any]:
    """Yields the layers that a model, or a layer from outside Keras, directly holds."""
    if isinstance(outer, keras.Model):
        yield from outer.layers
    else:
        yield from outer._flatten_layers(include_self=False, recursive=False)


def _locate(layer: Any) -> tuple[str, int] | None:
    """Returns the name of a layer's kernel and its input axis; None where it has none."""
    if isinstance(layer, _DENSE):
        return "kernel", 0
    if isinstance(layer, _CONVOLUTIONS):
        return "kernel", layer.rank
    if isinstance(layer, _TRANSPOSED):
        return "kernel", layer.rank + 1
    if isinstance(layer, _SEPARABLE):
        return "pointwise_kernel", layer.rank
    if isinstance(layer, _layers.EinsumDense):
        axis = _summed_axis(layer.equation)
        return None if axis is None else ("kernel", axis)
    return None


def _summed_axis(equation: str) -> int | None:
    """Returns the last axis of an einsum's second operand that is missing in its result."""
    operands, result = equation.split("->")
    kernel = operands.split(",")[1]
    summed = [axis for axis, letter in enumerate(kernel) if letter not in result]
    return summed[-1] if summed else None


def _variable(layer: Any, attribute: str, name: str) -> Any:
    if not layer.built:
        raise BadInputError(
            "the layer is not built", where=name, hint="give the model an Input, or call it once"
        )
    variable = getattr(layer, attribute)
    plain = getattr(layer, "quantization_mode", None) is None
    if not (plain and isinstance(variable, keras.Variable)):
        raise BadInputError(
            "the layer's kernel is not a plain float variable",
            where=name,
            got="LoRA or Keras's own quantization",
            hint="start from the model before that",
        )
    return variable
