"""Representative data: what a model is calibrated on, and the checks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError

Array = npt.NDArray[Any]
#: float32 [N, ...] of a model with one input; of several inputs, in their order or by name.
Representative = Array | Sequence[Array] | Mapping[str, Array]


@dataclass(frozen=True)
class InputShape:
    """One input of a model.

    Attributes:
        name: Its name.
        shape: Shape of one sample; None where an axis is free.
    """

    name: str
    shape: tuple[int | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tells whether samples of ``shape`` can go in."""
        return len(shape) == len(self.shape) and all(
            wanted in (None, size) for wanted, size in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class RepresentativeSet:
    """Checked representative data.

    Attributes:
        arrays: float32 [N, ...] for each input, all with the same N.
        names: Their names, or None if they are in the order of the model's inputs.
    """

    arrays: tuple[Array, ...]
    names: tuple[str, ...] | None

    def for_inputs(self, inputs: Sequence[InputShape], where: object) -> dict[str, Array]:
        """Returns the data of each input by name, in the order of ``inputs``.

        Raises:
            BadInputError: The data are not those of these inputs.
        """
        wanted = [each.name for each in inputs]
        if self.names is not None and set(self.names) != set(wanted):
            raise BadInputError(
                "the representative data are not named as the model's inputs",
                where=where,
                got=", ".join(self.names),
                allowed=", ".join(wanted),
            )
        if len(self.arrays) != len(wanted):
            raise BadInputError(
                "the model takes another number of inputs than there are representative data for",
                where=where,
                got=len(self.arrays),
                allowed=f"{len(wanted)} ({', '.join(wanted)})",
            )
        data = dict(zip(self.names or wanted, self.arrays, strict=True))
        for each in inputs:
            shape = data[each.name].shape[1:]
            if not each.fits(shape):
                raise BadInputError(
                    f"the representative data do not fit the model's {_input(inputs, each)}",
                    where=where,
                    got=f"samples of shape {shape}",
                    allowed=f"shape {each.shape}",
                )
        return {name: data[name] for name in wanted}

    def write(self, path: Path) -> None:
        """Writes the arrays as ``path``, ``.npz``, where `read_representative` finds them."""
        np.savez(path, *self.arrays)


def _input(inputs: Sequence[InputShape], one: InputShape) -> str:
    return "input" if len(inputs) == 1 else f"input '{one.name}'"


def read_representative(path: Path, names: Sequence[str] | None) -> RepresentativeSet:
    """Reads what `RepresentativeSet.write` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = tuple(archive[f"arr_{number}"] for number in range(len(archive.files)))
    return RepresentativeSet(arrays, None if names is None else tuple(names))


def batches(data: Mapping[str, Array], size: int) -> Iterator[dict[str, Array]]:
    """Yields the data in batches of ``size`` samples; the last one may be smaller."""
    samples = len(next(iter(data.values())))
    for start in range(0, samples, size):
        yield {name: array[start : start + size] for name, array in data.items()}


def check_representative(data: Representative, where: object) -> RepresentativeSet:
    """Checks what can be checked about representative data without the model.

    Raises:
        BadInputError: There are none, or one is not float32 or not finite, or the inputs have
            different numbers of samples.
    """
    names = tuple(data) if isinstance(data, Mapping) else None
    if isinstance(data, np.ndarray):
        arrays: tuple[Array, ...] = (data,)
    else:
        arrays = tuple(
            np.asarray(a) for a in (data.values() if isinstance(data, Mapping) else data)
        )
    if not arrays:
        raise BadInputError("there are no representative data", where=where)
    for number, array in enumerate(arrays):
        label = names[number] if names else number
        _check_array(array, where if len(arrays) == 1 else f"{where}, input {label}")
    counts = [len(array) for array in arrays]
    if len(set(counts)) > 1:
        raise BadInputError(
            "the inputs have different numbers of representative samples",
            where=where,
            got=", ".join(map(str, counts)),
            allowed="as many for each",
        )
    return RepresentativeSet(arrays, names)


def _check_array(array: Array, where: object) -> None:
    if array.dtype != np.float32:
        raise BadInputError(
            "the representative data have the wrong type",
            where=where,
            got=array.dtype,
            allowed="float32",
        )
    if array.ndim < 2 or array.size == 0:
        raise BadInputError(
            "the representative data are empty or lack the axis of samples",
            where=where,
            got=f"shape {array.shape}",
            allowed="[N, ...] with N >= 1",
        )
    bad = np.argwhere(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if bad.size:
        raise BadInputError(
            "the representative data hold NaN or infinity",
            where=where,
            got=f"{len(bad)} such samples, the first is number {bad[0, 0]}",
            allowed="finite values",
        )
