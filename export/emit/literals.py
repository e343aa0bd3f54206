"""Numbers and arrays as C literals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekiln.export.ir import c_type_of

_INDENT = "    "
_LINE_WIDTH = 98


def c_int(value: int) -> str:
    """Writes an integer so that no compiler warns about its range."""
    if value == -(2**63):
        return "INT64_MIN"
    if value == -(2**31):
        return "INT32_MIN"
    return str(int(value)) if -(2**31) < value < 2**31 else f"INT64_C({value})"


def c_float(value: float) -> str:
    """Writes a float32 so that a C compiler reads the same one (any NaN for a NaN)."""
    if math.isnan(value):
        return "(0.0f / 0.0f)"
    if math.isinf(value):
        return "(1.0f / 0.0f)" if value > 0 else "(-1.0f / 0.0f)"
    text = f"{value:.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def c_scalar(value: int | float) -> str:
    """Writes a kernel's parameter."""
    return c_float(value) if isinstance(value, float) else c_int(value)


def c_declaration(name: str, array: NDArray[Any], space: str = "") -> str:
    """Declares a constant array.

    Args:
        name: Its name.
        array: Its values.
        space: A macro for where it lies, or "" for the memory that all pointers reach.
    """
    where = f"{space} " if space else ""
    return f"const {where}{c_type_of(array)} {name}[{array.size}]"


def c_array(declaration: str, array: NDArray[Any]) -> list[str]:
    """Defines a constant array."""
    literal = c_float if array.dtype.kind == "f" else c_int
    values = [f"{literal(value)}," for value in array.reshape(-1).tolist()]
    values[-1] = values[-1].removesuffix(",")
    return [f"{declaration} = {{", *_wrapped(values), "};", ""]


def _wrapped(words: list[str]) -> Iterator[str]:
    """Yields lines of as many words as go into `_LINE_WIDTH`; quick for millions of them."""
    ends = np.cumsum([len(word) + 1 for word in words])
    first, taken = 0, 0
    while first < len(words):
        room = taken + _LINE_WIDTH - len(_INDENT) + 1
        after = max(int(np.searchsorted(ends, room, side="right")), first + 1)
        yield _INDENT + " ".join(words[first:after])
        first, taken = after, int(ends[after - 1])
