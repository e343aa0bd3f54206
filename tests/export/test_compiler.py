"""The bundle: stable bytes, clean under strict compilers and sanitizers, every option equal."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekiln.bench.runners import STRICT_FLAGS, CompiledRunner, read_tensor_specs
from edgekiln.bench.verify import random_inputs
from edgekiln.errors import BadInputError
from edgekiln.export.compiler import (
    IO,
    OPTIMIZE,
    REPORT_NAME,
    c_name_of,
    compile_model,
    write_bundle,
)
from edgekiln.export.interpret import run_graph

GOLDEN = Path(__file__).parent.parent / "golden"
MODELS = ["digits_mlp_int8", "digits_cnn_int8"]

SELF_TEST = """
#include <stdio.h>
#include <string.h>
#include "model.h"
#ifdef SEPARATE
static int8_t output[MODEL_OUTPUT_LEN];
#endif
static int8_t arena[MODEL_ARENA_BYTES] __attribute__((aligned(4)));
int main(void) {
#ifdef SEPARATE
    model_invoke(model_golden_input, output, arena);
    const int8_t *found = output;
#else
    memcpy(model_input(arena), model_golden_input, MODEL_INPUT_BYTES);
    model_invoke(arena);
    const int8_t *found = model_output(arena);
#endif
    if (memcmp(found, model_golden_output, MODEL_OUTPUT_BYTES) != 0) { return 1; }
    puts("equal");
    return 0;
}
"""


def model_bytes(name: str) -> bytes:
    return (GOLDEN / f"{name}.tflite").read_bytes()


def build_and_run(directory: Path, command: list[str]) -> str:
    """Builds the self-test with a compiler command and returns what it prints."""
    main = directory / "self_test.c"
    main.write_text(SELF_TEST)
    program = directory / "self_test"
    sources = sorted(str(p) for p in directory.glob("*.c"))
    subprocess.run([*command, f"-I{directory}", *sources, "-o", str(program)], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model_gives_the_same_bytes(name: str) -> None:
    first = compile_model(model_bytes(name), name="model", target="cortex-m4")
    second = compile_model(model_bytes(name), name="model", target="cortex-m4")
    assert first.files == second.files
    assert first.report == second.report
    assert "/tmp" not in "".join(first.files.values())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimize", OPTIMIZE)
def test_every_goal_gives_the_same_outputs(tmp_path: Path, name: str, optimize: str) -> None:
    data = model_bytes(name)
    compiled = compile_model(data, name="model", target="host", optimize=optimize)
    write_bundle(compiled, tmp_path / "c")
    inputs = random_inputs(data, 8, seed=3)
    (got,) = CompiledRunner(tmp_path / "c", flags=STRICT_FLAGS).run(inputs)
    shape = read_tensor_specs(data)[0][0].shape
    for sample in range(8):
        (want,) = run_graph(compiled.graph, [inputs[0][sample].reshape(shape)])
        np.testing.assert_array_equal(got[sample].reshape(-1), want.reshape(-1))


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize(
    "command",
    [
        [
            "cc",
            "-std=c99",
            "-O1",
            *STRICT_FLAGS,
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ],
        ["clang", "-std=c99", "-O2", *STRICT_FLAGS],
        ["c++", "-x", "c++", "-std=c++11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"],
    ],
    ids=["gcc-sanitizers", "clang", "c++"],
)
def test_the_golden_pair_holds_under_every_compiler(
    tmp_path: Path, command: list[str], io: str
) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    compiled = compile_model(model_bytes("digits_cnn_int8"), name="model", io=io)
    write_bundle(compiled, tmp_path / "c")
    defines = ["-DSEPARATE"] if io == "separate" else []
    flags = [flag for flag in command if flag != "-Wmissing-prototypes"]
    assert build_and_run(tmp_path / "c", [*flags, *defines]) == "equal\n"


def test_freestanding_code_needs_only_mem_functions(tmp_path: Path) -> None:
    compiled = compile_model(model_bytes("digits_cnn_int8"), name="model", target="cortex-m4")
    write_bundle(compiled, tmp_path / "c")
    objects = []
    for source in (tmp_path / "c").glob("*.c"):
        objects.append(source.with_suffix(".o"))
        subprocess.run(
            [
                "cc",
                "-std=c99",
                "-O2",
                "-ffreestanding",
                *STRICT_FLAGS,
                "-c",
                source,
                "-o",
                objects[-1],
            ],
            check=True,
        )
    listed = subprocess.run(["nm", "-u", *objects], check=True, capture_output=True, text=True)
    needed = {line.split()[1] for line in listed.stdout.splitlines() if " U " in line}
    outside = {symbol for symbol in needed if not symbol.startswith("model_")}
    assert outside <= {"memcpy", "memset", "__stack_chk_fail"}


def test_the_report_describes_the_bundle() -> None:
    compiled = compile_model(model_bytes("digits_cnn_int8"), name="model")
    report = compiled.report
    assert report["arena_bound_bytes"] <= report["arena_bytes"] < report["live_set_bytes"]
    assert report["macs"] == sum(node["macs"] for node in report["nodes"])
    assert set(report["files"]) == set(compiled.files)
    assert [i["shape"] for i in report["inputs"]] == [[1, 8, 8, 1]]
    assert f"#define MODEL_ARENA_BYTES {report['arena_bytes']}\n" in compiled.files["model.h"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "9lives"}, "--name: not a name for C code; got '9lives'"),
        ({"name": "while"}, "--name: not a name for C code; got 'while'"),
        ({"target": "z80"}, "--target: no such target; got z80; allowed: aarch64, .*generic"),
        ({"optimize": "beauty"}, "--optimize: unknown goal; got beauty"),
        ({"io": "magic"}, "--io: unknown form; got magic"),
        ({"golden_input": np.zeros(3, np.int8)}, "input .* got int8 .3,."),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"name": "model", **options}
    with pytest.raises(BadInputError, match=message):
        compile_model(model_bytes("digits_mlp_int8"), **arguments)  # type: ignore[arg-type]


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    compiled = compile_model(model_bytes("digits_mlp_int8"), name="model")
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(BadInputError, match="the directory holds other files"):
        write_bundle(compiled, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "three years"
    write_bundle(compiled, tmp_path / "c")
    write_bundle(compiled, tmp_path / "c")
    assert (tmp_path / "c" / REPORT_NAME).exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_names_for_c_come_from_file_names() -> None:
    names = {c_name_of(Path(p)) for p in ("a/KWS ref.v2.tflite", "9x.tflite", "int.tflite", ".t")}
    assert names == {"kws_ref", "model_9x", "model_int", "model"}
