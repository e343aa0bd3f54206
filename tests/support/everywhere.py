"""Runs a built model on the oracle, by numpy and as C, and compares them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.bench.runners import (
    STRICT_FLAGS,
    CompiledRunner,
    LiteRTRunner,
    TflmRunner,
    read_tensor_specs,
    tflm_available,
)
from edgekiln.export.compiler import CompiledModel, compile_model, write_bundle
from edgekiln.export.interpret import run_graph
from edgekiln.export.ops.base import Tolerance

Array = NDArray[Any]

oracle_is_missing = pytest.mark.skipif(
    not tflm_available(), reason="the oracle, the tflite-micro wheel, is not installed"
)


def random_values(
    generator: np.random.Generator, shape: Sequence[int], dtype: np.dtype[Any]
) -> Array:
    """Values over the whole range of an integer type, or real numbers of several magnitudes."""
    if dtype.kind == "f":
        magnitude = 10.0 ** generator.uniform(-2, 1.2)
        return (magnitude * generator.standard_normal(shape)).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(info.min, info.max, shape, dtype, endpoint=True)


def check_everywhere(
    model: bytes,
    seed: int = 0,
    *,
    samples: int = 3,
    inputs: Sequence[Array] | None = None,
    litert: bool = False,
    oracle_model: bytes | None = None,
    optimize: str = "time",
    also: Sequence[str] = (),
) -> CompiledModel:
    """Compares all outputs: integers must be equal, float32 within the operators' tolerance.

    Args:
        model: A .tflite file.
        seed: Of the random inputs.
        samples: Number of random inferences.
        inputs: One array ``[N, ...]`` per model input instead of random ones.
        litert: The oracle is LiteRT's reference kernels, for what TensorFlow Lite Micro lacks.
        oracle_model: What the oracle runs instead: an equivalent model that it can run.
        optimize: As for the compiler.
        also: Further targets, whose kernels have a form that runs here.

    Returns:
        The compiled model, for the last of ``also`` or else for the host.
    """
    compiled = compile_model(model, name="m", optimize=optimize, target="host")
    specs, _ = read_tensor_specs(model)
    generator = np.random.default_rng(seed)
    rows = tuple(
        inputs
        or (
            np.stack([random_values(generator, s.batch_shape, s.dtype) for _ in range(samples)])
            for s in specs
        )
    )
    asked = oracle_model or model
    oracle = LiteRTRunner(asked) if litert else TflmRunner(asked)
    want = oracle.run(rows)
    defined = []
    for sample in range(len(rows[0])):
        shaped = [a[sample].reshape(s.shape) for a, s in zip(rows, specs, strict=True)]
        defined.append(run_graph(compiled.graph, shaped))
    tolerances = [op.tolerance for op in compiled.graph.ops]
    for position, wanted in enumerate(want):
        by_numpy = np.stack([outputs[position] for outputs in defined]).reshape(wanted.shape)
        compare(by_numpy, wanted, tolerances)
    for target in ("host", *also):
        compiled = compile_model(model, name="m", optimize=optimize, target=target)
        with tempfile.TemporaryDirectory() as directory:
            bundle = Path(directory) / "c"
            write_bundle(compiled, bundle)
            ran = CompiledRunner(bundle, flags=STRICT_FLAGS).run(rows)
        for got, wanted in zip(ran, want, strict=True):
            compare(got, wanted, tolerances)
    return compiled


def compare(got: Array, want: Array, tolerances: Sequence[Tolerance]) -> None:
    """Compares two outputs of one dtype."""
    assert got.dtype == want.dtype
    if got.dtype.kind != "f":
        np.testing.assert_array_equal(got, want)
        return
    np.testing.assert_allclose(
        got,
        want,
        rtol=sum(t.relative for t in tolerances),
        atol=sum(t.absolute for t in tolerances),
    )
