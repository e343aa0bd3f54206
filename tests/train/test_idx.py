"""idx files: the published ones and none else."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekiln.errors import BadInputError
from edgekiln.train.datasets import load_dataset
from edgekiln.train.idx import IdxFile, parse_idx, read_idx

CONTENT = bytes((0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3)) + bytes(range(6))
FILE = IdxFile("a.gz", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def test_the_array_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(CONTENT))
    np.testing.assert_array_equal(read_idx(path, FILE), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(CONTENT[:-1]), "is not the published file; got SHA-256"),
        (gzip.compress(CONTENT + b"\0" * 1000), "is not the published file; got SHA-256"),
        (gzip.compress(CONTENT)[:-12], "is not the published file; got SHA-256"),
        (CONTENT, "is not a gzip file"),
        (b"", "is not the published file"),
    ],
)
def test_another_file_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=message) as caught:
        read_idx(path, FILE)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_small_file_that_decompresses_to_much_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000)))
    with pytest.raises(BadInputError, match="is not the published file"):
        read_idx(path, FILE)


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
    with pytest.raises(BadInputError, match=f"^{labels}: is not the published file"):
        load_dataset("mnist")
