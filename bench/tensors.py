"""Arrays that go in and out of a model, one inference after the other along the first axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInputError

Tensor: TypeAlias = NDArray[Any]
Tensors: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output.

    Attributes:
        name: The tensor's name in the model file.
        shape: Its shape for one inference, the batch axis of 1 included if the model has one.
        dtype: Its numpy dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """The size of one inference's values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The shape of one inference's row in an array of N: without a leading 1."""
        return self.shape[1:] if self.shape[:1] == (1,) else self.shape


def check_inputs(inputs: Tensors, specs: Sequence[TensorSpec]) -> Tensors:
    """Returns the arrays when they fit the model.

    Raises:
        BadInputError: Wrong number of arrays, wrong dtype, or wrong number of elements.
    """
    if len(inputs) != len(specs):
        raise BadInputError("wrong number of inputs", got=len(inputs), allowed=len(specs))
    for array, spec in zip(inputs, specs, strict=True):
        if array.dtype != spec.dtype:
            raise BadInputError(
                "wrong dtype", where=f"input {spec.name}", got=array.dtype, allowed=spec.dtype
            )
        if array.ndim == 0 or math.prod(array.shape[1:]) != math.prod(spec.shape):
            raise BadInputError(
                "wrong shape",
                where=f"input {spec.name}",
                got=list(array.shape),
                allowed=["N", *spec.batch_shape],
            )
    if len({len(array) for array in inputs}) > 1:
        raise BadInputError(
            "inputs of different length", got=[len(array) for array in inputs], allowed="N each"
        )
    return inputs


def run_each(
    inputs: Tensors,
    in_specs: Sequence[TensorSpec],
    out_specs: Sequence[TensorSpec],
    invoke: Callable[[Tensors], Tensors],
) -> Tensors:
    """Calls ``invoke`` once for each row of the inputs and gathers what it returns.

    Args:
        inputs: One array ``[N, ...]`` per model input.
        in_specs: The model's inputs.
        out_specs: The model's outputs.
        invoke: Takes one inference's inputs in order and returns its outputs.

    Raises:
        BadInputError: The arrays do not match the model's inputs.
    """
    check_inputs(inputs, in_specs)
    samples = len(inputs[0])
    outputs = tuple(np.empty((samples, *spec.batch_shape), spec.dtype) for spec in out_specs)
    for sample in range(samples):
        answer = invoke(tuple(array[sample] for array in inputs))
        for array, value in zip(outputs, answer, strict=True):
            array[sample] = value.reshape(array.shape[1:])
    return outputs
