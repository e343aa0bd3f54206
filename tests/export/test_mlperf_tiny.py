"""The five MLPerf Tiny reference models: every node equal to the oracle, in the least RAM."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.bench.divergence import find_first_mismatch
from edgekiln.bench.runners import tflm_available
from edgekiln.bench.verify import random_inputs, verify_model
from edgekiln.export.compiler import compile_model, write_bundle

# Path below models/mlperf_tiny, the largest set of live activations, and the arena, in bytes.
MODELS = {
    "image_classification/pretrainedResnet_quant": (49_152, 33_873),
    "keyword_spotting/kws_ref_model": (16_000, 8_640),
    "visual_wake_words/vww_96_int8": (55_296, 36_896),
    "anomaly_detection/ad01_int8": (768, 768),
    "streaming_wakeword/str_ww_ref_model": (6_656, 3_744),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, shared: Path) -> Path:
    return shared / "models" / "mlperf_tiny" / f"{request.param}.tflite"


def test_the_arena_is_smaller_than_the_live_set(model: Path) -> None:
    report = compile_model(model.read_bytes(), name="m", target="cortex-m4").report
    live_set_bytes, arena_bytes = MODELS[f"{model.parent.name}/{model.stem}"]
    assert report["live_set_bytes"] == live_set_bytes
    assert report["arena_bound_bytes"] <= report["arena_bytes"] <= arena_bytes


@pytest.mark.skipif(not tflm_available(), reason="the tflite-micro wheel is not installed")
def test_every_output_byte_equals_the_oracle(model: Path) -> None:
    found = verify_model(model, samples=20, seed=0)
    assert found.match
    assert found.mismatched_bytes == 0
    assert found.samples == 20


@pytest.mark.skipif(not tflm_available(), reason="the tflite-micro wheel is not installed")
def test_every_node_equals_the_oracle(model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    compiled = compile_model(data, name="m", target="host")
    write_bundle(compiled, tmp_path / "c")
    inputs = random_inputs(data, 4, seed=1)
    for sample in range(4):
        one = tuple(array[sample : sample + 1] for array in inputs)
        assert find_first_mismatch(data, compiled.graph, tmp_path / "c", one) is None
