"""The C array: compiled by real compilers, read back, and run by TensorFlow Lite Micro."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekiln.errors import BadInputError, BadModelError
from edgekiln.export.c_array import write_c_array

GOLDEN = Path(__file__).parent.parent / "golden"
MODEL = (GOLDEN / "digits_cnn_int8.tflite").read_bytes()

WARNINGS = [
    *("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wsign-conversion", "-Wshadow"),
    *("-Wundef", "-Wcast-align", "-Wcast-qual", "-Wdouble-promotion", "-Werror"),
]
C_WARNINGS = [*WARNINGS, "-Wvla", "-Wmissing-prototypes"]

#: Writes the array to stdout; fails if it is not aligned.
READER = """
#include <stdint.h>
#include <stdio.h>
#include "{name}_tflite.h"
int main(void)
{{
    if ((uintptr_t){name}_tflite % 16u != 0u) {{
        return 3;
    }}
    return fwrite({name}_tflite, 1, {name}_tflite_len, stdout) == {name}_tflite_len ? 0 : 4;
}}
"""

#: The compiler of the array, its flags, and the compiler of the program that includes the header.
BUILDS = {
    "gcc-c99": (["gcc", "-std=c99", *C_WARNINGS], ["gcc", "-std=c99", *C_WARNINGS]),
    "gcc-c11": (["gcc", "-std=c11", *C_WARNINGS], ["gcc", "-std=c11", *C_WARNINGS]),
    "gcc-c17": (["gcc", "-std=c17", *C_WARNINGS], ["gcc", "-std=c17", *C_WARNINGS]),
    "clang-c99": (["clang", "-std=c99", *C_WARNINGS], ["clang", "-std=c99", *C_WARNINGS]),
    "clang-c11": (["clang", "-std=c11", *C_WARNINGS], ["clang", "-std=c11", *C_WARNINGS]),
    "g++-98": (["g++", "-std=c++98", *WARNINGS], ["g++", "-std=c++11", *WARNINGS]),
    "g++-17": (["g++", "-std=c++17", *WARNINGS], ["g++", "-std=c++17", *WARNINGS]),
    "clang++-17": (
        ["clang++", "-std=c++17", *WARNINGS],
        ["clang++", "-std=c++17", *WARNINGS],
    ),
    "c-array-c++-program": (["gcc", "-std=c99", *C_WARNINGS], ["g++", "-std=c++17", *WARNINGS]),
    "c++-array-c-program": (["g++", "-std=c++17", *WARNINGS], ["gcc", "-std=c99", *C_WARNINGS]),
}


def run(*command: object) -> bytes:
    result = subprocess.run([str(part) for part in command], capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


def compile_object(compiler: list[str], source: Path) -> Path:
    language = "c++" if "++" in compiler[0] else "c"
    output = source.with_suffix(".o")
    run(*compiler, "-x", language, "-c", source, "-o", output)
    return output


@pytest.mark.parametrize("build", BUILDS)
def test_the_bytes_come_back_through_a_compiler(build: str, tmp_path: Path) -> None:
    array_compiler, program_compiler = BUILDS[build]
    for compiler in (array_compiler[0], program_compiler[0]):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
    _, source = write_c_array(MODEL, "digits", tmp_path)
    program = tmp_path / "reader.c"
    program.write_text(READER.format(name="digits"))
    objects = [compile_object(array_compiler, source), compile_object(program_compiler, program)]
    linker = "g++" if "++" in array_compiler[0] + program_compiler[0] else array_compiler[0]
    run(linker, *objects, "-o", tmp_path / "reader")
    assert run(tmp_path / "reader") == MODEL


def test_tensorflow_lite_micro_runs_the_compiled_bytes(tmp_path: Path) -> None:
    runtime = pytest.importorskip("tflite_micro").runtime
    _, source = write_c_array(MODEL, "digits", tmp_path)
    program = tmp_path / "reader.c"
    program.write_text(READER.format(name="digits"))
    run("cc", "-std=c99", source, program, "-o", tmp_path / "reader")
    outputs = []
    for model in (run(tmp_path / "reader"), MODEL):
        interpreter = runtime.Interpreter.from_bytes(model)
        for sample in np.load(GOLDEN / "digits_inputs.npz")["inputs"]:
            interpreter.set_input(sample[np.newaxis], 0)
            interpreter.invoke()
            outputs.append(np.array(interpreter.get_output(0)[0]))
    np.testing.assert_array_equal(outputs[:32], outputs[32:])
    labels = np.load(GOLDEN / "digits_inputs.npz")["labels"]
    assert np.count_nonzero(np.argmax(outputs[:32], axis=1) == labels) >= 31


@pytest.mark.parametrize("length", [1, 11, 12, 13, 256])
def test_every_length_and_byte(length: int, tmp_path: Path) -> None:
    data = bytes(range(256))[:length]
    _, source = write_c_array(data, "m", tmp_path)
    program = tmp_path / "reader.c"
    program.write_text(READER.format(name="m"))
    run("cc", "-std=c99", *C_WARNINGS, source, program, "-o", tmp_path / "reader")
    assert run(tmp_path / "reader") == data


def test_the_files_say_what_they_hold(tmp_path: Path) -> None:
    header, source = write_c_array(MODEL, "digits_cnn", tmp_path)
    assert (header.name, source.name) == ("digits_cnn_tflite.h", "digits_cnn_tflite.c")
    text = header.read_text()
    assert "extern const unsigned char digits_cnn_tflite[];" in text
    assert "extern const unsigned int digits_cnn_tflite_len;" in text
    assert 'extern "C"' in text
    for path in (header, source):
        assert re.findall(r"SHA-256 ([0-9a-f]{64})\n", path.read_text()) == [
            hashlib.sha256(MODEL).hexdigest()
        ]
        assert str(tmp_path) not in path.read_text()
        assert max(map(len, path.read_text().splitlines())) <= 100


def test_the_array_is_constant(tmp_path: Path) -> None:
    _, source = write_c_array(MODEL, "digits", tmp_path)
    symbols = run("nm", compile_object(["gcc", "-std=c99", "-fno-pic"], source)).decode()
    kinds = {name: kind for _, kind, name in (line.split() for line in symbols.splitlines())}
    assert kinds == {"digits_tflite": "R", "digits_tflite_len": "R"}


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    one = [path.read_bytes() for path in write_c_array(MODEL, "m", tmp_path / "one")]
    assert one == [path.read_bytes() for path in write_c_array(MODEL, "m", tmp_path / "two")]


@pytest.mark.parametrize(
    "name", ["", "2fast", "_private", "a-b", "a b", "a\n", "größe", "x;y", '"', "../x", "a.b"]
)
def test_names_that_c_cannot_carry(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="the model's name cannot be used in C"):
        write_c_array(MODEL, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["int", "x", "K9_a", "class"])
def test_names_that_it_can(name: str, tmp_path: Path) -> None:
    _, source = write_c_array(b"1234", name, tmp_path)
    compile_object(["gcc", "-std=c99", *C_WARNINGS], source)
    compile_object(["g++", "-std=c++17", *WARNINGS], source)


def test_an_empty_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match=r"^m: the model is empty$"):
        write_c_array(b"", "m", tmp_path)
    assert list(tmp_path.iterdir()) == []
