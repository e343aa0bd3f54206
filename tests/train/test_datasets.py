"""The data sets and how they are split."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from edgekiln.errors import BadInputError
from edgekiln.train.datasets import load_dataset


def rows(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_digits_split_is_fixed() -> None:
    digits = load_dataset("digits")
    split = digits.split
    assert (split.train_samples, split.val_samples, split.test_samples) == (1293, 144, 360)
    assert len(digits.x_train) == len(digits.y_train) == 1293
    assert len(digits.x_val) == len(digits.y_val) == 144
    assert len(digits.x_test) == len(digits.y_test) == 360
    # A figure that was measured on other samples is another figure: these must never move.
    assert split.test_indices_sha256 == (
        "2fbaae31b8c6aad12464a07771b64269876d904bfed86f77a63c8265fa201621"
    )
    assert hashlib.sha256(digits.x_test.tobytes()).hexdigest() == TEST_IMAGES_SHA256


TEST_IMAGES_SHA256 = "7ccd56919e300165af065a89a0fa64d7ebc54b5063296f7d38c5f39137450b76"


def test_digits_test_indices_are_those_of_the_test_images() -> None:
    digits = load_dataset("digits")
    positions: dict[bytes, list[int]] = {}
    everything = (load_digits().images / 16.0).astype(np.float32)
    for index, row in enumerate(rows(everything)):
        positions.setdefault(row, []).append(index)
    assert max(map(len, positions.values())) == 1  # no image is there twice, in two parts
    indices = np.array([positions[row][0] for row in rows(digits.x_test)], dtype="<i8")
    assert np.all(np.diff(indices) > 0)
    assert hashlib.sha256(indices.tobytes()).hexdigest() == digits.split.test_indices_sha256


def test_digits_parts_share_nothing_and_lose_nothing() -> None:
    digits = load_dataset("digits")
    parts = [set(rows(part)) for part in (digits.x_train, digits.x_val, digits.x_test)]
    everything = set(rows((load_digits().images / 16.0).astype(np.float32)))
    assert set.union(*parts) == everything
    assert sum(map(len, parts)) == len(everything) == 1797


def test_digits_test_part_is_stratified() -> None:
    digits = load_dataset("digits")
    per_class = np.bincount(load_digits().target)
    assert np.all(np.abs(np.bincount(digits.y_test) - per_class / 5) < 1)
    assert np.all(np.abs(np.bincount(digits.y_val) - per_class * 0.8 / 10) < 1)


def test_digits_values() -> None:
    digits = load_dataset("digits")
    assert digits.class_names == tuple("0123456789")
    for images, labels in (
        (digits.x_train, digits.y_train),
        (digits.x_val, digits.y_val),
        (digits.x_test, digits.y_test),
    ):
        assert images.dtype == np.float32 and images.shape[1:] == (8, 8, 1)
        assert images.min() == 0.0 and images.max() == 1.0
        assert labels.dtype == np.int64 and set(labels) == set(range(10))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_datasets(name: str, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKILN_DATA", str(shared / "data"))
    data = load_dataset(name)
    split = data.split
    assert (split.train_samples, split.val_samples, split.test_samples) == (55_000, 5_000, 10_000)
    for images, labels, count in (
        (data.x_train, data.y_train, 55_000),
        (data.x_val, data.y_val, 5_000),
        (data.x_test, data.y_test, 10_000),
    ):
        assert images.dtype == np.float32 and images.shape == (count, 28, 28, 1)
        assert images.min() == 0.0 and images.max() == 1.0
        assert labels.dtype == np.int64 and labels.shape == (count,) and set(labels) == {*range(10)}
    assert len(data.class_names) == 10
    assert np.all(np.bincount(data.y_test) == 1000) == (name == "fashion_mnist")


def test_a_copy_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_DATA", str(tmp_path))
    with pytest.raises(
        BadInputError, match=r"mnist/train-images-idx3-ubyte\.gz: no such file .*EDGE"
    ):
        load_dataset("mnist")


def test_unknown_dataset_names_the_near_one() -> None:
    with pytest.raises(BadInputError, match=r"^digit: no such data set; .*did you mean digits\?$"):
        load_dataset("digit")
    with pytest.raises(
        BadInputError, match=r"^'': no such data set; allowed: digits, fashion_mnist, mnist$"
    ):
        load_dataset("")
