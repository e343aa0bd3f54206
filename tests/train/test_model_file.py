"""Reading and writing ``.keras`` files, those of strangers included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from keras_marks import KERAS

from edgekiln.errors import BadInputError, BadModelError
from edgekiln.train.model_file import read_model, write_model
from edgekiln.train.quiet_keras import keras

pytestmark = KERAS


def small_model() -> keras.Model:
    return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2, name="only")])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    model = small_model()
    write_model(model, tmp_path / "new" / "a model.keras")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a model.keras"]
    again = read_model(tmp_path / "new" / "a model.keras")
    for one, two in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"none\.keras: no such file"):
        read_model(tmp_path / "none.keras")


def test_other_suffix(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"\x89HDF")
    with pytest.raises(BadInputError, match=r"model\.h5: is not a \.keras file; allowed: \.keras"):
        read_model(tmp_path / "model.h5")


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04" + bytes(60)])
def test_damaged_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    with pytest.raises(BadModelError) as caught:
        read_model(path)
    assert str(caught.value).startswith(f"{path}: is not a Keras 3 model that can be loaded")
    assert len(str(caught.value)) < 500


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    write_model(small_model(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadModelError, match="is not a Keras 3 model"):
        read_model(path)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    program = f"lambda x: (open({str(trap)!r}, 'w'), x)[1]"
    layers = [keras.layers.Input((3,)), keras.layers.Lambda(eval(program), output_shape=(3,))]
    path = tmp_path / "model.keras"
    write_model(keras.Sequential(layers), path)
    trap.unlink(missing_ok=True)
    with pytest.raises(BadModelError, match="Lambda"):
        read_model(path)
    assert not trap.exists()
