"""`edgekiln verify` of models whose inputs or outputs are float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from everywhere import oracle_is_missing
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench.verify import random_inputs, verify_model

pytestmark = oracle_is_missing


def build(operators: int) -> bytes:
    """The first of: QUANTIZE, RELU, DEQUANTIZE."""
    tensors = [
        BuiltTensor((1, 32), "FLOAT32"),
        BuiltTensor((1, 32), "INT8", (0.02,), (3,)),
        BuiltTensor((1, 32), "INT8", (0.01,), (-128,)),
        BuiltTensor((1, 32), "FLOAT32"),
    ]
    ops = [
        BuiltOp("QUANTIZE", [0], [1], "QuantizeOptions"),
        BuiltOp("RELU", [1], [2]),
        BuiltOp("DEQUANTIZE", [2], [3], "DequantizeOptions"),
    ]
    return build_model(tensors, ops[:operators], [0], [operators])


def test_codes_have_no_tolerance(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(build(2))
    found = verify_model(path, samples=4)
    assert found.match and found.to_json()["tolerance"] is None


def test_the_tolerance_of_real_numbers_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(build(3))
    found = verify_model(path, samples=4)
    assert found.match
    assert found.to_json()["tolerance"] == pytest.approx({"relative": 3e-5, "absolute": 3e-6})


def test_random_real_numbers_have_several_magnitudes() -> None:
    (rows,) = random_inputs(build(3), 40, seed=1)
    assert rows.dtype == np.float32 and rows.shape == (40, 32)
    spreads = rows.std(axis=1)
    assert spreads[::2].min() > 0.5 and spreads.max() / spreads.min() > 50
