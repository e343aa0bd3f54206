"""The project's figures on the MLPerf Tiny models, as a table that one command makes anew.

``make figures`` compiles each reference model in several ways, runs it on the emulated
Cortex-M4, checks its bytes against TensorFlow Lite Micro's, and writes docs/figures.md and
docs/figures.json. A test compares what it measures with the committed figures.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from edgekiln.bench.device import run_on_board
from edgekiln.bench.runners import TflmRunner
from edgekiln.bench.verify import random_inputs
from edgekiln.console import say, track
from edgekiln.errors import CheckFailedError, EdgekilnError
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.files import read_input_file, write_json, write_text
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.image import build_image
from edgekiln.firmware.toolchain import compiler_version

BOARD = "mps2-an386"
SAMPLES = 2
SEED = 0

MODELS = {
    "resnet8": "image_classification/pretrainedResnet_quant.tflite",
    "kws": "keyword_spotting/kws_ref_model.tflite",
    "vww": "visual_wake_words/vww_96_int8.tflite",
    "ad": "anomaly_detection/ad01_int8.tflite",
    "str_ww": "streaming_wakeword/str_ww_ref_model.tflite",
}
"""The models, by the path below ``mlperf_tiny``."""

WAYS = {
    "generic kernels": ("generic", "balanced"),
    "generic kernels, flash": ("generic", "flash"),
    "cortex-m4 kernels": ("cortex-m4", "balanced"),
    "cortex-m4 kernels, flash": ("cortex-m4", "flash"),
    "cortex-m4 kernels, ram": ("cortex-m4", "ram"),
    "cortex-m4 kernels, time": ("cortex-m4", "time"),
}
"""The ways to compile: the target and the goal."""


@dataclass(frozen=True)
class Figures:
    """What one model takes, compiled in one way.

    Attributes:
        model: Its short name.
        way: A key of `WAYS`.
        macs: Multiply-accumulates of one inference.
        instructions: Instructions of one inference on the emulated board.
        flash_bytes: The linked image.
        flash_code_bytes: The image without the model's tables.
        arena_bytes: All activations, input and output included.
        live_set_bytes: The largest set of activations alive at once.
        ram_bytes: Arena, variables and the stack's measured peak.
    """

    model: str
    way: str
    macs: int
    instructions: int
    flash_bytes: int
    flash_code_bytes: int
    arena_bytes: int
    live_set_bytes: int
    ram_bytes: int


def measure_figures(models: Path, names: Sequence[str], ways: Sequence[str]) -> list[Figures]:
    """Measures models in several ways.

    Args:
        models: The directory ``mlperf_tiny``.
        names: Keys of `MODELS`.
        ways: Keys of `WAYS`.

    Raises:
        CheckFailedError: A byte differs from the oracle's.
        EdgekilnError: A model or a tool is missing.
    """
    pairs = [(name, way) for name in names for way in ways]
    work = track(pairs, "models on " + BOARD, len(pairs))
    return [_measure(models / MODELS[name], name, way) for name, way in work]


def _measure(path: Path, name: str, way: str) -> Figures:
    target, optimize = WAYS[way]
    model = read_input_file(path)
    board = replace(load_board(BOARD), target=target)
    inputs = random_inputs(model, SAMPLES, SEED)
    compiled = compile_model(model, name=name, target=target, optimize=optimize, where=str(path))
    with tempfile.TemporaryDirectory(prefix="edgekiln-figures-") as directory:
        bundle = Path(directory) / "c"
        write_bundle(compiled, bundle)
        image = build_image(bundle, board, Path(directory) / "image")
        run = run_on_board(image, board, inputs, progress=False)
    for got, want in zip(run.outputs, TflmRunner(model).run(inputs), strict=True):
        if not np.array_equal(got, want):
            raise CheckFailedError("output bytes differ from the oracle's", where=f"{path}, {way}")
    if run.instructions is None:
        raise AssertionError("the emulated board counts instructions")
    return Figures(
        name,
        way,
        compiled.report["macs"],
        run.instructions,
        image.flash_bytes,
        image.flash_code_bytes,
        compiled.report["arena_bytes"],
        compiled.report["live_set_bytes"],
        run.ram_bytes,
    )


def emit_markdown(figures: Sequence[Figures], toolchain: str) -> str:
    """Returns docs/figures.md."""
    lines = [
        "# Figures",
        "",
        "The MLPerf Tiny reference models (github.com/mlcommons/tiny) on the emulated board",
        f"`{BOARD}`, a Cortex-M4F. Every output byte of every row equals TensorFlow Lite Micro's.",
        "Instructions are counted exactly by QEMU; they are not cycles. RAM is arena, variables",
        "and the measured peak of the stack; code is the image without the model's tables.",
        "",
        f"Made by `make figures MODELS=<directory mlperf_tiny>` with {toolchain},",
        "at -O2, for the goal flash at -Os.",
    ]
    for way in dict.fromkeys(f.way for f in figures):
        target, optimize = WAYS[way]
        lines += [
            "",
            f"## {way[0].upper()}{way[1:]}",
            "",
            f"`--target {target} --optimize {optimize}`",
            "",
            "| model | MACs | instructions | per MAC | flash | of it code | RAM | arena "
            "| largest live set |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            *(_row(f) for f in figures if f.way == way),
        ]
    return "\n".join([*lines, ""])


def _row(f: Figures) -> str:
    cells = (f.macs, f.instructions, f"{f.instructions / f.macs:.2f}", f.flash_bytes,
             f.flash_code_bytes, f.ram_bytes, f.arena_bytes, f.live_set_bytes)  # fmt: skip
    shown = (cell if isinstance(cell, str) else f"{cell:,}" for cell in cells)
    return f"| {f.model} | {' | '.join(shown)} |"


def read_figures(path: Path) -> Iterator[Figures]:
    """Reads docs/figures.json."""
    for row in json.loads(path.read_text(encoding="utf-8"))["figures"]:
        yield Figures(**row)


def write_figures(models: Path, docs: Path) -> None:
    """Measures everything and writes figures.md and figures.json.

    Args:
        models: The directory ``mlperf_tiny``.
        docs: Where to write.
    """
    figures = measure_figures(models, tuple(MODELS), tuple(WAYS))
    toolchain = compiler_version(load_board(BOARD).toolchain)
    rows: list[Mapping[str, object]] = [asdict(f) for f in figures]
    write_json(docs / "figures.json", {"toolchain": toolchain, "figures": rows})
    write_text(docs / "figures.md", emit_markdown(figures, toolchain))


def main(arguments: Sequence[str]) -> int:
    """Runs `write_figures`: ``python -m edgekiln.bench.figures MODELS DOCS``."""
    if len(arguments) != 2:
        say("usage: python -m edgekiln.bench.figures MLPERF_TINY_DIRECTORY DOCS_DIRECTORY")
        return 2
    try:
        write_figures(Path(arguments[0]), Path(arguments[1]))
    except EdgekilnError as error:
        say(f"edgekiln: error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
