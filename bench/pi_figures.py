"""The generated C against LiteRT on a Raspberry Pi's cores, counted in instructions.

``make pi-figures`` compiles each MLPerf Tiny model for cores without and with dot products,
checks its bytes against TensorFlow Lite Micro's, counts it and LiteRT's XNNPACK with one
thread under QEMU's user mode, and writes docs/aarch64.md and docs/aarch64.json. A test counts
the generated C again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgekiln.bench.figures import MODELS
from edgekiln.bench.pi_counts import CORES, LITERT, ProcessCount, count_generated, count_litert
from edgekiln.bench.runners import TflmRunner
from edgekiln.bench.verify import random_inputs
from edgekiln.console import say, track
from edgekiln.errors import CheckFailedError, EdgekilnError
from edgekiln.export.compiler import compile_model
from edgekiln.files import read_input_file, write_json, write_text
from edgekiln.firmware.linux.runner.program import OPTIMIZATION, default_toolchain
from edgekiln.firmware.toolchain import compiler_version

SAMPLES = 3
SEED = 0

_HEAD = """\
# Instructions on a Raspberry Pi's cores

One inference of the MLPerf Tiny reference models (github.com/mlcommons/tiny), by the
generated C and by LiteRT ({litert} from PyPI, XNNPACK, one thread), with the
same inputs. All of it is emulated: QEMU's user mode counts instructions, exactly. They
are not cycles, and say nothing of caches.

The generated C is counted from the entry of invoke to its return, with the C library's
functions that it calls. Of LiteRT's invoke only the instructions of its own library
count: neither Python's nor the C library's. Each figure is the mean over {samples} inputs.
Every output byte of the generated C equals TensorFlow Lite Micro's; XNNPACK rounds
differently. SDOT is how many of the instructions are dot products (16 multiplications
each), as executed.

Made by `make pi-figures MODELS=<directory mlperf_tiny>` with
{toolchain}, at {optimization}.
"""


@dataclass(frozen=True)
class PiFigures:
    """What one inference of a model takes on one core.

    Attributes:
        model: Its short name, a key of `MODELS`.
        target: The compiler's target, a key of `CORES`.
        macs: Multiply-accumulates.
        instructions: Of the generated C.
        dot_products: SDOT instructions among them.
        litert_instructions: Of LiteRT's library.
        litert_dot_products: SDOT instructions among them.
    """

    model: str
    target: str
    macs: int
    instructions: int
    dot_products: int
    litert_instructions: int
    litert_dot_products: int

    @property
    def ratio(self) -> float:
        """The generated C's instructions to LiteRT's."""
        return self.instructions / self.litert_instructions


def count_model(models: Path, name: str, target: str) -> tuple[ProcessCount, int]:
    """Counts the generated C of a model, and returns its multiply-accumulates too.

    Args:
        models: The directory ``mlperf_tiny``.
        name: A key of `MODELS`.
        target: A key of `CORES`.

    Raises:
        CheckFailedError: A byte differs from the oracle's, or dot products are executed where
            they should not be or are missing.
        EdgekilnError: The model or a tool is missing.
    """
    path = models / MODELS[name]
    model = read_input_file(path)
    compiled = compile_model(model, name="m", target=target, where=str(path))
    inputs = random_inputs(model, SAMPLES, SEED)
    counted = count_generated(compiled, inputs[0])
    (want,) = TflmRunner(model).run(inputs)
    if not np.array_equal(counted.outputs, want.reshape(len(want), -1)):
        raise CheckFailedError("output bytes differ from the oracle's", where=f"{path}, {target}")
    if (counted.dot_products > 0) != CORES[target].dot_product:
        raise CheckFailedError(
            "not the instructions of the target",
            where=f"{path}, {target}",
            got=f"{counted.dot_products} dot products",
        )
    return counted, compiled.report["macs"]


def measure_pi_figures(
    models: Path, names: Sequence[str], targets: Sequence[str]
) -> list[PiFigures]:
    """Measures models on cores.

    Args:
        models: The directory ``mlperf_tiny``.
        names: Keys of `MODELS`.
        targets: Keys of `CORES`.

    Raises:
        CheckFailedError: As `count_model` and `count_litert`.
        EdgekilnError: A model or a tool is missing.
    """
    pairs = [(name, target) for target in targets for name in names]
    return [_measure(models, *pair) for pair in track(pairs, "models on a Pi's cores", len(pairs))]


def _measure(models: Path, name: str, target: str) -> PiFigures:
    counted, macs = count_model(models, name, target)
    model = read_input_file(models / MODELS[name])
    (inputs,) = random_inputs(model, SAMPLES, SEED)
    litert = count_litert(model, CORES[target], inputs)
    return PiFigures(
        name,
        target,
        macs,
        counted.instructions,
        counted.dot_products,
        litert.instructions,
        litert.dot_products,
    )


def emit_markdown(figures: Sequence[PiFigures], toolchain: str, litert: str) -> str:
    """Returns docs/aarch64.md."""
    head = _HEAD.format(
        litert=litert, samples=SAMPLES, toolchain=toolchain, optimization=OPTIMIZATION
    )
    lines = head.splitlines()
    for target in dict.fromkeys(f.target for f in figures):
        core = CORES[target]
        flags = " ".join(core.toolchain.cpu_flags)
        lines += [
            "",
            f"## {core.board}",
            "",
            f"`--target {target}`, compiled with `{flags}`; QEMU's `{core.name}`.",
            "",
            "| model | MACs | edgekiln | of it SDOT | LiteRT | of it SDOT | edgekiln / LiteRT |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *(_row(f) for f in figures if f.target == target),
        ]
    return "\n".join([*lines, ""])


def _row(f: PiFigures) -> str:
    cells = (f.macs, f.instructions, f.dot_products, f.litert_instructions, f.litert_dot_products)
    return f"| {f.model} | {' | '.join(f'{cell:,}' for cell in cells)} | {f.ratio:.2f} |"


def read_pi_figures(path: Path) -> Iterator[PiFigures]:
    """Reads docs/aarch64.json."""
    for row in json.loads(path.read_text(encoding="utf-8"))["figures"]:
        yield PiFigures(**row)


def write_pi_figures(models: Path, docs: Path) -> None:
    """Measures everything and writes aarch64.md and aarch64.json.

    Args:
        models: The directory ``mlperf_tiny``.
        docs: Where to write.
    """
    figures = measure_pi_figures(models, tuple(MODELS), tuple(CORES))
    toolchain = compiler_version(default_toolchain("aarch64"))
    rows: list[Mapping[str, object]] = [asdict(f) for f in figures]
    content = {"emulated": True, "toolchain": toolchain, "litert": LITERT, "figures": rows}
    write_json(docs / "aarch64.json", content)
    write_text(docs / "aarch64.md", emit_markdown(figures, toolchain, LITERT))


def main(arguments: Sequence[str]) -> int:
    """Runs `write_pi_figures`: ``python -m edgekiln.bench.pi_figures MODELS DOCS``."""
    if len(arguments) != 2:
        say("usage: python -m edgekiln.bench.pi_figures MLPERF_TINY_DIRECTORY DOCS_DIRECTORY")
        return 2
    try:
        write_pi_figures(Path(arguments[0]), Path(arguments[1]))
    except EdgekilnError as error:
        say(f"edgekiln: error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
