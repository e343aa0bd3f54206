"""Pruning and clustering on several devices, and compiled by XLA."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekiln.quantize.sparsity import PolynomialSchedule


@pytest.fixture(scope="module")
def results(root: Path) -> Any:
    program = root / "tests" / "support" / "mirrored_training.py"
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=240, cwd=root
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["mirrored", "jit"])
def test_pruning(results: Any, kind: str) -> None:
    result = results[kind]
    assert result["replicas"] == (2 if kind == "mirrored" else 1)
    assert result["equal"] and result["moved"]
    assert result["zeros"] == [round(0.8 * 320), round(0.8 * 48)]
    schedule = PolynomialSchedule(0.8, 0, 6, 2)
    wanted = [round(48 * schedule.sparsity_at(step)) for step in (0, 2, 2, 4, 4, 6, 6, 6)]
    assert result["zeros_by_step"] == [[count] * result["replicas"] for count in wanted]


@pytest.mark.parametrize("kind", ["mirrored clustered", "jit clustered"])
def test_clustering_of_pruned_weights(results: Any, kind: str) -> None:
    result = results[kind]
    assert result["replicas"] == (2 if kind.startswith("mirrored") else 1)
    assert result["equal"] and result["moved"]
    assert result["zeros"] == [160, 24]
    assert result["distinct"] == [4, 4]
    assert result["zeros_by_step"] == [[24] * result["replicas"]] * 8
