"""Keras 3 on TensorFlow, without the noise. Import both from here, never directly.

TensorFlow's C++ side logs to file descriptor 2 while it is imported, before any Python setting
can reach it; so that descriptor is held back during the import and shown only if the import
fails.

Equal seeds should give equal weights on more than one machine, so what decides the order of
floating point sums is fixed: oneDNN's kernels are off, and TensorFlow splits an op over two
threads whatever the number of cores. ``TF_NUM_INTRAOP_THREADS`` in the environment overrides
that, where speed matters more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from edgekiln.errors import BadInputError, ToolMissingError

__all__ = ["keras", "tensorflow"]

_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_NUM_INTRAOP_THREADS": "2",
}


@contextlib.contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Sends what is written on descriptor 2 to a file, and shows it after an error."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as stack:
        real = os.dup(2)
        stack.callback(os.close, real)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)


def _import_quietly() -> tuple[Any, Any]:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with _stderr_held_back(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import keras
            import tensorflow
        except ImportError as error:
            raise ToolMissingError(
                "TensorFlow and Keras are needed for training and quantizing",
                got=error,
                hint="install them with: pip install 'edgekiln[train]'",
            ) from None
    if keras.backend.backend() != "tensorflow":
        raise BadInputError(
            "Keras was imported before edgekiln, with another backend",
            got=keras.backend.backend(),
            allowed="tensorflow",
            hint="set KERAS_BACKEND=tensorflow",
        )
    return keras, tensorflow


keras, tensorflow = _import_quietly()
