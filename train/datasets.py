"""Data sets, and how each is split."""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.train.idx import parse_idx
from edgekiln.train.sources import IDX_SOURCES

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int64]


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


_DIGITS = tuple(str(digit) for digit in range(10))
_IDX_CLASS_NAMES = {
    "mnist": _DIGITS,
    "fashion_mnist": (
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
}


def dataset_names() -> tuple[str, ...]:
    """Returns the names of all data sets, sorted."""
    return tuple(sorted(_LOADERS))


def load_dataset(name: str) -> Dataset:
    """Returns the data set ``name``; the same arrays in the same order every time.

    Raises:
        BadInputError: There is no such data set, or the copy that ``EDGEKILN_DATA`` names is
            missing or not the published one.
        ToolMissingError: The package that carries it is not installed, or it cannot be
            downloaded.
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
    return _split("digits", images, labels, class_names=_DIGITS, seed=0)


_IDX_VAL_SAMPLES = 5000


def _load_idx(name: str) -> Dataset:
    """MNIST or Fashion-MNIST: 60,000 and 10,000 images, 28 x 28, 0 to 255, scaled to [0, 1].

    The last 5,000 images of the training part are for validation, as published order is random.
    """
    from edgekiln.train.download import read_source

    x, y, x_test, y_test = (
        parse_idx(read_source(source), source.path) for source in IDX_SOURCES[name]
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
        class_names=_IDX_CLASS_NAMES[name],
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


def spread_evenly(count: int, wanted: int) -> Indices:
    """Returns up to ``wanted`` of ``count`` indices, evenly spread from the first to the last."""
    return np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)


def spread_over_strata(strata: Sequence[npt.NDArray[Any]], wanted: int) -> Indices:
    """Returns up to ``wanted`` indices of samples that stand for all of them.

    Systematic sampling of the samples in the order of their strata: of every stratum the same
    share is taken, to one sample. Figures over the few vary less than those over as many
    random ones (Cochran, Sampling Techniques, chapter 8).

    Args:
        strata: Arrays [N] to sort by, the most important one first, such as whether a reference
            model is right, and the class.
        wanted: How many; at least one.

    Returns:
        Indices in [0, N), in ascending order.
    """
    order = np.lexsort(tuple(reversed(strata)))
    count = min(len(order), wanted)
    middles = (np.arange(count) + 0.5) * len(order) / max(count, 1)
    return np.sort(order[middles.astype(np.int64)])


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
    **{name: functools.partial(_load_idx, name) for name in IDX_SOURCES},
}
