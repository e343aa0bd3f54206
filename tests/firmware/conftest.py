from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.image import Image, build_image

BOARDS = ("mps2-an386", "mps2-an385", "host")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin is compiled for these tests, not found in the user's cache."""
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def digits_bundle(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Returns the bundle of a digits model (``mlp`` or ``cnn``) for a target, made once."""
    made: dict[tuple[str, str], Path] = {}

    def make(model: str, target: str) -> Path:
        if (model, target) not in made:
            data = (root / f"tests/golden/digits_{model}_int8.tflite").read_bytes()
            directory = tmp_path_factory.mktemp(f"{model}-{target}") / "c"
            write_bundle(compile_model(data, name=f"digits_{model}", target=target), directory)
            made[model, target] = directory
        return made[model, target]

    return make


@pytest.fixture(scope="session")
def digits_image(
    digits_bundle: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Image]:
    """Returns the image of a digits model for a board, built once, warnings as errors."""
    made: dict[tuple[str, str], Image] = {}

    def make(model: str, slug: str) -> Image:
        if (model, slug) not in made:
            board = load_board(slug)
            output = tmp_path_factory.mktemp(f"{model}-{slug}")
            made[model, slug] = build_image(
                digits_bundle(model, board.target), board, output, extra_flags=["-Werror"]
            )
        return made[model, slug]

    return make


@pytest.fixture
def write_toy(tmp_path: Path, write_toy_into: Callable[..., Path]) -> Callable[..., Path]:
    """Returns a function that writes a toy into the test's own directory."""
    return functools.partial(write_toy_into, tmp_path)


@pytest.fixture(scope="session")
def write_toy_into() -> Callable[..., Path]:
    """Returns a function that writes a bundle by hand, for what no model does by itself.

    The toy has an input of 4 bytes at the arena's start and an output of 2 bytes at 8, or such
    outputs as ``outputs`` describes. A state of ``state_bytes`` is an array of bytes.
    """

    def write(
        parent: Path,
        code: str,
        *,
        nodes: int = 1,
        arena_bytes: int = 16,
        constants_bytes: int = 0,
        io: str = "arena",
        dtype: str = "int8",
        outputs: Sequence[Mapping[str, object]] = (),
        state_bytes: int = 0,
    ) -> Path:
        directory = parent / "toy"
        directory.mkdir(exist_ok=True)
        tensor = {"scale": 0.5, "zero_point": -1, "dtype": dtype}
        report = {
            "name": "toy",
            "io": io,
            "model_sha256": "ab" * 32,
            "arena_bytes": arena_bytes,
            "constants_bytes": constants_bytes,
            "macs": 0,
            "peak_node": {"index": 0, "op": "CONV_2D"},
            "inputs": [{**tensor, "name": "x", "shape": [1, 4], "offset": 0, "bytes": 4}],
            "state_bytes": state_bytes,
            "outputs": [
                {"name": "y", **output}
                for output in outputs or [{**tensor, "shape": [1, 2], "offset": 8, "bytes": 2}]
            ],
            "nodes": [
                {
                    "index": index,
                    "op": "CONV_2D",
                    "name": f"conv{index};more",
                    "macs": 0,
                    "constants_bytes": constants_bytes // nodes + index,
                }
                for index in range(nodes)
            ],
            "files": {"toy.c": "", "toy_weights.c": "", "toy_golden.c": "", "toy.h": ""},
        }
        state = (
            f"typedef struct {{ uint8_t bytes[{state_bytes}]; }} toy_state;\n"
            "void toy_reset(toy_state *state);\n"
            "void toy_invoke(int8_t *arena, toy_state *state);\n"
        )
        header = (
            "#include <stdint.h>\n"
            f"#define TOY_ARENA_BYTES {arena_bytes}\n"
            f"{state if state_bytes else 'void toy_invoke(int8_t *arena);'}\n"
            "extern const int8_t toy_golden_input[4];\n"
            "extern const int8_t toy_golden_output[2];\n"
            "#ifndef EK_AFTER_NODE\n#define EK_AFTER_NODE(index, data, bytes) ((void)0)\n#endif\n"
        )
        texts = {
            "compile_report.json": json.dumps(report),
            "toy.h": header,
            "toy.c": f'#include "toy.h"\n{code}\n',
            "toy_weights.c": "typedef int nothing;\n",
            "toy_golden.c": '#include "toy.h"\n'
            "const int8_t toy_golden_input[4] = {1, 2, 3, 4};\n"
            "const int8_t toy_golden_output[2] = {5, 6};\n",
        }
        for name, text in texts.items():
            (directory / name).write_text(text)
        return directory

    return write
