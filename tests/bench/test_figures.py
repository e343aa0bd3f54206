"""The committed figures of the MLPerf Tiny models still hold, and stay below their limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.bench.figures import (
    MODELS,
    WAYS,
    Figures,
    emit_markdown,
    measure_figures,
    read_figures,
)
from edgekiln.bench.runners import tflm_available

DOCS = Path(__file__).parent.parent.parent / "docs"
COMMITTED = {(f.model, f.way): f for f in read_figures(DOCS / "figures.json")}

# Instructions of TensorFlow Lite Micro with CMSIS-NN v7 on a Cortex-M4 (GCC 12.2), measured
# once, and of its reference kernels at -O3.
TFLM_CMSIS_NN = {"resnet8": 29_863_097, "kws": 7_697_258, "vww": 24_101_542, "ad": 582_896,
                 "str_ww": 2_227_469}  # fmt: skip
TFLM_REFERENCE = {"resnet8": 132.0e6, "kws": 48.6e6, "vww": 116.6e6, "ad": 1.95e6}
ARENA_RAM = {"resnet8": 36_000, "kws": 9_500, "vww": 38_500, "ad": 768, "str_ww": 6_656}


def test_every_model_and_way_is_there() -> None:
    assert set(COMMITTED) == {(model, way) for model in MODELS for way in WAYS}


def test_the_page_is_made_from_the_figures() -> None:
    text = (DOCS / "figures.md").read_text(encoding="utf-8")
    toolchain = text.split(" with ")[1].split(",\nat -O2")[0]
    assert text == emit_markdown(list(COMMITTED.values()), toolchain)


@pytest.mark.parametrize("model", MODELS)
def test_limits(model: str) -> None:
    generic = COMMITTED[model, "generic kernels"]
    fast = COMMITTED[model, "cortex-m4 kernels"]
    assert generic.instructions <= TFLM_REFERENCE.get(model, generic.instructions)
    assert generic.flash_code_bytes <= 8_192
    assert fast.instructions <= TFLM_CMSIS_NN[model]
    assert fast.flash_code_bytes <= 14_336
    assert COMMITTED[model, "cortex-m4 kernels, ram"].arena_bytes <= ARENA_RAM[model]
    if model == "ad":
        assert COMMITTED[model, "generic kernels, flash"].flash_code_bytes <= 4_096


@pytest.mark.emulator
@pytest.mark.skipif(not tflm_available(), reason="the tflite-micro wheel is not installed")
@pytest.mark.parametrize("way", ["generic kernels", "cortex-m4 kernels"])
@pytest.mark.parametrize("model", MODELS)
def test_nothing_has_grown(shared: Path, model: str, way: str) -> None:
    (now,) = measure_figures(shared / "models" / "mlperf_tiny", [model], [way])
    before = COMMITTED[model, way]
    assert_not_above(now, before, "instructions")
    assert_not_above(now, before, "flash_bytes")
    assert_not_above(now, before, "flash_code_bytes")
    assert_not_above(now, before, "ram_bytes")
    assert now.arena_bytes <= before.arena_bytes
    assert now.live_set_bytes == before.live_set_bytes


def assert_not_above(now: Figures, before: Figures, what: str) -> None:
    """Allows 3 % for another version of the C compiler."""
    assert getattr(now, what) <= 1.03 * getattr(before, what), what
