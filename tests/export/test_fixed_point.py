"""The fixed-point arithmetic against its definitions, value by value."""

from __future__ import annotations

import ctypes
import math
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgekiln.bench.compiled import STRICT_FLAGS, find_host_compiler
from edgekiln.export import fixed_point as fp

INT32 = st.integers(-(2**31), 2**31 - 1)
MULTIPLIERS = st.integers(2**30, 2**31 - 1)


def round_half_away(value: Fraction) -> int:
    sign = -1 if value < 0 else 1
    return sign * math.floor(abs(value) + Fraction(1, 2))


def array(value: int) -> fp.Int64Array:
    return np.array([value], np.int64)


@given(INT32, st.integers(-(2**31) + 1, 2**31 - 1))
@example(-(2**30), 1)
@example(2**30, -1)
def test_doubling_high_mul_is_the_truncating_division_with_a_nudge(a: int, b: int) -> None:
    product = a * b
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    want = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)
    assert int(fp.doubling_high_mul(array(a), b)[0]) == want


@pytest.fixture(scope="module")
def high_mul_by_halves(root: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    directory = tmp_path_factory.mktemp("halves")
    (directory / "a.c").write_text(
        '#include "ek_common.h"\n'
        "void multiply(const int32_t *a, const int32_t *b, int32_t *y, int32_t n);\n"
        "void multiply(const int32_t *a, const int32_t *b, int32_t *y, int32_t n)\n"
        "{ for (int32_t i = 0; i < n; ++i)"
        " { y[i] = ek_doubling_high_mul_by_halves(a[i], b[i]); } }\n"
    )
    library = directory / "a.so"
    sanitizer = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    command = [*find_host_compiler(), *STRICT_FLAGS, *sanitizer, "-O1", "-shared", "-fPIC"]
    command += [f"-I{root / 'export/kernels'}", str(directory / "a.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def test_doubling_high_mul_by_halves_is_the_same(high_mul_by_halves: ctypes.CDLL) -> None:
    """Without a product wider than 32 bits, as on Armv6-M: edges with edges, then at random."""
    near = [0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**30, 2**31 - 0x8000, 2**31 - 1]
    edges = sorted({sign * n + d for n in near for sign in (-1, 1) for d in (-1, 0, 1)})
    edges = [n for n in edges if -(2**31) <= n < 2**31]
    a, b = (axis.reshape(-1) for axis in np.meshgrid(edges, edges))
    random = np.random.default_rng(0).integers(-(2**31), 2**31, (2, 300_000))
    a, b = np.concatenate([a, random[0]]), np.concatenate([b, random[1]])
    keep = (a != -(2**31)) | (b != -(2**31))
    a, b = a[keep].astype(np.int32), b[keep].astype(np.int32)
    got = np.empty_like(a)
    arrays = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, got)]
    high_mul_by_halves.multiply(*arrays, ctypes.c_int32(len(a)))
    want = fp.doubling_high_mul(a.astype(np.int64), b.astype(np.int64))
    np.testing.assert_array_equal(got, want)


@given(INT32, st.integers(0, 31))
def test_rounding_divide_by_pot_rounds_halves_away_from_zero(x: int, exponent: int) -> None:
    want = round_half_away(Fraction(x, 2**exponent))
    assert int(fp.rounding_divide_by_pot(array(x), exponent)[0]) == want


@given(st.floats(1e-9, 1000.0))
def test_a_multiplier_is_the_nearest_of_31_bits(real: float) -> None:
    m = fp.quantize_multiplier(real)
    assert 2**30 <= m.multiplier < 2**31
    assert -31 <= m.shift <= 30
    assert abs(m.multiplier * 2.0 ** (m.shift - 31) / real - 1.0) <= 2.0**-31


def test_tiny_and_zero_multipliers_vanish() -> None:
    assert fp.quantize_multiplier(0.0) == fp.Multiplier(0, 0)
    assert fp.quantize_multiplier(2.0**-33) == fp.Multiplier(0, 0)


@given(st.integers(-(2**22), 2**22), MULTIPLIERS, st.integers(-20, 6))
def test_scaling_rounds_twice(x: int, multiplier: int, shift: int) -> None:
    left, right = max(shift, 0), max(-shift, 0)
    high = math.floor(Fraction((x << left) * multiplier, 2**31) + Fraction(1, 2))
    want = round_half_away(Fraction(high, 2**right))
    got = fp.multiply_by_quantized_multiplier(array(x), multiplier, shift)
    assert int(got[0]) == want


def test_exp_logistic_tanh_and_reciprocal_are_close_to_the_real_functions() -> None:
    x = -np.linspace(0, 15.9, 5000)
    codes = (x * 2.0**26).astype(np.int64)  # Q5
    np.testing.assert_allclose(fp.exp_on_negative_values(codes, 5) / 2.0**31, np.exp(x), atol=2e-7)
    both = np.linspace(-7.9, 7.9, 5001)
    codes = (both * 2.0**27).astype(np.int64)  # Q4
    np.testing.assert_allclose(fp.logistic(codes, 4) / 2.0**31, 1 / (1 + np.exp(-both)), atol=1e-6)
    np.testing.assert_allclose(fp.tanh(codes, 4) / 2.0**31, np.tanh(both), atol=1e-6)
    sums = np.array([2**19, 2**19 + 1, 3 * 2**19, 10 * 2**19, 2**30])
    scale, bits = fp.reciprocal(sums, 12)
    np.testing.assert_allclose(scale * 2.0 ** (-31.0 - bits), 2.0**19 / sums, rtol=1e-6)
