"""A pytest plugin that keeps some of the models which tests build: seeds for the fuzzer.

For each operator and input type the smallest model that compiles goes into
tests/golden/operators.tar.xz. Tests may fail meanwhile, for nothing is compared::

    PYTHONPATH=tests/support pytest -p collect_models tests/export
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import everywhere
import pytest
import streams
import tflite_builder

from edgekiln.errors import EdgekilnError
from edgekiln.export.compiler import CompiledModel, compile_model, plan_model

ARCHIVE = Path(__file__).parent.parent / "golden" / "operators.tar.xz"
_LARGEST_BYTES = 6000

_found: dict[str, bytes] = {}
_build_model = tflite_builder.build_model


def _keep(tensors: Any, ops: Any, inputs: Any, outputs: Any, *others: Any, **more: Any) -> bytes:
    model = _build_model(tensors, ops, inputs, outputs, *others, **more)
    names = sorted({op.name.lower() for op in ops})
    kind = tensors[inputs[0]].dtype.lower() if inputs else "none"
    key = f"{'-'.join(names)}-{kind}"
    known = _found.get(key)
    if len(names) <= 4 and len(model) < (len(known) if known else _LARGEST_BYTES):
        try:
            plan_model(model, name="m")
        except EdgekilnError:
            return model
        _found[key] = model
    return model


def _skip_checks(model: bytes, *arguments: Any, **options: Any) -> CompiledModel:
    """Stands in for the comparison with the oracle, which is not wanted here."""
    return compile_model(model, name="m")


tflite_builder.build_model = _keep
everywhere.check_everywhere = _skip_checks
streams.check_stream = _skip_checks


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the archive, the same bytes for the same models."""
    with tarfile.open(ARCHIVE, "w:xz") as archive:
        for key, model in sorted(_found.items()):
            entry = tarfile.TarInfo(f"{key}.tflite")
            entry.size = len(model)
            archive.addfile(entry, io.BytesIO(model))
