"""The float32 functions of ``ek_math_f32.h``, operation by operation.

They use additions, multiplications and divisions of float32 alone, so that all targets give
the same bits, and no library of mathematical functions is needed. Their error is a few units
in the last place.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]

_F = np.float32

LOG2_E = _F(1 / math.log(2))
LN2_HIGH = _F(0.693359375)  # ln 2 to 9 bits: its products with small integers are exact
LN2_LOW = _F(math.log(2) - 0.693359375)
EXP_TERMS = tuple(_F(1 / math.factorial(k)) for k in range(7, 1, -1))
ATANH_TERMS = tuple(_F(2 / k) for k in (9, 7, 5, 3))
SQRT_HALF = _F(math.sqrt(0.5))


_silent = np.errstate(all="ignore")  # overflow and division by zero are as in C


def _reduce(x: Float32Array) -> tuple[Float32Array, NDArray[np.int64]]:
    """Returns r in about [-ln 2 / 2, ln 2 / 2] and n with x = r + n * ln 2."""
    n = np.floor(x * LOG2_E + _F(0.5))
    return x - n * LN2_HIGH - n * LN2_LOW, n.astype(np.int64)


def _expm1_of_reduced(r: Float32Array) -> Float32Array:
    tail = np.full_like(r, EXP_TERMS[0])
    for term in EXP_TERMS[1:]:
        tail = tail * r + term
    return tail * (r * r) + r


def _times_power_of_two(x: Float32Array, n: NDArray[np.int64]) -> Float32Array:
    half = n >> 1
    return np.ldexp(np.ldexp(x, half.astype(np.int32)), (n - half).astype(np.int32))


@_silent
def exp_f32(x: Float32Array) -> Float32Array:
    """Computes exp(x)."""
    low, high = _F(-104), _F(89)
    r, n = _reduce(np.where(x > low, np.where(x < high, x, high), low))
    result = _times_power_of_two(_expm1_of_reduced(r) + _F(1), n)
    return np.where(np.isnan(x), x, result)


@_silent
def expm1_f32(x: Float32Array) -> Float32Array:
    """Computes exp(x) - 1 without cancellation near 0."""
    near = np.abs(x) < _F(0.25)
    return np.where(near, _expm1_of_reduced(np.where(near, x, _F(0))), exp_f32(x) - _F(1))


@_silent
def log_f32(x: Float32Array) -> Float32Array:
    """Computes ln(x)."""
    m, e = np.frexp(np.where((x > 0) & np.isfinite(x), x, _F(1)))
    small = m < SQRT_HALF
    m = np.where(small, m * _F(2), m)
    e = (e - small).astype(np.float32)
    s = (m - _F(1)) / (m + _F(1))
    z = s * s
    tail = np.full_like(z, ATANH_TERMS[0])
    for term in ATANH_TERMS[1:]:
        tail = tail * z + term
    result = e * LN2_HIGH + (e * LN2_LOW + (tail * z * s + _F(2) * s))
    special = np.where(x == 0, _F(-np.inf), np.where(x > 0, x, _F(np.nan)))
    return np.where((x > 0) & np.isfinite(x), result, special)


@_silent
def tanh_f32(x: Float32Array) -> Float32Array:
    """Computes tanh(x)."""
    near = np.abs(x) < _F(0.625)
    small = np.where(near, x, _F(0))
    z = small * small
    rational = small * ((z + _F(105)) * z + _F(945)) / ((_F(15) * z + _F(420)) * z + _F(945))
    size = np.minimum(np.abs(x), _F(10))
    far = _F(1) - _F(2) / (exp_f32(_F(2) * size) + _F(1))
    return np.where(np.isnan(x), x, np.where(near, rational, np.where(x < 0, -far, far)))


@_silent
def logistic_f32(x: Float32Array) -> Float32Array:
    """Computes 1 / (1 + exp(-x)), below -9 as exp(x), as the oracle does."""
    return np.where(x < _F(-9), exp_f32(x), _F(1) / (_F(1) + exp_f32(-x)))
