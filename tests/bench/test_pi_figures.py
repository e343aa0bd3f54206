"""The committed counts on a Raspberry Pi's cores still hold, and are LiteRT's or below."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from emulated import require_aarch64

from edgekiln.bench.figures import MODELS
from edgekiln.bench.pi_counts import CORES, LITERT, count_litert
from edgekiln.bench.pi_figures import (
    SAMPLES,
    SEED,
    count_model,
    emit_markdown,
    read_pi_figures,
)
from edgekiln.bench.runners import LiteRTRunner, tflm_available
from edgekiln.bench.verify import random_inputs
from edgekiln.errors import ToolMissingError
from edgekiln.firmware.linux.runner.program import default_toolchain
from edgekiln.firmware.toolchain import compiler_version

DOCS = Path(__file__).parent.parent.parent / "docs"
COMMITTED = {(f.model, f.target): f for f in read_pi_figures(DOCS / "aarch64.json")}
TOOLCHAIN = json.loads((DOCS / "aarch64.json").read_text(encoding="utf-8"))["toolchain"]


@pytest.fixture(autouse=True)
def cache() -> None:
    """Debian's packages take a minute to download: these tests share them with the user."""


def test_every_model_and_core_is_there() -> None:
    assert set(COMMITTED) == {(model, target) for model in MODELS for target in CORES}


def test_the_page_is_made_from_the_figures() -> None:
    text = (DOCS / "aarch64.md").read_text(encoding="utf-8")
    assert text == emit_markdown(list(COMMITTED.values()), TOOLCHAIN, LITERT)


@pytest.mark.parametrize(("model", "target"), COMMITTED)
def test_not_more_instructions_than_litert(model: str, target: str) -> None:
    figures = COMMITTED[model, target]
    assert figures.instructions <= figures.litert_instructions
    for dot_products in (figures.dot_products, figures.litert_dot_products):
        assert (dot_products > figures.macs / 20) == CORES[target].dot_product


@pytest.mark.emulator
@pytest.mark.skipif(not tflm_available(), reason="the tflite-micro wheel is not installed")
@pytest.mark.parametrize(("model", "target"), COMMITTED)
def test_the_generated_c_takes_what_the_page_says(model: str, target: str, shared: Path) -> None:
    require_aarch64()
    counted, macs = count_model(shared / "models" / "mlperf_tiny", model, target)
    before = COMMITTED[model, target]
    assert macs == before.macs
    if compiler_version(default_toolchain("aarch64")) == TOOLCHAIN:
        assert counted.instructions == before.instructions
        assert counted.dot_products == before.dot_products
    else:
        assert counted.instructions <= 1.03 * before.instructions


@pytest.mark.emulator
@pytest.mark.parametrize("target", CORES)
def test_litert_takes_what_the_page_says(target: str, shared: Path) -> None:
    require_aarch64("unshare")
    model = (shared / "models" / "mlperf_tiny" / MODELS["ad"]).read_bytes()
    (inputs,) = random_inputs(model, SAMPLES, SEED)
    try:
        counted = count_litert(model, CORES[target], inputs)
    except ToolMissingError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            raise
        pytest.skip(str(error))
    before = COMMITTED["ad", target]
    assert counted.instructions == before.litert_instructions
    assert counted.dot_products == before.litert_dot_products
    (want,) = LiteRTRunner(model).run((inputs,))
    np.testing.assert_array_equal(counted.outputs, want.reshape(counted.outputs.shape))
