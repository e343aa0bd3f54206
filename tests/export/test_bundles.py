"""Packages for other build systems, built as those do and run on this machine.

CMake is the real one. Of Arduino, Zephyr and ESP-IDF, tests/support/build_systems holds what
the packages use of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln import cli
from edgekiln.bench.runners import STRICT_FLAGS
from edgekiln.errors import BadInputError
from edgekiln.export.bundles import BUNDLES, package_files, write_package
from edgekiln.export.compiler import REPORT_NAME, CompiledModel, compile_model

SUPPORT = Path(__file__).parent.parent / "support" / "build_systems"
GOLDEN = Path(__file__).parent.parent / "golden"
CXX_FLAGS = [flag for flag in STRICT_FLAGS if flag != "-Wmissing-prototypes"]

# By name: options of the compiler. Together they have all that the C of a package depends on.
MODELS: dict[str, dict[str, str]] = {
    "digits_mlp": {},
    "digits_cnn": {"io": "separate", "optimize": "flash"},
    "remembering": {},
    "remembering_apart": {"io": "separate"},
}

Unpack = Callable[[str, str], Path]


def svdf() -> bytes:
    """A float32 model with a state, two inputs and two outputs, of which one is int32."""
    generator = np.random.default_rng(0)
    shapes = [(1, 5), (6, 5), (6, 4), (3,), (1, 24), (1, 3), (1, 3), (1, 3), (1,)]
    tensors = [BuiltTensor(shape, "FLOAT32") for shape in shapes]
    for tensor in tensors[1:4]:
        tensor.data = generator.normal(0, 0.5, tensor.shape).astype(np.float32)
    tensors[4].is_variable = True
    tensors[8].dtype = "INT32"
    tensors.append(BuiltTensor((1,), "INT32", data=np.array([1], np.int32)))
    ops = [
        BuiltOp("SVDF", [0, 1, 2, 3, 4], [5], "SVDFOptions", {"Rank": 2}),
        BuiltOp("ADD", [5, 6], [7], "AddOptions"),
        BuiltOp("ARG_MAX", [7, 9], [8], "ArgMaxOptions", {"OutputType": 2}),
    ]
    return build_model(tensors, ops, [0, 6], [7, 8])


def compiled_model(name: str) -> CompiledModel:
    path = GOLDEN / f"{name}_int8.tflite"
    data = path.read_bytes() if path.exists() else svdf()
    return compile_model(data, name=name, **MODELS[name])


@pytest.fixture(scope="module")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Unpack:
    """Returns a package's directory; Arduino's .zip is unpacked, as its IDE does."""
    made: dict[tuple[str, str], Path] = {}

    def make(kind: str, name: str) -> Path:
        if (kind, name) not in made:
            directory = tmp_path_factory.mktemp(f"{kind}-{name}")
            package = write_package(compiled_model(name), kind, directory / "out").path
            if package.suffix == ".zip":
                shutil.unpack_archive(package, directory / "libraries")
                package = directory / "libraries" / package.stem
            made[kind, name] = package
        return made[kind, name]

    return make


def need(program: str) -> str:
    """Returns a compiler or tool; without it the test is skipped, or in CI fails."""
    if shutil.which(program) is None:
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        (pytest.fail if in_ci else pytest.skip)(f"{program} is not installed")
    return program


def run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    """Runs a command that has to succeed, and returns what it prints."""
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def passed(name: str, printed: str) -> bool:
    """Whether an example says that all is well, and goes on to print the golden output."""
    first, *values = printed.splitlines()
    golden = [line for line in values if line.startswith("output")]
    return first == f"{name}: 0 wrong values in the self-test" and len(golden) > 0


# ---- CMake ----


def configure(source: Path, build: Path, *options: str, **environment: str) -> None:
    strict = " ".join(STRICT_FLAGS)
    run(
        need("cmake"),
        *("-S", source, "-B", build, "-Wdev", "-Werror=dev", f"-DCMAKE_C_FLAGS={strict}"),
        *options,
        **environment,
    )
    run("cmake", "--build", build, "--parallel", 2)


@pytest.mark.parametrize("name", MODELS)
def test_cmake_by_itself(unpack: Unpack, tmp_path: Path, name: str) -> None:
    configure(unpack("cmake", name), tmp_path)
    assert "100% tests passed" in run("ctest", "--test-dir", tmp_path)
    printed = run(tmp_path / f"edgekiln_{name}_selftest")
    assert passed(name, printed)


APPLICATION = """
cmake_minimum_required(VERSION 3.15)
project(application LANGUAGES C CXX)
set(CMAKE_CXX_STANDARD 11)
@found@
add_executable(application main.cpp)
target_link_libraries(application PRIVATE edgekiln::digits_mlp)
if(TARGET edgekiln_digits_mlp_selftest)
  message(FATAL_ERROR "the example is for those who build the package by itself")
