"""Fused activations: the clamp that TensorFlow Lite applies to an operator's output."""

from __future__ import annotations

import enum

import numpy as np

from edgekiln.export.fixed_point import INT8_MAX, INT8_MIN, round_half_away_f32
from edgekiln.export.ir import Quantization


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


def activation_range(activation: Activation, q: Quantization) -> tuple[int, int]:
    """Returns the smallest and largest int8 output (``CalculateActivationRangeQuantized``)."""
    low, high = INT8_MIN, INT8_MAX
    if activation in (Activation.RELU, Activation.RELU6):
        low = max(low, quantize_f32(0.0, q))
    if activation is Activation.RELU6:
        high = min(high, quantize_f32(6.0, q))
    if activation is Activation.RELU_N1_TO_1:
        low, high = max(low, quantize_f32(-1.0, q)), min(high, quantize_f32(1.0, q))
    return low, high
