"""Data from outside: an ``.npz`` file with samples, and labels if there are any.

===================  ==========================================================================
``x``                float32 [N, …], samples as the model takes them. Ranges are measured on some
                     of them, and training uses them. A model with several inputs has an array
                     for each, under the input's name.
``y``                Their classes, integers [N] from 0; optional.
``x_test``           float32 [M, …], samples that are held out: what is stated of a model is
                     measured on them. With several inputs: ``<name>_test``. Optional: without
                     them a fifth of ``x`` is held out, drawn with a fixed seed.
``y_test``           Their classes, integers [M]; optional.
===================  ==========================================================================

Nothing in the file is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError
from edgekiln.files import read_input_file
from edgekiln.train.datasets import Split, spread_evenly
from edgekiln.train.unpack import check_unpacked_size

Array = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]

SPLIT_SEED = 0
_TEST_SHARE = 0.2
_TEST = "_test"
_LABELS = "y"
_SINGLE = "x"


@dataclass(frozen=True)
class ModelShape:
    """What a model takes and gives.

    Attributes:
        inputs: Name of each input to the shape of one sample; None where an axis is free.
        outputs: Shape of one sample of each output.
    """

    inputs: Mapping[str, tuple[int | None, ...]]
    outputs: tuple[tuple[int | None, ...], ...]

    @property
    def classes(self) -> int | None:
        """The number of classes; None unless the model has one output [N, classes]."""
        if len(self.outputs) != 1 or len(self.outputs[0]) != 1:
            return None
        (size,) = self.outputs[0]
        return size if size is not None and size > 1 else None


def read_shape(summary: Mapping[str, Any]) -> ModelShape:
    """Returns what a model takes and gives, in the order of the quantized file.

    Args:
        summary: What stands in ``quantize.json``.
    """
    return ModelShape(
        {port["name"]: tuple(port["shape"][1:]) for port in summary["inputs"]},
        tuple(tuple(port["shape"][1:]) for port in summary["outputs"]),
    )


@dataclass(frozen=True)
class Part:
    """Some samples.

    Attributes:
        x: Input's name to float32 [N, …], in the order of the model's inputs.
        y: int64 [N], or None without labels.
    """

    x: Mapping[str, Array]
    y: Labels | None

    def __len__(self) -> int:
        return len(next(iter(self.x.values())))

    def take(self, indices: Array) -> Part:
        """Returns the samples at ``indices``, int64 [n]."""
        x = {name: array[indices] for name, array in self.x.items()}
        return Part(x, None if self.y is None else self.y[indices])


@dataclass(frozen=True)
class OwnData:
    """Data from outside, checked against a model.

    Attributes:
        train: What ranges are measured on and models are trained with.
        test: What is held out.
        split: How the two were told apart.
    """

    train: Part
    test: Part
    split: Split

    def representative(self, samples: int) -> dict[str, Array]:
        """Returns up to ``samples`` of the training samples, spread evenly over them."""
        return dict(self.train.take(spread_evenly(len(self.train), samples)).x)


@dataclass(frozen=True)
class Archive:
    """The arrays of an ``.npz`` file.

    Attributes:
        path: The file.
        arrays: Key to array.
    """

    path: Path
    arrays: Mapping[str, Array]

    def for_model(self, shape: ModelShape) -> OwnData:
        """Returns the data in the order of a model's inputs, split in two.

        Raises:
            BadInputError: They do not fit the model.
        """
        keys = _keys(self, shape)
        train = self._part(keys, _LABELS)
        self._check_part(train, shape, "")
        test_keys = {name: key + _TEST for name, key in keys.items()}
        if not any(key in self.arrays for key in (*test_keys.values(), _LABELS + _TEST)):
            return _hold_out(train, self.path)
        test = self._part(test_keys, _LABELS + _TEST)
        self._check_part(test, shape, _TEST)
        if train.y is not None and test.y is None:
            raise self._missing(_LABELS + _TEST, "the other samples have labels")
        split = _split_of("the file's own test part", 0, len(train), np.arange(len(test)))
        return OwnData(train, test, split)

    def _part(self, keys: Mapping[str, str], labels: str) -> Part:
        for key in keys.values():
            if key not in self.arrays:
                raise self._missing(key)
        x = {name: _check_samples(key, self.arrays[key], self.path) for name, key in keys.items()}
        y = self.arrays.get(labels)
        return Part(x, None if y is None else _check_labels(labels, y, self.path))

    def _missing(self, key: str, hint: str = "") -> BadInputError:
        return BadInputError(
            f"has no array '{key}'",
            where=self.path,
            got=", ".join(sorted(self.arrays)) or "no arrays",
            hint=hint,
        )

    def _check_part(self, part: Part, shape: ModelShape, suffix: str) -> None:
        for name, wanted in shape.inputs.items():
            key = f"{_SINGLE if len(shape.inputs) == 1 else name}{suffix}"
            got = part.x[name].shape[1:]
            if len(got) != len(wanted) or any(
                size not in (None, other) for size, other in zip(wanted, got, strict=True)
            ):
                raise BadInputError(
                    f"'{key}' does not fit the model's input '{name}'",
                    where=self.path,
                    got=f"samples of shape {got}",
                    allowed=f"shape {wanted}",
                )
            if len(part.x[name]) != len(part):
                raise BadInputError(
                    f"'{key}' has another number of samples than the other inputs",
                    where=self.path,
                    got=len(part.x[name]),
                    allowed=len(part),
                )
        if part.y is not None:
            self._check_labels(part.y, f"{_LABELS}{suffix}", len(part), shape)

    def _check_labels(self, labels: Labels, key: str, samples: int, shape: ModelShape) -> None:
        if len(labels) != samples:
            raise BadInputError(
                f"'{key}' has another number of labels than there are samples",
                where=self.path,
                got=len(labels),
                allowed=samples,
            )
        if shape.classes is None:
            raise BadInputError(
                f"'{key}' has labels, but the model does not tell classes apart",
                where=self.path,
                got=f"outputs of shape {', '.join(map(str, shape.outputs))}",
                allowed="one output [N, classes] with at least two classes",
                hint="leave the labels out to have the outputs compared instead",
            )
        bad = np.flatnonzero((labels < 0) | (labels >= shape.classes))
        if bad.size:
            raise BadInputError(
                f"'{key}' has labels that the model's output does not have",
                where=self.path,
                got=f"{labels[bad[0]]} at index {bad[0]}",
                allowed=f"0 to {shape.classes - 1}",
            )


def _keys(archive: Archive, shape: ModelShape) -> dict[str, str]:
    """Returns the key of each input's samples, and refuses arrays that belong to nothing."""
    single = len(shape.inputs) == 1
    keys = {name: _SINGLE if single else name for name in shape.inputs}
    known = [key + end for key in (*keys.values(), _LABELS) for end in ("", _TEST)]
    unknown = sorted(set(archive.arrays) - set(known))
    if unknown:
        raise BadInputError(
            f"has an array '{unknown[0]}' that nothing is known of",
            where=archive.path,
            allowed=", ".join(known),
        )
    return keys