endif()
"""

MAIN = """
#include <digits_mlp.h>
#include <digits_mlp_selftest.h>
alignas(DIGITS_MLP_ARENA_ALIGNMENT) static int8_t arena[DIGITS_MLP_ARENA_BYTES];
int main() { return static_cast<int>(digits_mlp_selftest(arena)); }
"""


@pytest.mark.parametrize("how", ["add_subdirectory", "find_package"])
def test_cmake_in_an_application_in_cpp(unpack: Unpack, tmp_path: Path, how: str) -> None:
    package = unpack("cmake", "digits_mlp")
    if how == "find_package":
        configure(package, tmp_path / "package", f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'prefix'}")
        run("cmake", "--install", tmp_path / "package")
        found = f"find_package(edgekiln_digits_mlp 0.1 REQUIRED PATHS {tmp_path / 'prefix'})"
    else:
        found = f"add_subdirectory({package} model)"
    (tmp_path / "CMakeLists.txt").write_text(APPLICATION.replace("@found@", found))
    (tmp_path / "main.cpp").write_text(MAIN)
    configure(tmp_path, tmp_path / "build")
    run(tmp_path / "build" / "application")


# ---- build systems that are not here: what the packages use of them is in tests/support ----


def test_zephyr(unpack: Unpack, tmp_path: Path) -> None:
    sample = unpack("zephyr", "digits_mlp") / "samples" / "selftest"
    configure(sample, tmp_path, ZEPHYR_BASE=str(SUPPORT / "zephyr"))
    assert passed("digits_mlp", run(tmp_path / "app"))


def test_zephyr_without_the_self_test(unpack: Unpack, tmp_path: Path) -> None:
    sample = tmp_path / "samples" / "selftest"
    shutil.copytree(unpack("zephyr", "digits_mlp"), tmp_path, dirs_exist_ok=True)
    (sample / "prj.conf").write_text("CONFIG_EDGEKILN_DIGITS_MLP=y\n")
    (sample / "src" / "main.c").write_text(
        "#include <digits_mlp.h>\nstatic int8_t arena[DIGITS_MLP_ARENA_BYTES];\n"
        "int main(void) { digits_mlp_invoke(arena); return 0; }\n"
    )
    configure(sample, tmp_path / "build", ZEPHYR_BASE=str(SUPPORT / "zephyr"))
    (library,) = (tmp_path / "build").rglob("libedgekiln_digits_mlp.a")
    assert sorted(run("ar", "t", library).split()) == ["digits_mlp.c.o", "digits_mlp_weights.c.o"]


def test_esp_idf(unpack: Unpack, tmp_path: Path) -> None:
    example = unpack("esp-idf", "digits_mlp") / "examples" / "selftest"
    configure(example, tmp_path, IDF_PATH=str(SUPPORT / "esp-idf"))
    assert passed("digits_mlp", run(tmp_path / "edgekiln_digits_mlp_selftest"))


@pytest.mark.parametrize("name", MODELS)
def test_arduino(unpack: Unpack, tmp_path: Path, name: str) -> None:
    """All sources below src, with src alone on the path; a sketch is C++ after Arduino.h."""
    library = unpack("arduino", name)
    (sketch,) = library.glob("examples/*/*.ino")
    assert sketch.stem == sketch.parent.name
    cpp = tmp_path / f"{sketch.name}.cpp"
    cpp.write_text(f'#include <Arduino.h>\n#line 1 "{sketch}"\n{sketch.read_text()}')
    flags = ["-Os", "-ffunction-sections", "-fdata-sections", f"-I{library / 'src'}", "-c"]
    objects = []
    for source in [*library.glob("src/**/*.c"), cpp, SUPPORT / "arduino" / "core.cpp"]:
        is_c = source.suffix == ".c"
        strict = [*STRICT_FLAGS, "-std=gnu11"] if is_c else ["-Wall", "-Wextra", "-Werror"]
        command = ["gcc"] if is_c else ["g++", "-std=gnu++11", f"-I{SUPPORT / 'arduino'}"]
        objects.append(tmp_path / f"{source.name}.o")
        run(need(command[0]), *command[1:], *flags, *strict, source, "-o", objects[-1])
    run("g++", "-Wl,--gc-sections", *objects, "-o", tmp_path / "sketch")
    first, *rest = run(tmp_path / "sketch").splitlines()
    assert first == f"{name}: wrong values in the self-test: 0"
    assert rest[-1] == "microseconds: 7" and any(line.startswith("output") for line in rest)


ARDUINO_CORE = Path("/usr/share/arduino/hardware/arduino/avr")
UNO_FLAGS = (
    *("-mmcu=atmega328p", "-DF_CPU=16000000L", "-DARDUINO=10819", "-DARDUINO_ARCH_AVR", "-Os"),
    *("-DARDUINO_AVR_UNO", "-ffunction-sections", "-fdata-sections", "-c"),
)


def test_arduino_on_an_uno(tmp_path: Path) -> None:
    """With Arduino's own core, as Debian packages it, in simavr: the model's tables in flash."""
    if not (ARDUINO_CORE / "cores/arduino/Arduino.h").exists():
        pytest.skip("arduino-core-avr is not installed")
    data = (GOLDEN / "digits_mlp_int8.tflite").read_bytes()
    compiled = compile_model(data, name="digits_mlp", target="avr")
    package = write_package(compiled, "arduino", tmp_path / "out").path
    shutil.unpack_archive(package, tmp_path)
    library = tmp_path / package.stem
    sketch = tmp_path / "sketch.cpp"
    sketch.write_text(f"#include <Arduino.h>\n{next(library.glob('examples/*/*.ino')).read_text()}")
    core = ARDUINO_CORE / "cores" / "arduino"
    paths = (core, ARDUINO_CORE / "variants" / "standard", library / "src")
    includes = [f"-I{path}" for path in paths]
    objects = []
    for source in (sketch, *library.glob("src/**/*.c"), *core.glob("*.c*"), *core.glob("*.S")):
        is_cpp = source.suffix == ".cpp"
        # Arduino brings a later compiler than Debian does, which knows DECIMAL_DIG in C++.
        language = ["-std=gnu++11", "-DDECIMAL_DIG=9"] if is_cpp else ["-std=gnu11"]
        quiet = ["-Wall", "-Wextra"] if source.is_relative_to(tmp_path) else ["-w"]
        objects.append(tmp_path / f"{source.name}.o")
        compiler = need("avr-g++" if is_cpp else "avr-gcc")
        flags = [*UNO_FLAGS, *(language if source.suffix != ".S" else []), *quiet, *includes]
        run(compiler, *flags, source, "-o", objects[-1])
    elf = tmp_path / "sketch.elf"
    run("avr-gcc", "-mmcu=atmega328p", "-Os", "-Wl,--gc-sections", *objects, "-o", elf)
    command = [need("simavr"), "-m", "atmega328p", "-f", "16000000", str(elf)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as simulated:
        assert simulated.stdout is not None
        guard = threading.Timer(60, simulated.kill)
        guard.start()
        try:
            said = [simulated.stdout.readline() for _ in range(12)]
        finally:
            guard.cancel()
            simulated.kill()
    assert "digits_mlp: wrong values in the self-test: 0" in said[0]
    assert "output[5] = 124" in said[6] and "microseconds: " in said[11]


@pytest.mark.parametrize("name", MODELS)
def test_platformio(unpack: Unpack, tmp_path: Path, name: str) -> None:
    """The library is what srcDir holds; the example's sources see includeDir alone."""
    library = unpack("platformio", name)
    build = json.loads((library / "library.json").read_text())["build"]
    include, source = f"-I{library / build['includeDir']}", library / build["srcDir"]
    objects = []
    for file in [*source.rglob("*.c"), library / "examples" / "selftest" / "src" / "main.c"]:
        private = [f"-I{source}"] if file.is_relative_to(source) else []
        objects.append(tmp_path / f"{file.name}.o")
        flags = [*build["flags"], *STRICT_FLAGS, include, *private]
        run(need("gcc"), *flags, "-c", file, "-o", objects[-1])
    run("gcc", *objects, "-o", tmp_path / "selftest")
    assert passed(name, run(tmp_path / "selftest"))


