"""Pruning, calibration, quantization in and after training, and the audit of what came out.

For scripts, these are here under one name, and TensorFlow is imported when one of them is used::

    from edgekiln.quantize import QuantizeOptions, quantize_file, quantize_model

`quantize_file` takes a ``.keras``, ``.h5`` or SavedModel and an ``.npz`` file, `quantize_model` a
Keras model in memory; see `edgekiln.quantize.own`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgekiln.quantize.options import Format, Method, QuantizeOptions

if TYPE_CHECKING:
    from edgekiln.quantize.own import quantize_file, quantize_model

__all__ = ["Format", "Method", "QuantizeOptions", "quantize_file", "quantize_model"]

_LAZY = {"quantize_file": "own", "quantize_model": "own"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
