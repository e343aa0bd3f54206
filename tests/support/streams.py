"""Runs models that remember: many independent inferences, and streams without a reset."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from everywhere import Array, compare, random_values

from edgekiln.bench.runners import (
    STRICT_FLAGS,
    CompiledRunner,
    NumpyRunner,
    TflmRunner,
    read_tensor_specs,
)
from edgekiln.export.compiler import CompiledModel, compile_model, write_bundle


def check_stream(
    model: bytes,
    seed: int = 0,
    *,
    steps: int = 6,
    inputs: Sequence[Array] | None = None,
    optimize: str = "time",
    io: str = "arena",
) -> CompiledModel:
    """Compares oracle, numpy and C over a stream, and over the same inputs with resets.

    Args:
        model: A .tflite file with state.
        seed: Of the random inputs.
        steps: Length of the stream.
        inputs: One array ``[steps, ...]`` per model input instead of random ones.
        optimize: As for the compiler.
        io: As for the compiler.

    Returns:
        The compiled model.
    """
    compiled = compile_model(model, name="m", optimize=optimize, target="host", io=io)
    specs, _ = read_tensor_specs(model)
    generator = np.random.default_rng(seed)
    rows = tuple(
        inputs
        or [
            np.stack([random_values(generator, s.batch_shape, s.dtype) for _ in range(steps)])
            for s in specs
        ]
    )
    tolerances = [op.tolerance for op in compiled.graph.ops]
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "c"
        write_bundle(compiled, bundle)
        for keep in (True, False):
            want = TflmRunner(model, keep_state=keep).run(rows)
            c = CompiledRunner(bundle, keep_state=keep, flags=STRICT_FLAGS)
            for runner in (NumpyRunner(model, keep_state=keep), c):
                # Each call of run starts afresh, whatever the one before left behind.
                runner.run(rows)
                for got, wanted in zip(runner.run(rows), want, strict=True):
                    compare(got, wanted, tolerances)
    return compiled
