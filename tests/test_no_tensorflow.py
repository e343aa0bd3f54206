"""`edgekiln --help` and `edgekiln compile` need neither TensorFlow nor any other extra."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
MODELS = sorted(GOLDEN.glob("*.tflite"))

#: What `--help` must not load, by its time; `compile` may have the first two.
HEAVY = (
    *("numpy", "rich"),
    *("tensorflow", "keras", "sklearn", "onnx", "onnxruntime", "tf2onnx", "tflite_micro"),
    *("ai_edge_litert", "jinja2", "serial", "elftools", "scipy", "matplotlib"),
)


def loaded_modules(*arguments: object) -> set[str]:
    """Runs a command in a process of its own; returns the top-level modules it loaded."""
    program = (
        "import sys\n"
        "from edgekiln.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split())


def test_help_loads_nothing_heavy() -> None:
    assert loaded_modules("--help").isdisjoint(HEAVY)


@pytest.mark.parametrize("command", ["compile", "deploy", "train"])
def test_a_commands_help_loads_nothing_heavy(command: str) -> None:
    assert loaded_modules(command, "--help").isdisjoint(HEAVY)


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_compile_loads_nothing_but_numpy(model: Path, tmp_path: Path) -> None:
    assert loaded_modules("compile", model, "-o", tmp_path / "c").isdisjoint(HEAVY[2:])


@pytest.mark.parametrize("command", ["models", "boards", "supported-ops"])
def test_lists_load_nothing_but_numpy(command: str) -> None:
    assert loaded_modules(command).isdisjoint(HEAVY[2:])


@pytest.fixture(scope="module")
def bare(root: Path, distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `edgekiln` of an environment that holds its wheel and requirements-core.lock alone."""
    directory = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", directory / "venv")
    python = directory / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-input"]
    try:
        run(*install, "--require-hashes", "-r", root / "requirements-core.lock")
    except subprocess.CalledProcessError as error:
        offline = re.search(r"connection|resolution|retrying|unreachable", error.stderr, re.I)
        if offline and not os.environ.get("CI"):
            pytest.skip("no package registry can be reached")
        raise
    (wheel,) = distributions.glob("*.whl")
    run(*install, "--no-deps", wheel)
    return directory / "venv" / "bin" / "edgekiln"


def run(*command: object) -> str:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=True, timeout=280
    ).stdout


@pytest.mark.slow
def test_the_bare_environment_lacks_tensorflow(bare: Path) -> None:
    python = bare.with_name("python")
    missing = "import importlib.util as u, sys; print([m for m in sys.argv[1:] if u.find_spec(m)])"
    assert run(python, "-c", missing, *HEAVY[2:]) == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_compile_works_without_tensorflow(bare: Path, model: Path, tmp_path: Path) -> None:
    report = json.loads(run(bare, "compile", model, "-o", tmp_path / "c", "--json"))
    for name in report["files"]:
        assert (tmp_path / "c" / name).is_file()
    reference = tmp_path / "reference"
    run(Path(sys.executable).with_name("edgekiln"), "compile", model, "-o", reference)
    for path in reference.iterdir():
        assert (tmp_path / "c" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_what_is_missing_is_named_with_the_command_that_gets_it(bare: Path) -> None:
    result = subprocess.run([bare, "doctor"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 3
    assert "tensorflow" in result.stderr
    assert "-m pip install 'edgekiln[train]'" in result.stderr