# ---- two files ----

COMPILERS: dict[str, Sequence[str]] = {
    "gcc": ["gcc", "-std=c99", "-O2", *STRICT_FLAGS],
    "gcc-sanitizers": [
        *("gcc", "-std=c99", "-O1", *STRICT_FLAGS),
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    ],
    "clang": ["clang", "-std=c99", "-O2", *STRICT_FLAGS],
    "g++": ["g++", "-x", "c++", "-std=c++11", "-O2", *CXX_FLAGS],
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_two_files(unpack: Unpack, tmp_path: Path, compiler: str, name: str) -> None:
    package = unpack("single", name)
    program, *flags = COMPILERS[compiler]
    sources = [package / "examples" / "selftest.c", package / f"{name}.c"]
    run(need(program), *flags, f"-I{package}", *sources, "-o", tmp_path / "selftest")
    assert passed(name, run(tmp_path / "selftest"))


@pytest.mark.parametrize("name", MODELS)
def test_two_files_for_a_microcontroller(unpack: Unpack, tmp_path: Path, name: str) -> None:
    package = unpack("single", name)
    compiler = [need("arm-none-eabi-gcc"), "-mcpu=cortex-m4", "-mthumb", "-std=c99", "-O2"]
    output = tmp_path / "model.o"
    compile_ = [*compiler, *STRICT_FLAGS, "-c", package / f"{name}.c", "-o", output]
    run(*compile_)
    symbols = run("arm-none-eabi-nm", "--defined-only", "--extern-only", output)
    named = {line.split()[-1] for line in symbols.splitlines()}
    assert {f"{name}_invoke", f"{name}_selftest"} <= named
    assert all(symbol.startswith(f"{name}_") for symbol in named)
    run(*compile_, f"-D{name.upper()}_NO_SELFTEST")
    symbols = run("arm-none-eabi-nm", "--defined-only", "--extern-only", output)
    assert "golden" not in symbols and "selftest" not in symbols


# ---- the self-test fails where it should ----


@pytest.mark.parametrize("name", ["digits_mlp", "remembering"])
def test_a_wrong_golden_output_is_found(unpack: Unpack, tmp_path: Path, name: str) -> None:
    package = unpack("single", name)
    text = (package / f"{name}.c").read_text()
    start = text.index("{", text.index(f" {name}_golden_output"))
    first, _, rest = text[start + 1 :].partition(",")
    wrong = f"({first} + 1.0f)" if "." in first else str(int(first) ^ 1)
    (tmp_path / f"{name}.c").write_text(f"{text[: start + 1]}{wrong},{rest}")
    sources = [package / "examples" / "selftest.c", tmp_path / f"{name}.c"]
    run(need("gcc"), f"-I{package}", *sources, "-o", tmp_path / "selftest")
    result = subprocess.run([tmp_path / "selftest"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stdout.startswith(f"{name}: 1 wrong values in the self-test\n")


# ---- what is written ----


@pytest.mark.parametrize("kind", BUNDLES)
def test_the_same_model_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    for directory in (tmp_path / "a", tmp_path / "b"):
        write_package(compiled_model("digits_mlp"), kind, directory)
    found = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*"))
    assert found == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*"))
    for path in found:
        if (tmp_path / "a" / path).is_file():
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


@pytest.mark.parametrize("kind", BUNDLES)
def test_every_package_says_whose_it_is(root: Path, kind: str) -> None:
    files = package_files(compiled_model("digits_mlp"), kind)
    assert files["LICENSE"] == (root / "LICENSE").read_text()
    assert "Apache License 2.0" in files["README.md"]
    assert "d375e5553522fb9ad7cc7cf533ea7da1d4ed53728e0118e6c5ecb1a9c622758e" in files["README.md"]


@pytest.mark.parametrize("kind", BUNDLES)
def test_no_placeholder_is_left(kind: str) -> None:
    for path, text in package_files(compiled_model("remembering"), kind).items():
        assert "@" not in path
        assert "@" not in text or path == "LICENSE"


def test_a_zip_has_no_times_and_no_owners(tmp_path: Path) -> None:
    package = write_package(compiled_model("digits_mlp"), "arduino", tmp_path / "out").path
    with zipfile.ZipFile(package) as archive:
        for entry in archive.infolist():
            assert entry.filename.startswith("edgekiln_digits_mlp/")
            assert (entry.date_time, entry.compress_type) == ((1980, 1, 1, 0, 0, 0), 0)
            assert (entry.create_system, entry.external_attr, entry.extra) == (
                3,
                0o100644 << 16,
                b"",
            )


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = str(GOLDEN / "digits_mlp_int8.tflite")
    output = tmp_path / "out"
    for kind in BUNDLES:  # each replaces the one before
        arguments = [
            "compile",
            model,
            "--name",
            "net",
            "--bundle",
            kind,
            "-o",
            str(output),
            "--json",
        ]
        assert cli.main(arguments) == 0
        report = json.loads(capfd.readouterr().out)
        assert report == json.loads((output / REPORT_NAME).read_text())
        assert report["bundle"] == kind
        files = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
        assert files == {*report["files"], REPORT_NAME}
    assert cli.main(["compile", model, "--bundle", "arduino", "-o", str(output)]) == 0
    assert f"for arduino  {output}/edgekiln_digits_mlp_int8.zip\n" in capfd.readouterr().out


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(BadInputError, match="the directory holds other files"):
        write_package(compiled_model("digits_mlp"), "cmake", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--bundle: unknown build system; got make; allowed: a"):
        write_package(compiled_model("digits_mlp"), "make", tmp_path / "out")
    data = (GOLDEN / "digits_mlp_int8.tflite").read_bytes()
    longest = compile_model(data, name="n" * 54)
    assert f"name=edgekiln_{'n' * 54}\n" in package_files(longest, "arduino")["library.properties"]
    too_long = compile_model(data, name="n" * 55)
    with pytest.raises(
        BadInputError, match=r"too long for arduino; got 55 char.* allowed: up to 54"
    ):
        write_package(too_long, "arduino", tmp_path / "out")
    assert package_files(too_long, "zephyr")
    assert not (tmp_path / "out").exists()
