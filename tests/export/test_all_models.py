"""Every .tflite below EDGEKILN_SHARED/models compiles, and every node equals the oracle's.

Integers are equal on every byte, float32 values within the operators' tolerance, for each
target and C compiler, without a warning. What cannot be compared stands in `REFUSED` with the
reason, and a model which begins to work has to be taken off that list.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from streams import check_stream

from edgekiln.bench.divergence import find_first_mismatch
from edgekiln.bench.runners import STRICT_FLAGS, TflmRunner, tflm_available
from edgekiln.bench.verify import random_inputs
from edgekiln.errors import EdgekilnError, UnsupportedOpError
from edgekiln.export.compiler import compile_model, plan_model, write_bundle
from edgekiln.export.emit.program import numbered

SHARED = os.environ.get("EDGEKILN_SHARED", "")
MODELS = sorted(Path(SHARED, "models").rglob("*.tflite")) if SHARED else []
TARGETS = ("host", "cortex-m0plus", "cortex-m4")
COMPILERS = ("gcc", "clang")
SAMPLES = 2

SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
LANGUAGES = {
    "c-sanitizers": ("gcc", "-std=c99", *STRICT_FLAGS, *SANITIZERS),
    "c++": ("g++", "-x", "c++", "-std=c++11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"),
}

#: By file name: what the oracle says, and what the compiler says. Both run neither.
REFUSED = {
    "model_ToyCar_quant.tflite": ("FLOAT32 with filter type: INT8", "a hybrid model"),
    "kws_ref_model_float32.tflite": ("Hybrid models are not supported", "a hybrid model"),
}


needs_oracle = pytest.mark.skipif(
    not tflm_available(), reason="the tflite-micro wheel is not installed"
)


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.fixture(params=[path for path in MODELS if path.name not in REFUSED], ids=name_of)
def model(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(params=COMPILERS)
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    monkeypatch.setenv("CC", request.param)
    return request.param


@needs_oracle
@pytest.mark.parametrize("target", TARGETS)
def test_every_node_equals_the_oracle(
    model: Path, target: str, compiler: str, tmp_path: Path
) -> None:
    data = model.read_bytes()
    compiled = compile_model(data, name="m", target=target, where=model.name)
    write_bundle(compiled, tmp_path / "c")
    inputs = random_inputs(data, SAMPLES, seed=5)
    for sample in range(SAMPLES):
        one = tuple(array[sample : sample + 1] for array in inputs)
        found = find_first_mismatch(
            data, compiled.graph, tmp_path / "c", one, sample, flags=STRICT_FLAGS
        )
        assert found is None


@needs_oracle
def test_streams_equal_the_oracle(shared: Path) -> None:
    """Models that remember are run for several steps, with and without a reset between."""
    remembering = []
    for path in MODELS:
        data = path.read_bytes()
        if path.name not in REFUSED and plan_model(data, name="m").state_bytes:
            check_stream(data)
            remembering.append(path.name)
    assert "keyword_scrambled_8bit.tflite" in remembering


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("command", LANGUAGES.values(), ids=LANGUAGES)
def test_the_golden_pair_holds(
    model: Path, target: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    """A program of its own, under the sanitizers of C and as C++; twice the same bytes."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    data = model.read_bytes()
    compiled = compile_model(data, name="m", target=target, where=model.name)
    assert compile_model(data, name="m", target=target, where="elsewhere").files == compiled.files
    write_bundle(compiled, tmp_path)
    (tmp_path / "self_test.c").write_text(self_test(compiled.report))
    sources = sorted(map(str, tmp_path.glob("*.c")))
    program = tmp_path / "self_test"
    flags = [flag for flag in command if flag != "-Wmissing-prototypes"]
    subprocess.run([*flags, f"-I{tmp_path}", *sources, "-o", program, "-lm"], check=True)
    ran = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "equal\n", "")


def self_test(report: dict[str, Any]) -> str:
    """Returns a program that runs the golden input and compares outputs of integers."""
    inputs = numbered("input", len(report["inputs"]))
    outputs = numbered("output", len(report["outputs"]))
    state = "m_state state; m_reset(&state);" if report["state_bytes"] else ""
    lines = [
        "#include <stdio.h>",
        "#include <string.h>",
        '#include "m.h"',
        "static int8_t arena[M_ARENA_BYTES] __attribute__((aligned(8)));",
        "int main(void) {",
        state,
        *(f"memcpy(m_{n}(arena), m_golden_{n}, M_{n.upper()}_BYTES);" for n in inputs),
        f"m_invoke(arena{', &state' if state else ''});",
        *(
            f"if (memcmp(m_{n}(arena), m_golden_{n}, M_{n.upper()}_BYTES) != 0) {{ return 1; }}"
            for n, entry in zip(outputs, report["outputs"], strict=True)
            if entry["dtype"] != "float32"
        ),
        'puts("equal"); return 0; }',
    ]
    return "\n".join(lines) + "\n"


@needs_oracle
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str, shared: Path) -> None:
    (path,) = (shared / "models").rglob(name)
    by_oracle, by_compiler = REFUSED[name]
    with pytest.raises(EdgekilnError, match=by_oracle):
        TflmRunner(path.read_bytes())
    with pytest.raises(UnsupportedOpError, match=by_compiler):
        compile_model(path.read_bytes(), name="m", where=name)


def test_the_models_were_found(shared: Path) -> None:
    """Without this a wrong EDGEKILN_SHARED would test nothing, and say nothing."""
    names = [path.name for path in MODELS]
    assert len(names) >= 40
    assert set(REFUSED) <= set(names)
    assert len(set(names)) == len(names)