def read_archive(path: Path) -> Archive:
    """Reads an ``.npz`` file from outside; its format stands at the top of this module.

    Raises:
        BadInputError: There is no such file, it is not an ``.npz``, it holds pickled objects, or
            an array that cannot be used.
    """
    data = read_input_file(path)
    if not _is_npz(data, path):
        raise BadInputError(
            "is not an .npz file", where=path, hint="write it with numpy.savez(path, x=…, y=…)"
        )
    arrays: dict[str, Array] = {}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            for key in archive.files:
                arrays[key] = np.asarray(archive[key])
    except Exception as error:  # zipfile, zlib and numpy each have their own
        pickled = "allow_pickle" in str(error)
        raise BadInputError(
            "holds pickled objects, which can be programs" if pickled else "is damaged",
            where=path,
            got="" if pickled else error,
            hint="store plain arrays of numbers" if pickled else "write it anew",
        ) from None
    return Archive(path, arrays)


def _is_npz(data: bytes, where: Path) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            check_unpacked_size(archive, where)
            return all(name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _check_samples(key: str, array: Array, path: Path) -> Array:
    if array.dtype != np.float32:
        raise BadInputError(
            f"'{key}' has the wrong type",
            where=path,
            got=array.dtype,
            allowed="float32",
            hint=_how_to_convert(key, array.dtype),
        )
    if array.ndim < 2 or array.size == 0:
        raise BadInputError(
            f"'{key}' is empty or lacks the axis of samples",
            where=path,
            got=f"shape {array.shape}",
            allowed="[N, …] with N >= 1",
        )
    bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
    if bad.size:
        raise BadInputError(
            f"'{key}' holds NaN or infinity",
            where=path,
            got=f"{bad.size} such samples, the first is number {bad[0]}",
            allowed="finite values",
        )
    return array


def _how_to_convert(key: str, dtype: np.dtype[Any]) -> str:
    if dtype == np.uint8:
        return (
            f"scale the images as for the training, for example {key}.astype('float32') / 255, "
            "and write the file anew"
        )
    return f"write the file anew with {key}.astype('float32')"


def _check_labels(key: str, labels: Array, path: Path) -> Labels:
    if labels.dtype.kind not in "iu":
        raise BadInputError(
            f"'{key}' does not hold integers",
            where=path,
            got=labels.dtype,
            allowed="the index of each sample's class",
            hint=f"write the file anew with {key}.astype('int64')",
        )
    if labels.ndim != 1:
        raise BadInputError(
            f"'{key}' has the wrong shape",
            where=path,
            got=f"shape {labels.shape}",
            allowed="[N], the index of each sample's class",
            hint=f"one-hot labels become indices by {key}.argmax(axis=1)"
            if labels.ndim == 2 and labels.shape[1] > 1
            else f"write the file anew with {key}.reshape(-1)",
        )
    return labels.astype(np.int64)


def _hold_out(everything: Part, path: Path) -> OwnData:
    """Draws a fifth of the samples, and leaves both parts in their order."""
    samples = len(everything)
    if samples < 2:
        raise BadInputError(
            "has too few samples to hold one out",
            where=path,
            got=samples,
            allowed="2 or more, or an array x_test",
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(samples)
    count = max(1, round(_TEST_SHARE * samples))
    test, train = np.sort(order[:count]), np.sort(order[count:])
    return OwnData(
        everything.take(train),
        everything.take(test),
        _split_of("a fifth held out at random", SPLIT_SEED, len(train), test),
    )


def _split_of(method: str, seed: int, train_samples: int, test: Array) -> Split:
    return Split(
        method=method,
        seed=seed,
        train_samples=train_samples,
        val_samples=0,
        test_samples=len(test),
        test_indices_sha256=hashlib.sha256(test.astype("<i8").tobytes()).hexdigest(),
    )
