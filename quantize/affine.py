"""Affine quantization, ``real = scale * (q - zero_point)``, with numpy alone.

The arithmetic is TensorFlow Lite Micro's (``AffineQuantize`` and ``Dequantize`` in
tensorflow/lite/kernels/internal/reference): float32, ties away from zero, saturating.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError

Array = npt.NDArray[Any]


def quantize_array(x: npt.ArrayLike, scale: float, zero_point: int, dtype: npt.DTypeLike) -> Array:
    """Quantizes real values.

    Args:
        x: Real values, any shape; infinities saturate.
        scale: Real value of one step, as float32, above zero.
        zero_point: The code that stands for 0.0; a value of ``dtype``.
        dtype: Integer type of the codes, such as ``np.int8``.

    Returns:
        ``dtype``, of the shape of ``x``.

    Raises:
        BadInputError: ``x`` holds a NaN, or a parameter is out of its range.
    """
    info = np.iinfo(dtype)
    _check(scale, zero_point, info)
    values = np.asarray(x, dtype=np.float32)
    if np.isnan(values).any():
        raise BadInputError("values to quantize hold a NaN", hint="check the data")
    # The quotient is float32, as on the device; float64 makes the + 0.5 exact.
    with np.errstate(over="ignore"):
        steps = (values / np.float32(scale)).astype(np.float64)
    rounded = np.copysign(np.floor(np.abs(steps) + 0.5), steps)
    codes: Array = np.clip(rounded + zero_point, info.min, info.max).astype(dtype)
    return codes


def dequantize_array(q: npt.ArrayLike, scale: float, zero_point: int) -> npt.NDArray[np.float32]:
    """Returns the real values of quantized codes.

    Args:
        q: Integer codes, any shape; at most 32 bits.
        scale: Real value of one step, as float32, above zero.
        zero_point: The code that stands for 0.0; a value of ``q``'s type.

    Returns:
        float32, of the shape of ``q``.

    Raises:
        BadInputError: A parameter is out of its range.
    """
    codes = np.asarray(q)
    _check(scale, zero_point, np.iinfo(codes.dtype))
    steps = codes.astype(np.int64) - zero_point
    return (np.float64(np.float32(scale)) * steps).astype(np.float32)


def _check(scale: float, zero_point: int, info: np.iinfo[Any]) -> None:
    if not (np.isfinite(np.float32(scale)) and np.float32(scale) > 0):
        raise BadInputError("scale is out of range", got=scale, allowed="finite, above 0")
    if not info.min <= zero_point <= info.max:
        raise BadInputError(
            "zero_point is out of range", got=zero_point, allowed=f"{info.min} to {info.max}"
        )
