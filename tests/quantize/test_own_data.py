"""Data from outside: what is taken, how it is split, what is refused."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekiln.errors import BadInputError
from edgekiln.quantize.own_data import ModelShape, OwnData, read_archive, read_shape
from edgekiln.train import unpack

SHAPE = ModelShape({"image": (4, 3)}, ((5,),))
TWO = ModelShape({"one": (4,), "two": (None, 2)}, ((3,), (7, 7)))
X = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
Y = np.arange(20) % 5


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, allow_pickle=False, **arrays)
    return path


def read(path: Path, shape: ModelShape = SHAPE) -> OwnData:
    return read_archive(path).for_model(shape)


def refused(path: Path, shape: ModelShape = SHAPE) -> str:
    with pytest.raises(BadInputError) as caught:
        read(path, shape)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_fifth_is_held_out(tmp_path: Path) -> None:
    data = read(write(tmp_path / "d.npz", x=X, y=Y))
    assert list(data.train.x) == list(data.test.x) == ["image"]
    assert (len(data.train), len(data.test)) == (16, 4)
    order = np.random.default_rng(0).permutation(20)
    held_out = np.sort(order[:4])
    np.testing.assert_array_equal(data.test.x["image"], X[held_out])
    np.testing.assert_array_equal(data.test.y, Y[held_out])
    np.testing.assert_array_equal(data.train.x["image"], X[np.sort(order[4:])])
    assert data.test.y is not None and data.test.y.dtype == np.int64
    split = data.split
    assert (split.seed, split.train_samples, split.val_samples, split.test_samples) == (0, 16, 0, 4)
    digest = hashlib.sha256(held_out.astype("<i8").tobytes()).hexdigest()
    assert split.test_indices_sha256 == digest
    assert split.method == "a fifth held out at random"


def test_a_test_part_of_its_own(tmp_path: Path) -> None:
    data = read(write(tmp_path / "d.npz", x=X, y_test=Y[:3], x_test=X[:3]))
    assert (len(data.train), len(data.test)) == (20, 3)
    assert data.train.y is None
    np.testing.assert_array_equal(data.test.y, Y[:3])
    assert data.split.method == "the file's own test part"


def test_without_labels(tmp_path: Path) -> None:
    data = read(write(tmp_path / "d.npz", x=X))
    assert data.train.y is None and data.test.y is None
    data = read(write(tmp_path / "d.npz", x=X, x_test=X[:1]))
    assert data.test.y is None


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "uint16"])
def test_labels_of_any_integer_type(tmp_path: Path, dtype: str) -> None:
    data = read(write(tmp_path / "d.npz", x=X, y=Y.astype(dtype)))
    assert data.train.y is not None and data.train.y.dtype == np.int64


def test_several_inputs_in_the_models_order(tmp_path: Path) -> None:
    two, one = np.ones((6, 9, 2), np.float32), np.ones((6, 4), np.float32)
    data = read(write(tmp_path / "d.npz", two=two, one=one), TWO)
    assert {name: array.shape[1:] for name, array in data.train.x.items()} == {
        **{"one": (4,), "two": (9, 2)}
    }
    assert list(data.train.x) == ["one", "two"]
    data = read(
        write(tmp_path / "d.npz", two=two, one=one, one_test=one[:2], two_test=two[:2]), TWO
    )
    assert (len(data.train), len(data.test)) == (6, 2)


def test_the_representative_samples_are_spread_over_the_training_part(tmp_path: Path) -> None:
    data = read(write(tmp_path / "d.npz", x=X, x_test=X[:1]))
    np.testing.assert_array_equal(data.representative(3)["image"], X[[0, 10, 19]])
    np.testing.assert_array_equal(data.representative(500)["image"], X)


def test_compressed_files_too(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=X, y=Y)
    assert len(read(tmp_path / "d.npz").train) == 16


def spoiled(value: float) -> np.ndarray:
    samples = X.copy()
    samples[[7, 9], 1, 2] = value
    return samples


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "has no array 'x'; got no arrays"),
        ({"y": Y}, "has no array 'x'; got y"),
        ({"x": X, "labels": Y}, "has an array 'labels' that nothing is known of; allowed: x, x_te"),
        ({"x": X, "y_test": Y}, "has no array 'x_test'; got x, y_test"),
        ({"x": X, "y": Y, "x_test": X}, "has no array 'y_test'; got x, x_test, y; the other samp"),
        ({"x": spoiled(np.nan)}, "'x' holds NaN or infinity; got 2 such samples, the first is nu"),
        ({"x": X, "x_test": spoiled(np.inf)}, "'x_test' holds NaN or infinity; got 2 such"),
        ({"x": X.astype(np.float64)}, "'x' has the wrong type; got float64; allowed: float32; wri"),
        (
            {"x": X.astype(np.uint8)},
            "'x' has the wrong type; got uint8; allowed: float32; scale the images as for the trai"
            "ning, for example x.astype('float32') / 255, and write the file anew",
        ),
        ({"x": X[:0]}, "'x' is empty or lacks the axis of samples; got shape (0, 4, 3)"),
        ({"x": X[0, 0]}, "'x' is empty or lacks the axis of samples; got shape (3,)"),
        ({"x": np.float32(3)}, "'x' is empty or lacks the axis of samples; got shape ()"),
        (
            {"x": X.transpose(0, 2, 1)},
            "'x' does not fit the model's input 'image'; got samples of shape (3, 4); allowed: shap"
            "e (4, 3)",
        ),
        ({"x": X[..., None]}, "'x' does not fit the model's input 'image'; got samples of shape"),
        ({"x": X, "x_test": X[:, 0]}, "'x_test' does not fit the model's input 'image'; got samp"),
        ({"x": X[:1]}, "has too few samples to hold one out; got 1; allowed: 2 or more, or an arr"),
        ({"x": X, "y": Y[:7]}, "'y' has another number of labels than there are samples; got 7; a"),
        ({"x": X, "y": Y + 1}, "'y' has labels that the model's output does not have; got 5 at in"),
        ({"x": X, "y": Y - 1}, "'y' has labels that the model's output does not have; got -1 at i"),
        ({"x": X, "y": Y.astype(float)}, "'y' does not hold integers; got float64; allowed: the"),
        ({"x": X, "y": Y > 2}, "'y' does not hold integers; got bool"),
        ({"x": X, "y": np.array(["a"] * 20)}, "'y' does not hold integers; got <U1"),
        (
            {"x": X, "y": np.eye(5, dtype=int)[Y]},
            "'y' has the wrong shape; got shape (20, 5); allowed: [N], the index of each sample's c"
            "lass; one-hot labels become indices by y.argmax(axis=1)",
        ),
        ({"x": X, "y": Y[:, None]}, "'y' has the wrong shape; got shape (20, 1); allowed: [N], th"),
    ],
)
def test_what_is_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    assert refused(write(tmp_path / "d.npz", **arrays)).startswith(message)


def test_labels_of_a_model_that_tells_no_classes_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "d.npz", x=X, y=Y)
    for outputs in (((1,),), ((5, 5),), ((5,), (5,)), ((None,),)):
        message = refused(path, ModelShape({"image": (4, 3)}, outputs))
        assert message.startswith("'y' has labels, but the model does not tell classes apart; got")


def test_inputs_of_different_lengths(tmp_path: Path) -> None:
    one, two = np.ones((6, 4), np.float32), np.ones((5, 9, 2), np.float32)
    message = refused(write(tmp_path / "d.npz", one=one, two=two), TWO)
    assert message.startswith("'two' has another number of samples than the other inputs; got 5; a")


def test_a_name_of_several_is_missing(tmp_path: Path) -> None:
    message = refused(write(tmp_path / "d.npz", one=np.ones((6, 4), np.float32)), TWO)
    assert message == "has no array 'two'; got one"


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    for data in (b"", b"no archive", npy(X)):
        path.write_bytes(data)
        assert refused(path) == ("is not an .npz file; write it with numpy.savez(path, x=…, y=…)")
    path.unlink()
    assert refused(path).startswith("no such file")
    path.mkdir()
    assert refused(path).startswith("is a directory")


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "d.npz", x=X)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert refused(path).startswith("is damaged; got ")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(X)[:50])
    assert refused(path).startswith("is damaged; got ")


def test_pickled_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy(np.array([{"a": 1}], dtype=object), allow_pickle=True))
    assert refused(path) == (
        "holds pickled objects, which can be programs; store plain arrays of numbers"
    )


def test_a_zip_file_of_other_things(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"{}")
    assert refused(path).startswith("is not an .npz file")


def test_the_shape_from_a_summary() -> None:
    port = {"name": "image", "shape": [1, 4, 3]}
    assert read_shape({"inputs": [port], "outputs": [{"name": "o", "shape": [1, 5]}]}) == SHAPE


def test_a_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.zeros((1000, 4, 3), np.float32))
    assert path.stat().st_size < 2000
    monkeypatch.setattr(unpack, "memory_bytes", lambda: 50_000)
    assert refused(path) == (
        "unpacks to more than half of this machine's memory; got 48,128 bytes; allowed: at most "
        "25,000"
    )
