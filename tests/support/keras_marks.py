"""Marks of the test modules that run Keras in the test's own process."""

from __future__ import annotations

import pytest

KERAS = [
    # One process imports TensorFlow, not every worker.
    pytest.mark.xdist_group("keras"),
    # Keras 3.15 calls np.array on TensorFlow's variables, whose __array__ is of numpy 1.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:keras"
    ),
]
