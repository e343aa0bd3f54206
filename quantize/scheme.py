"""The number formats that a model can be converted to."""

from __future__ import annotations

import enum


class Scheme(enum.StrEnum):
    """What the tensors of a ``.tflite`` are made of."""

    #: All as in Keras.
    FLOAT32 = "float32"
    #: Weights float16, which halves the file; computed in float32.
    FLOAT16 = "float16"
    #: Weights int8, except those of fewer than 1024 elements; the rest float32.
    DYNAMIC_RANGE = "dynamic-range"
    #: All int8, biases int32.
    INT8 = "int8"
    #: Activations int16, weights int8, biases int64.
    INT16X8 = "int16x8"

    @property
    def needs_representative(self) -> bool:
        """Whether the ranges of activations are to be measured."""
        return self in (Scheme.INT8, Scheme.INT16X8)
