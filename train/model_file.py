"""Reads and writes ``.keras`` files."""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path
from typing import Any

from edgekiln import files
from edgekiln.errors import BadInputError, BadModelError
from edgekiln.train.quiet_keras import keras


def write_model(model: Any, path: Path) -> None:
    """Writes a Keras model as ``path`` (``.keras``), whole or not at all.

    Raises:
        BadInputError: The file cannot be written there.
    """
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        temporary = Path(scratch) / "model.keras"
        model.save(temporary)
        files.write_bytes(path, temporary.read_bytes())


def read_model(path: Path) -> Any:
    """Returns the Keras model in ``path``, with nothing in it allowed to run code.

    Raises:
        BadInputError: There is no such file, or it cannot be read.
        BadModelError: It is not a Keras 3 model, or it holds code (a Lambda layer).
    """
    files.read_input_file(path)
    if path.suffix != ".keras":
        raise BadInputError("is not a .keras file", where=path, allowed=".keras")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise BadModelError(
            "is not a Keras 3 model that can be loaded",
            where=path,
            got=textwrap.shorten(f"{type(error).__name__}: {error}", 200),
        ) from None
