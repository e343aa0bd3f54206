"""Data sets, and how each is split."""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.train.idx import IdxFile, read_idx

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]

DATA_VARIABLE = "EDGEKILN_DATA"
"""Environment variable that names a directory with copies of the data sets, one folder each."""


@dataclass(frozen=True)
class Split:
    """Which samples went where, so that a result can say what it was measured on.

    Attributes:
        method: How the indices were drawn.
        seed: Seed of that draw.
        train_samples: Samples to fit on.
        val_samples: Samples for early stopping, taken from the training part.
        test_samples: Held-out samples, seen by nothing before the final figures.
        test_indices_sha256: SHA-256 of the test indices into the source, sorted, as
            little-endian int64.
    """

    method: str
    seed: int
    train_samples: int
    val_samples: int
    test_samples: int
    test_indices_sha256: str


@dataclass(frozen=True)
class Dataset:
    """A data set for classification, split in three.

    Attributes:
        name: Its name.
        x_train: float32 [N, ...], as the model takes them.
        y_train: int64 [N], index of the class.
        x_val: As ``x_train``.
        y_val: As ``y_train``.
        x_test: As ``x_train``.
        y_test: As ``y_train``.
        class_names: Name of each class.
        split: How it was split.
    """

    name: str
    x_train: Images
    y_train: Labels
    x_val: Images
    y_val: Labels
    x_test: Images
    y_test: Labels
    class_names: tuple[str, ...]
    split: Split


def dataset_names() -> tuple[str, ...]:
    """Returns the names of all data sets, sorted."""
    return tuple(sorted(_LOADERS))


def load_dataset(name: str) -> Dataset:
    """Returns the data set ``name``; the same arrays in the same order every time.

    Raises:
        BadInputError: There is no such data set.
        ToolMissingError: The package that carries it is not installed.
    """
    if name not in _LOADERS:
        close = difflib.get_close_matches(name, _LOADERS, n=1)
        raise BadInputError(
            "no such data set",
            where=name or "''",
            allowed=", ".join(dataset_names()),
            hint=f"did you mean {close[0]}?" if close else "",
        )
    return _LOADERS[name]()


def _load_digits() -> Dataset:
    """scikit-learn's digits: 1797 images, 8 x 8, 0 to 16, scaled to [0, 1]."""
    sklearn_datasets = _import_sklearn("datasets")
    bunch = sklearn_datasets.load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[..., np.newaxis]
    labels = bunch.target.astype(np.int64)
    return _split(
        "digits", images, labels, class_names=tuple(str(digit) for digit in range(10)), seed=0
    )


@dataclass(frozen=True)
class _IdxSource:
    """The four files of a data set like MNIST, 28 x 28 bytes an image, 10 classes."""

    x_train: IdxFile
    y_train: IdxFile
    x_test: IdxFile
    y_test: IdxFile
    class_names: tuple[str, ...]


def _idx_source(digests: tuple[str, str, str, str], class_names: tuple[str, ...]) -> _IdxSource:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    x_train, y_train, x_test, y_test = (
        IdxFile(f"{name}-ubyte.gz", digest, size)
        for name, digest, size in zip(names, digests, sizes, strict=True)
    )
    return _IdxSource(x_train, y_train, x_test, y_test, class_names)


_IDX_SOURCES = {
    "mnist": _idx_source(
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        tuple(str(digit) for digit in range(10)),
    ),
    "fashion_mnist": _idx_source(
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        (
            "T-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    ),
}
_IDX_VAL_SAMPLES = 5000


def _load_idx(name: str) -> Dataset:
    """MNIST or Fashion-MNIST: 60,000 and 10,000 images, 28 x 28, 0 to 255, scaled to [0, 1].

    The last 5,000 images of the training part are for validation, as published order is random.
    """
    source = _IDX_SOURCES[name]
    x, y, x_test, y_test = (
        read_idx(find_file(name, file.name), file)
        for file in (source.x_train, source.y_train, source.x_test, source.y_test)
    )
    train, val = slice(0, len(y) - _IDX_VAL_SAMPLES), slice(len(y) - _IDX_VAL_SAMPLES, None)
    return Dataset(
        name=name,
        x_train=_as_images(x[train]),
        y_train=y[train].astype(np.int64),
        x_val=_as_images(x[val]),
        y_val=y[val].astype(np.int64),
        x_test=_as_images(x_test),
        y_test=y_test.astype(np.int64),
        class_names=source.class_names,
        split=Split(
            method="the published test part; the last of the training part for validation",
            seed=0,
            train_samples=len(y) - _IDX_VAL_SAMPLES,
            val_samples=_IDX_VAL_SAMPLES,
            test_samples=len(y_test),
            test_indices_sha256=_indices_sha256(np.arange(len(y_test))),
        ),
    )


def _as_images(codes: npt.NDArray[np.uint8]) -> Images:
    return (codes.astype(np.float32) / np.float32(255))[..., np.newaxis]


def find_file(dataset: str, name: str) -> Path:
    """Returns where a file of a data set lies.

    Raises:
        BadInputError: It is not here.
    """
    root = os.environ.get(DATA_VARIABLE, "")
    path = Path(root, dataset, name)
    if not root or not path.is_file():
        raise BadInputError(
            f"the data set {dataset} is not here",
            where=path if root else dataset,
            hint=f"set {DATA_VARIABLE} to the directory that holds {dataset}/{name}",
        )
    return path


def _split(
    name: str, images: Images, labels: Labels, *, class_names: tuple[str, ...], seed: int
) -> Dataset:
    """Holds out a fifth for the test, then a tenth of the rest for validation; stratified."""
    model_selection = _import_sklearn("model_selection")
    everything = np.arange(len(labels))
    rest, test = model_selection.train_test_split(
        everything, test_size=0.2, stratify=labels, random_state=seed
    )
    train, val = model_selection.train_test_split(
        rest, test_size=0.1, stratify=labels[rest], random_state=seed
    )
    train, val, test = np.sort(train), np.sort(val), np.sort(test)
    return Dataset(
        name=name,
        x_train=images[train],
        y_train=labels[train],
        x_val=images[val],
        y_val=labels[val],
        x_test=images[test],
        y_test=labels[test],
        class_names=class_names,
        split=Split(
            method="stratified held-out fifth, then a tenth of the rest for validation",
            seed=seed,
            train_samples=len(train),
            val_samples=len(val),
            test_samples=len(test),
            test_indices_sha256=_indices_sha256(test),
        ),
    )


def _indices_sha256(indices: Indices) -> str:
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


def _import_sklearn(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ToolMissingError(
            "scikit-learn is needed for this data set",
            got=error,
            hint="install it with: pip install 'edgekiln[train]'",
        ) from None


_LOADERS: dict[str, Callable[[], Dataset]] = {
    "digits": _load_digits,
    **{name: functools.partial(_load_idx, name) for name in _IDX_SOURCES},
}
