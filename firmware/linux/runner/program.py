"""Builds the C program of a model for a board that runs Linux."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.files import write_json, write_text
from edgekiln.firmware.boards import Toolchain, load_board
from edgekiln.firmware.bundle import Bundle, TensorInfo, read_bundle
from edgekiln.firmware.image import Image, measure_objects
from edgekiln.firmware.toolchain import STRICT_FLAGS, compiler_version, find_tool, first_error

RUNNER = Path(__file__).parent
PROGRAM_NAME = "edgekiln-model"
HEADER_NAME = "ek_run_model.h"

OPTIMIZATION = "-O3"  # on aarch64 up to a fifth fewer instructions than at -O2
_FLAGS = ("-std=c99", OPTIMIZATION, "-ffunction-sections", "-fdata-sections")
_LINK_FLAGS = ("-static", "-s", "-Wl,--gc-sections")
_C_TYPES = {
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "uint8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "uint32": "uint32_t",
    "int64": "int64_t",
    "float32": "float",
}


@dataclass(frozen=True)
class Program:
    """The program of a model.

    Attributes:
        path: Where it lies.
        architecture: What it runs on, as in `edgekiln.firmware.linux.facts.Facts`.
        bundle: The generated C that it was made from.
        flags: The C compiler's flags.
        bytes: Its size.
        section_bytes: Sizes without the C library, as `edgekiln.firmware.image.Image` names them.
        toolchain: The C compiler and its version.
    """

    path: Path
    architecture: str
    bundle: Bundle
    flags: tuple[str, ...]
    bytes: int
    section_bytes: Mapping[str, int]
    toolchain: str

    def as_image(self, board: str) -> Image:
        """Returns what is known of the program as of any board's image.

        Args:
            board: The board's slug.
        """
        bundle = self.bundle
        return Image(
            name=bundle.name,
            board=board,
            model_sha256=bundle.model_sha256,
            elf=self.path,
            bin=None,
            hex=None,
            uf2=None,
            inputs=bundle.inputs,
            outputs=bundle.outputs,
            nodes=bundle.nodes,
            macs=bundle.macs,
            arena_bytes=bundle.arena_bytes,
            state_bytes=bundle.state_bytes,
            stack_reserve_bytes=0,
            toolchain=self.toolchain,
            flags=" ".join(self.flags),
            **self.section_bytes,
        )


def build_program(
    bundle: Path, architecture: str, output: Path, *, toolchain: Toolchain | None = None
) -> Program:
    """Compiles a bundle into a program that needs no library on the board.

    Args:
        bundle: The directory that `edgekiln compile` wrote.
        architecture: What it shall run on: aarch64, armv7l or x86_64.
        output: The program's path.
        toolchain: The C compiler; by default the one for the smallest core of this kind that the
            board rpi has.

    Raises:
        ToolMissingError: The C compiler for that architecture is not installed.
        BadInputError: There is none, the bundle cannot be used, or it does not compile.
    """
    toolchain = toolchain or default_toolchain(architecture)
    compiler = find_tool(toolchain, "gcc")
    read = read_bundle(bundle)
    flags = (*toolchain.cpu_flags, *_FLAGS, *STRICT_FLAGS)
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as temporary:
        made = Path(temporary) / PROGRAM_NAME
        write_text(Path(temporary) / HEADER_NAME, emit_run_model(read))
        sources = {"app_main": RUNNER / "main.c", "app_golden": bundle / read.golden_source}
        for name in read.sources:
            sources[f"model{Path(name).stem.removeprefix(read.name) or '_code'}"] = bundle / name
        objects = []
        for name, source in sources.items():
            objects.append(Path(temporary) / f"{name}.o")
            options = [f"-I{temporary}", f"-I{bundle.resolve()}", "-c", str(source.resolve())]
            _compile([compiler, *flags, *options, "-o", str(objects[-1])], toolchain)
        linked = [*map(str, objects), *_LINK_FLAGS]
        _compile([compiler, *flags, *linked, "-o", str(made)], toolchain)
        section_bytes = measure_objects(objects)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made, output)
    return Program(
        path=output,
        architecture=architecture,
        bundle=read,
        flags=flags,
        bytes=output.stat().st_size,
        section_bytes=section_bytes,
        toolchain=compiler_version(toolchain),
    )


def save_program(program: Program, path: Path) -> None:
    """Writes what is known of a program beyond its file and the generated C, as JSON."""
    write_json(
        path,
        {
            "architecture": program.architecture,
            "flags": program.flags,
            "section_bytes": dict(program.section_bytes),
            "toolchain": program.toolchain,
        },
    )


def load_program(path: Path, program: Path, bundle: Path) -> Program:
    """Reads what `save_program` wrote.

    Args:
        path: The JSON file.
        program: The program's file.
        bundle: The generated C that it was made from.
    """
    about = json.loads(path.read_text(encoding="utf-8"))
    return Program(
        path=program,
        architecture=about["architecture"],
        bundle=read_bundle(bundle),
        flags=tuple(about["flags"]),
        bytes=program.stat().st_size,
        section_bytes=about["section_bytes"],
        toolchain=about["toolchain"],
    )


def default_toolchain(architecture: str) -> Toolchain:
    """Returns the C compiler for the smallest core of an architecture that Raspberry Pis have had.

    Raises:
        BadInputError: There is none.
    """
    linux = load_board("rpi").linux
    assert linux is not None
    core = linux.find_core(architecture, frozenset())
    if core is None:
        raise BadInputError(
            "no C compiler is known for this architecture",
            got=architecture,
            allowed=", ".join(dict.fromkeys(core.architecture for core in linux.cores)),
        )
    return core.toolchain


def emit_run_model(bundle: Bundle) -> str:
    """Returns the text of ek_run_model.h: what main.c has to know of a model."""
    name, first = bundle.name, bundle.outputs[0]
    quantized = first.scale is not None and first.dtype != "float32"
    state = f"static {name}_state state;" if bundle.state_bytes else ""
    invoke = f"{name}_invoke(arena, &state)" if bundle.state_bytes else f"{name}_invoke(arena)"
    reset = f"{name}_reset(&state)" if bundle.state_bytes else "((void)0)"
    lines = [
        "/* Made by edgekiln for the runner's main.c; do not edit. */",
        "#ifndef EK_RUN_MODEL_H",
        "#define EK_RUN_MODEL_H",
        f'#include "{name}.h"',
        f'#define EK_RUN_NAME "{name}"',
        f"#define EK_RUN_ARENA_BYTES {bundle.arena_bytes}",
        f"#define EK_RUN_INPUT_BYTES {sum(tensor.bytes for tensor in bundle.inputs)}",
        f"#define EK_RUN_OUTPUT_BYTES {sum(tensor.bytes for tensor in bundle.outputs)}",
        "/* offset in the arena, bytes */",
        f"#define EK_RUN_INPUTS {_emit_spans(bundle.inputs)}",
        f"#define EK_RUN_OUTPUTS {_emit_spans(bundle.outputs)}",
        f"#define EK_RUN_GOLDEN_INPUTS {_emit_golden(name, 'input', bundle.inputs)}",
        f"#define EK_RUN_GOLDEN_OUTPUTS {_emit_golden(name, 'output', bundle.outputs)}",
        "/* The first output: its scores are what is printed. */",
        f"#define EK_RUN_OUTPUT_TYPE {_C_TYPES[first.dtype]}",
        f"#define EK_RUN_OUTPUT_LEN (EK_RUN_FIRST_BYTES / sizeof({_C_TYPES[first.dtype]}))",
        f"#define EK_RUN_FIRST_BYTES {first.bytes}u",
        f"#define EK_RUN_OUTPUT_SCALE {first.scale if quantized else 1.0!r}",
        f"#define EK_RUN_OUTPUT_ZERO_POINT ({first.zero_point if quantized else 0})",
        f"#define EK_RUN_DEFINE_STATE {state}",
        f"#define EK_RUN_INVOKE(arena) {invoke}",
        f"#define EK_RUN_RESET() {reset}",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _emit_spans(tensors: tuple[TensorInfo, ...]) -> str:
    return f"{{{', '.join(f'{{{tensor.offset}u, {tensor.bytes}u}}' for tensor in tensors)}}}"


def _emit_golden(name: str, kind: str, tensors: tuple[TensorInfo, ...]) -> str:
    if len(tensors) == 1:
        return f"{{{name}_golden_{kind}}}"
    return f"{{{', '.join(f'{name}_golden_{kind}_{i}' for i in range(len(tensors)))}}}"


def _compile(argv: list[str], toolchain: Toolchain) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return
    if "stdint.h: No such file" in done.stderr or "cannot find -lc" in done.stderr:
        raise ToolMissingError(
            "the C library for the board is not installed",
            hint=f"install it with: apt-get install {' '.join(toolchain.packages)}",
        )
    raise BadInputError(f"the program does not compile: {first_error(done.stderr)}")
