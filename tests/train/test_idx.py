"""idx files: the published ones and none else."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekiln.errors import BadInputError
from edgekiln.train.datasets import load_dataset
from edgekiln.train.idx import parse_idx

CONTENT = bytes((0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3)) + bytes(range(6))


def test_the_array_is_read() -> None:
    np.testing.assert_array_equal(parse_idx(CONTENT, Path("a")), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an idx file"),
        (bytes((0, 0, 13, 1)) + bytes(8), "is not an idx file of bytes"),
        (bytes((0, 0, 8, 0)), "is not an idx file"),
        (bytes((0, 0, 8, 200)) + bytes(8), "is not an idx file"),
        (CONTENT + b"x", "got 7 values; allowed: 6, for shape"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "allowed: .*, for shape"),
    ],
)
def test_content_that_contradicts_its_header_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        parse_idx(data, Path("a"))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_published_data_sets(name: str, data: Path) -> None:
    found = load_dataset(name)
    assert found.x_train.shape == (55_000, 28, 28, 1) and found.x_val.shape == (5_000, 28, 28, 1)
    assert found.x_test.shape == (10_000, 28, 28, 1)
    assert found.x_train.dtype == np.float32 and (found.x_test.min(), found.x_test.max()) == (0, 1)
    everything = np.concatenate([found.y_train, found.y_val])
    assert np.bincount(everything).sum() == 60_000 and len(found.class_names) == 10
    assert set(found.y_test) == set(range(10)) and found.y_test.dtype == np.int64
    assert found.split.test_samples == 10_000


def test_a_data_set_that_is_not_the_published_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data / "mnist", tmp_path / "mnist", copy_function=shutil.copyfile)
    labels = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(labels.read_bytes()))
    content[-1] = 11
    labels.write_bytes(gzip.compress(bytes(content)))
    monkeypatch.setenv("EDGEKILN_DATA", str(tmp_path))
    with pytest.raises(BadInputError, match=f"^{labels}: has another content"):
        load_dataset("mnist")
