"""Trained models that come with the project, as training them takes more than a minute.

Below ``kept/`` lie, for a recipe or one of its variants, ``<name>.json``, which says how it was
made, and either ``<name>.npz``, a Keras model, or ``<name>.tflite``, where what was trained is a
quantized model. An ``.npz`` holds the layers as JSON and the weights, those of many elements in
half precision: a kept model is the rounded one, and its figures are that one's.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln import files
from edgekiln.errors import BadModelError

DIRECTORY = Path(__file__).parent / "kept"

_LAYERS = "layers"
_LARGE_ELEMENTS = 1024


def kept_file(name: str) -> Path | None:
    """Returns the ``.npz`` or ``.tflite`` kept under a name, or None. TensorFlow stays out."""
    paths = (DIRECTORY / f"{name}{suffix}" for suffix in (".npz", ".tflite"))
    return next((path for path in paths if path.is_file()), None)


def read_history(name: str) -> dict[str, Any]:
    """Returns how the model that is kept under a name was made.

    Raises:
        BadInputError: None is kept under that name.
    """
    history: dict[str, Any] = json.loads(files.read_input_file(DIRECTORY / f"{name}.json"))
    return history


def write_kept(name: str, suffix: str, data: bytes, history: Mapping[str, Any]) -> None:
    """Keeps a model and how it was made.

    Args:
        name: Name of the recipe or of its variant.
        suffix: ``.npz`` or ``.tflite``; a file of the other kind is removed.
        data: The file.
        history: JSON values.
    """
    for other in (".npz", ".tflite"):
        if other != suffix:
            (DIRECTORY / f"{name}{other}").unlink(missing_ok=True)
    files.write_bytes(DIRECTORY / f"{name}{suffix}", data)
    files.write_json(DIRECTORY / f"{name}.json", history)


def pack_model(model: Any) -> bytes:
    """Returns a Keras model as the bytes of an ``.npz``; the same bytes for the same model."""
    arrays: dict[str, Any] = {
        f"w{number:03}": value.astype(np.float16) if value.size >= _LARGE_ELEMENTS else value
        for number, value in enumerate(model.get_weights())
    }
    arrays[_LAYERS] = np.frombuffer(model.to_json().encode(), np.uint8)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def unpack_model(data: bytes, where: object) -> Any:
    """Returns the Keras model, in float32, of an ``.npz``; nothing in it may run code.

    Raises:
        BadModelError: It is not one of `pack_model`'s.
    """
    from edgekiln.train.quiet_keras import keras

    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            layers = arrays[_LAYERS].tobytes().decode()
            weights = [arrays[name].astype(np.float32) for name in arrays.files if name != _LAYERS]
        model = keras.models.model_from_json(layers)
        model.set_weights(weights)
    except Exception as error:
        raise BadModelError("is not a kept model", where=where, got=error) from None
    if not all(math.isfinite(float(np.sum(value))) for value in weights):
        raise BadModelError("a weight is not finite", where=where)
    return model


def round_model(model: Any) -> Any:
    """Returns the model that is there after it was kept and read again."""
    return unpack_model(pack_model(model), model.name)
