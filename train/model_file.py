"""Reads and writes Keras models: ``.keras`` files, and the ``.h5`` files of older versions."""

from __future__ import annotations

import tempfile
import textwrap
import warnings
from pathlib import Path
from typing import Any

from edgekiln import files
from edgekiln.errors import BadInputError, BadModelError
from edgekiln.train.model_config import check_config, read_config
from edgekiln.train.old_h5 import modernise, write_modern
from edgekiln.train.quiet_keras import keras

H5_SUFFIXES = (".h5", ".hdf5")
SUFFIXES = (".keras", *H5_SUFFIXES)
_HALVES = ("float16", "bfloat16")


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

    Classes which are registered with Keras in this process (``keras.saving``) are known. A model
    of mixed precision comes back computing in float32, as everything after this takes it.

    Args:
        path: A ``.keras`` file, or a ``.h5`` file of Keras 2 or 3.

    Returns:
        The model, not compiled.

    Raises:
        BadInputError: There is no such file, or it cannot be read.
        BadModelError: It is not a whole Keras model, or it holds code (a Lambda layer), or
            needs classes that are not Keras's; the message names the layer.
    """
    if path.suffix not in SUFFIXES:
        raise BadInputError("is not a Keras model file", where=path, allowed=", ".join(SUFFIXES))
    files.read_input_file(path)
    config = read_config(path)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as scratch:
        source = path
        if path.suffix in H5_SUFFIXES:
            modernise(config, path)
            source = Path(scratch) / "model.h5"
            write_modern(path, config, source)
        check_config(config, path)
        model = _load(source, path)
    _require_inputs(model, path)
    compute_in_float32(model)
    return model


def compute_in_float32(model: Any) -> list[tuple[Any, Any]]:
    """Makes a model compute in float32, in place; returns the layers changed, with their policies.

    A layer that was trained in mixed precision holds its weights in float32 all the same.
    """
    changed = [
        (layer, layer.dtype_policy)
        for layer in model._flatten_layers()
        if layer.compute_dtype in _HALVES
    ]
    for layer, _ in changed:
        layer.dtype_policy = "float32"
    return changed


def _load(source: Path, where: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras's advice on how to write such a model
            return keras.models.load_model(source, compile=False, safe_mode=True)
    except Exception as error:
        raise BadModelError(
            "is not a Keras model that can be loaded",
            where=where,
            got=textwrap.shorten(f"{type(error).__name__}: {error}", 200),
        ) from None


def _require_inputs(model: Any, where: Path) -> None:
    """Refuses what Keras loads and nothing can be done with: layers, models without inputs."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise BadModelError(
            "is not a model with inputs",
            where=where,
            got=type(model).__name__,
            allowed="a functional model, or a Sequential one that begins with an Input",
        )
