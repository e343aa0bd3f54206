"""Fused activations: the clamp that TensorFlow Lite applies to an operator's output."""

from __future__ import annotations

import enum

import numpy as np

from edgekiln.export.fixed_point import round_half_away_f32
from edgekiln.export.ir import DType, Quantization


class Activation(enum.Enum):
    """The fused activation functions of the file format, by their number there."""

    NONE = 0
    RELU = 1
    RELU_N1_TO_1 = 2
    RELU6 = 3
    TANH = 4
    SIGN_BIT = 5

    def __str__(self) -> str:
        return self.name


CLAMPS = (Activation.NONE, Activation.RELU, Activation.RELU_N1_TO_1, Activation.RELU6)
"""The activations that are a clamp, which is all that the int8 kernels fuse."""


def quantize_f32(value: float, q: Quantization) -> int:
    """Quantizes a real number with float32 arithmetic, unclamped (``Quantize``)."""
    return q.zero_point + round_half_away_f32(np.float32(value) / np.float32(q.scale))


FLOAT32_MAX = float(np.finfo(np.float32).max)


def activation_range_f32(activation: Activation) -> tuple[float, float]:
    """Returns the smallest and largest float32 output (``CalculateActivationRange``)."""
    return {
        Activation.RELU: (0.0, FLOAT32_MAX),
        Activation.RELU6: (0.0, 6.0),
        Activation.RELU_N1_TO_1: (-1.0, 1.0),
    }.get(activation, (-FLOAT32_MAX, FLOAT32_MAX))


def activation_range(
    activation: Activation, q: Quantization, dtype: DType = DType.INT8
) -> tuple[int, int]:
    """Returns the smallest and largest output code (``CalculateActivationRangeQuantized``)."""
    bounds = np.iinfo(dtype.value)
    low, high = int(bounds.min), int(bounds.max)
    if activation in (Activation.RELU, Activation.RELU6):
        low = max(low, quantize_f32(0.0, q))
    if activation is Activation.RELU6:
        high = min(high, quantize_f32(6.0, q))
    if activation is Activation.RELU_N1_TO_1:
        low, high = max(low, quantize_f32(-1.0, q)), min(high, quantize_f32(1.0, q))
    return low, high
