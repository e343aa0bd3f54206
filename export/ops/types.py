"""The element types as the kernels name them, and checks by type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekiln.export.ir import DType, Graph
from edgekiln.export.ops.base import Op

SUFFIX = {
    DType.INT8: "s8",
    DType.UINT8: "u8",
    DType.INT16: "s16",
    DType.INT32: "s32",
    DType.INT64: "s64",
    DType.FLOAT32: "f32",
    DType.BOOL: "u8",
}
"""How a kernel's name ends, by the type of its tensors."""

QUANTIZED = (DType.INT8, DType.UINT8, DType.INT16)


def bounds(dtype: DType) -> tuple[int, int]:
    """Returns the smallest and the largest value of an integer type."""
    info = np.iinfo(dtype.value)
    return int(info.min), int(info.max)


def first_input_is(*dtypes: DType) -> Callable[[Op, Graph], bool]:
    """Returns a test for a kernel's ``accepts``: is the first input of one of these types?"""
    return lambda op, graph: op.input(graph, 0).dtype in dtypes
