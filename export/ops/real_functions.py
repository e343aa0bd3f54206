"""The float32 functions of ``ek_math_f32.h`` and ``ek_trigonometry_f32.h``, step by step.

They use integers and additions, multiplications and divisions of float32 alone, so that all
targets give the same bits, and no library of mathematical functions is needed. Their error is
a few units in the last place.
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


TWO_OVER_PI = (
    0x00000000,
    0xA2F9836E,
    0x4E441529,
    0xFC2757D1,
    0xF534DDC0,
    0xDB629599,
    0x3C439041,
    0xFE5163AB,
)
"""The digits of 2 / pi in words of 32 bits, after one of zeros."""

SIN_TERMS = tuple(_F((-1) ** (k // 2) / math.factorial(k)) for k in (9, 7, 5, 3))
COS_TERMS = tuple(_F((-1) ** (k // 2) / math.factorial(k)) for k in (10, 8, 6, 4, 2))


def _reduce_angle(x: Float32Array) -> tuple[NDArray[np.int64], Float32Array]:
    """Returns quadrant and angle, at most pi / 4, for finite x that are at least 0."""
    bits = x.view(np.uint32).astype(np.uint64)
    mantissa = (bits & np.uint64(0x7FFFFF)) | np.uint64(0x800000)
    position = np.maximum((bits >> np.uint64(23)).astype(np.int64) - 150 + 30, 0)
    word, shift = position >> 5, (position & 31).astype(np.uint64)
    digits = np.array([*TWO_OVER_PI, 0, 0, 0], np.uint64)
    carry = np.zeros_like(mantissa)
    product = []
    for i in (2, 1, 0):
        two_words = digits[word + i] << np.uint64(32) | digits[word + i + 1]
        carry = carry + mantissa * ((two_words << shift) >> np.uint64(32))
        product.append(carry & np.uint64(0xFFFFFFFF))
        carry = carry >> np.uint64(32)
    quotient = product[2] << np.uint64(32) | product[1]
    nearest = (quotient + np.uint64(1 << 61)) >> np.uint64(62)
    fraction = (quotient - (nearest << np.uint64(62))).view(np.int64)
    angle = fraction.astype(np.float32) * _F(math.pi / 2**63)
    small = x <= _F(math.pi / 4)
    return np.where(small, 0, (nearest & np.uint64(3)).astype(np.int64)), np.where(small, x, angle)


def _series(z: Float32Array, terms: tuple[np.float32, ...]) -> Float32Array:
    tail = np.full_like(z, terms[0])
    for term in terms[1:]:
        tail = tail * z + term
    return tail


def _sin_in_quadrants(x: Float32Array, quadrants: int) -> Float32Array:
    finite = np.isfinite(x)
    quadrant, angle = _reduce_angle(np.ascontiguousarray(np.where(finite, x, _F(0))))
    quadrant = quadrant + quadrants
    z = angle * angle
    sine = _series(z, SIN_TERMS) * z * angle + angle
    cosine = _series(z, COS_TERMS) * z + _F(1)
    size = np.where(quadrant & 1, cosine, sine)
    return np.where(finite, np.where(quadrant & 2, -size, size), _F(np.nan))


@_silent
def sin_f32(x: Float32Array) -> Float32Array:
    """Computes sin(x)."""
    size = _sin_in_quadrants(np.abs(x), 0)
    return np.where(x < 0, -size, size)


@_silent
def cos_f32(x: Float32Array) -> Float32Array:
    """Computes cos(x)."""
    return _sin_in_quadrants(np.abs(x), 1)
