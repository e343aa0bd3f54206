"""The commands as a user meets them: what they print, how they refuse, what they leave behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tflite.Model import Model

from edgekiln import cli
from edgekiln.bench.runners import tflm_available
from edgekiln.errors import EdgekilnError

COMMANDS = (
    *(
        "train",
        "quantize",
        "export",
        "compile",
        "inspect",
        "verify",
        "flash",
        "deploy",
        "bench",
        "report",
    ),
    *("models", "zoo", "boards", "supported-ops", "doctor"),
)

FLOAT32 = 0
HASHTABLE_LOOKUP = 10


@pytest.fixture
def model(root: Path) -> Path:
    """A small int8 CNN."""
    return root / "tests" / "golden" / "digits_cnn_int8.tflite"


@pytest.fixture
def edgekiln(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: ``edgekiln(*arguments) -> (exit code, stdout, stderr)``."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    return call


Call = Callable[..., tuple[int, str, str]]


def make_float(data: bytes) -> bytes:
    """Returns the model with its input's type changed to float32."""
    changed = bytearray(data)
    graph = Model.GetRootAs(changed, 0).Subgraphs(0)
    table = graph.Tensors(graph.Inputs(0))._tab
    changed[table.Pos + table.Offset(6)] = FLOAT32
    return bytes(changed)


def make_unsupported(data: bytes) -> bytes:
    """Returns the model with an operator that no compiler for microcontrollers has."""
    changed = bytearray(data)
    code = Model.GetRootAs(changed, 0).OperatorCodes(0)
    for field, size in ((4, 1), (10, 4)):  # deprecated_builtin_code, builtin_code
        place = code._tab.Pos + code._tab.Offset(field)
        changed[place : place + size] = HASHTABLE_LOOKUP.to_bytes(size, "little")
    return bytes(changed)


#: What a user may hand over: how it is made from a good model, and what the line says.
BAD_MODELS = {
    "truncated": (lambda data: data[: len(data) // 2], "."),
    "cut to a few bytes": (lambda data: data[:6], "."),
    "empty": (lambda data: b"", "."),
    "random": (lambda data: bytes(range(256)) * 16, "not a .tflite file"),
    "float": (make_float, "float32.*int8"),
    "unsupported": (make_unsupported, "HASHTABLE_LOOKUP.*supported-ops"),
}


needs_oracle = pytest.mark.skipif(
    not tflm_available(), reason="no tflite-micro wheel for this Python and machine"
)


def one_line(err: str) -> str:
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("edgekiln: error: ")
    return lines[0]


def test_help_lists_the_commands_in_the_order_of_the_datas_way(edgekiln: Call) -> None:
    code, out, err = edgekiln("--help")
    assert (code, err) == (0, "")
    listed = re.findall(r"^  ([a-z-]+)  +[A-Z]", out.partition("Commands:")[2], re.MULTILINE)
    assert tuple(listed) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(edgekiln: Call, command: str) -> None:
    code, out, err = edgekiln(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: edgekiln {command} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "nope"),
        (["compile"], "MODEL"),
        (["compile", "m.tflite"], "output"),
        (["compile", "m.tflite", "-o", "x", "--optimize", "magic"], "balanced"),
        (["verify", "m.tflite", "--random", "many"], "many"),
    ],
)
def test_wrong_usage_is_one_line(edgekiln: Call, arguments: list[str], message: str) -> None:
    code, out, err = edgekiln(*arguments)
    assert (code, out) == (2, "")
    assert message in one_line(err)


def test_compile(edgekiln: Call, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "c"
    code, out, err = edgekiln("compile", model, "-o", output)
    assert (code, err) == (0, "")
    report = json.loads((output / "compile_report.json").read_text())
    assert {path.name for path in output.iterdir()} == {*report["files"], "compile_report.json"}
    assert {"digits_cnn_int8.h", "digits_cnn_int8.c"} <= set(report["files"])
    assert f"{report['arena_bytes']:,} bytes" in out


def test_compile_json_is_the_report(edgekiln: Call, model: Path, tmp_path: Path) -> None:
    arguments = ("--name", "net", "--target", "cortex-m4", "--optimize", "ram", "--io", "separate")
    code, out, err = edgekiln("compile", model, "-o", tmp_path / "c", *arguments, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "c" / "compile_report.json").read_text())
    assert report["name"] == "net"
    assert report["target"] == "cortex-m4"
    assert report["optimize"] == "ram"
    assert report["io"] == "separate"


def test_compile_twice_gives_the_same_bytes(edgekiln: Call, model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert edgekiln("compile", model, "-o", tmp_path / name)[0] == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("command", ["compile", "verify", "bench"])
@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_bad_model_is_refused_in_one_line(
    edgekiln: Call, model: Path, tmp_path: Path, command: str, kind: str
) -> None:
    damage, message = BAD_MODELS[kind]
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(damage(model.read_bytes()))
    options: dict[str, tuple[object, ...]] = {
        "compile": ("-o", tmp_path / "c"),
        "verify": (),
        "bench": ("--board", "mps2-an386", "--build-dir", tmp_path / "build"),
    }
    code, out, err = edgekiln(command, bad, *options[command])
    assert (code, out) == (2, "")
    assert re.search(message, one_line(err)), err
    assert str(bad) in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [bad]


@pytest.mark.parametrize("command", ["compile", "verify", "bench"])
def test_a_missing_file_is_one_line(edgekiln: Call, tmp_path: Path, command: str) -> None:
    missing = tmp_path / "missing.tflite"
    options: dict[str, tuple[object, ...]] = {
        "compile": ("-o", tmp_path / "c"),
        "verify": (),
        "bench": ("--board", "mps2-an386", "--build-dir", tmp_path / "build"),
    }
    code, out, err = edgekiln(command, missing, *options[command])
    assert (code, out) == (2, "")
    assert f"{missing}: no such file" in one_line(err)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_failed_compile_would_replace_stays(
    edgekiln: Call, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "c"
    assert edgekiln("compile", model, "-o", output)[0] == 0
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(model.read_bytes()[:1000])
    assert edgekiln("compile", bad, "-o", output)[0] == 2
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert sorted(tmp_path.iterdir()) == [bad, output]


def test_an_output_that_holds_other_files_is_left_alone(
    edgekiln: Call, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    code, _, err = edgekiln("compile", model, "-o", tmp_path)
    assert code == 2
    assert "holds other files" in one_line(err)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "z80"), "allowed: .*cortex-m4"),
        (("--name", "no-identifier"), "allowed: .*letters"),
    ],
)
def test_compile_options_are_checked(
    edgekiln: Call, model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = edgekiln("compile", model, "-o", tmp_path / "c", *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, one_line(err))
    assert list(tmp_path.iterdir()) == []


@needs_oracle
def test_verify(edgekiln: Call, model: Path) -> None:
    code, out, err = edgekiln("verify", model, "--random", 3, "--seed", 7)
    assert (code, err) == (0, "")
    assert "3 inferences on host, all 30 output bytes equal to tflm's" in out


@needs_oracle
def test_verify_json(edgekiln: Call, model: Path) -> None:
    code, out, err = edgekiln("verify", model, "--random", 3, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["match"], found["samples"], found["bytes"]) == (True, 3, 30)
    assert (found["mismatched_bytes"], found["first_mismatch"]) == (0, None)


@needs_oracle
def test_verify_with_inputs_of_ones_own(edgekiln: Call, model: Path) -> None:
    inputs = model.with_name("digits_inputs.npz")
    code, out, err = edgekiln("verify", model, "--inputs", inputs, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["samples"] == 32


@needs_oracle
def test_verify_tells_of_a_wrong_byte(
    edgekiln: Call, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kernel of the C is made wrong; the command names the node that it computes."""
    from edgekiln.export import compiler

    compile_model = compiler.compile_model

    def spoil(*arguments: object, **options: object) -> compiler.CompiledModel:
        compiled = compile_model(*arguments, **options)  # type: ignore[arg-type]
        (name,) = (name for name in compiled.files if name.startswith("ek_softmax"))
        text = compiled.files[name]
        right, wrong = "low + ek_rounding", "low + 1 + ek_rounding"
        assert right in text
        compiled.files[name] = text.replace(right, wrong)
        return compiled

    monkeypatch.setattr("edgekiln.bench.verify.compile_model", spoil)
    code, out, err = edgekiln("verify", model, "--random", 2, "--json")
    found = json.loads(out)
    assert code == 1
    assert found["match"] is False
    assert found["mismatched_bytes"] > 0
    assert found["first_mismatch"]["op"] == "SOFTMAX"
    assert "SOFTMAX" in one_line(err)


def test_without_the_oracle_there_is_nothing_to_compare_with(
    edgekiln: Call, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro.runtime", None)
    code, out, err = edgekiln("verify", model)
    assert (code, out) == (3, "")
    assert "edgekiln[oracle]" in one_line(err)


def test_models_json(edgekiln: Call) -> None:
    code, out, err = edgekiln("models", "--json")
    assert (code, err) == (0, "")
    assert {"digits_cnn", "digits_mlp"} <= set(json.loads(out))


def test_boards_json(edgekiln: Call) -> None:
    code, out, err = edgekiln("boards", "--json")
    assert (code, err) == (0, "")
    boards = json.loads(out)
    assert {"mps2-an386", "mps2-an385", "host"} <= set(boards)
    assert boards["mps2-an386"]["target"] == "cortex-m4"
    assert boards["mps2-an386"]["runners"].keys() == {"emulator", "gdb"}
    assert boards["host"]["runners"] == {"emulator": ""}


def test_supported_ops_json(edgekiln: Call) -> None:
    code, out, err = edgekiln("supported-ops", "--json")
    assert (code, err) == (0, "")
    assert {"CONV_2D", "SOFTMAX"} <= {each["op"] for each in json.loads(out)["operators"]}


@pytest.mark.parametrize("command", ["models", "boards", "supported-ops"])
def test_lists_for_people(edgekiln: Call, command: str) -> None:
    code, out, err = edgekiln(command)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) >= 3


def test_doctor_json(edgekiln: Call) -> None:
    code, out, _ = edgekiln("doctor", "--json")
    found = json.loads(out)
    assert code == (0 if found["ok"] else 3)
    assert {"numpy", "gcc", "qemu-system-arm"} <= {each["name"] for each in found["findings"]}


@pytest.mark.parametrize("command", ["bench", "flash", "deploy", "report"])
def test_an_unknown_board_is_one_line(
    edgekiln: Call, model: Path, tmp_path: Path, command: str
) -> None:
    code, out, err = edgekiln(command, model, "--board", "mps2-an368", "--build-dir", tmp_path)
    assert (code, out) == (2, "")
    assert "mps2-an386" in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_every_error_has_an_exit_code_of_the_contract() -> None:
    kinds = [EdgekilnError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        assert kind.exit_code in (1, 2, 3)


def test_it_runs_as_a_module_too() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "edgekiln", "--version"], capture_output=True, text=True, timeout=60
    )
    assert re.fullmatch(r"edgekiln, version \d+\.\d+\.\d+\n", result.stdout)


@pytest.mark.emulator
def test_bench_json(edgekiln: Call, model: Path, tmp_path: Path) -> None:
    code, out, _ = edgekiln(
        "bench", model, "--board", "mps2-an386", "--build-dir", tmp_path, "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert list(found) == [
        *("board", "emulated", "model", "macs", "instructions", "cycles", "cycles_model"),
        *("latency_us", "flash_bytes", "flash_constants_bytes", "flash_code_bytes", "ram_bytes"),
        *("arena_bytes", "stack_bytes", "per_node", "toolchain", "flags"),
    ]
    assert (found["board"], found["emulated"], found["cycles"]) == ("mps2-an386", True, None)
    parts = found["flash_constants_bytes"] + found["flash_code_bytes"]
    assert found["flash_bytes"] == parts
    assert list(found["per_node"][0]) == ["index", "op", "name", "macs", "instructions", "cycles"]
    assert sum(node["macs"] for node in found["per_node"]) == found["macs"]
    assert 0 < sum(node["instructions"] for node in found["per_node"]) <= found["instructions"]


@pytest.mark.emulator
def test_bench_for_people(edgekiln: Call, model: Path, tmp_path: Path) -> None:
    code, out, _ = edgekiln("bench", model, "--board", "mps2-an386", "--build-dir", tmp_path)
    assert code == 0
    assert re.search(r"^   0  CONV_2D +\S+ +9,216 +[\d,]+$", out, re.MULTILINE)
    assert "mps2-an386 (emulated)" in out


@needs_oracle
@pytest.mark.emulator
def test_verify_on_a_board(edgekiln: Call, model: Path) -> None:
    code, out, _ = edgekiln("verify", model, "--random", 3, "--target", "mps2-an386", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["match"], found["bytes"], found["target"]) == (True, 30, "mps2-an386")


@pytest.mark.emulator
def test_flash_names_the_image(edgekiln: Call, model: Path, tmp_path: Path) -> None:
    code, out, _ = edgekiln("flash", model, "--board", "mps2-an386", "--build-dir", tmp_path)
    assert code == 0
    image = Path(out.removesuffix("\n"))
    assert image.read_bytes().startswith(b"\x7fELF")


@pytest.fixture
def small_boards(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Boards like mps2-an386 with too little flash, or too little RAM."""
    from edgekiln.firmware import boards

    directory = tmp_path / "boards"
    directory.mkdir()
    text = (root / "firmware" / "boards" / "mps2-an386.toml").read_text()
    for memory, size_bytes in (("flash", 8192), ("ram", 4096)):
        small, count = re.subn(
            rf"(?m)^{memory}_bytes = \w+", f"{memory}_bytes = {size_bytes}", text
        )
        assert count == 1
        (directory / f"small-{memory}.toml").write_text(small)
    monkeypatch.setattr(boards, "BOARDS", directory)
    return directory


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("board", "message"),
    [
        ("small-flash", r"flash.*[\d,]+ bytes"),
        ("small-ram", r"RAM.*[\d,]+ bytes.*node \d+"),
    ],
)
@pytest.mark.parametrize("command", ["bench", "flash", "deploy"])
def test_a_model_that_does_not_fit_is_refused(
    edgekiln: Call,
    model: Path,
    tmp_path: Path,
    small_boards: Path,
    board: str,
    message: str,
    command: str,
) -> None:
    build = tmp_path / "build"
    code, out, err = edgekiln(command, model, "--board", board, "--build-dir", build)
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert line.startswith("edgekiln: error: ")
    assert re.search(message, line), line
    assert not list(build.rglob("image*"))
    assert not list(build.rglob("results.json"))
    assert not list(build.rglob("report.html"))


def test_a_report_needs_a_deploy(edgekiln: Call, model: Path, tmp_path: Path) -> None:
    code, out, err = edgekiln("report", model, "--board", "mps2-an386", "--build-dir", tmp_path)
    assert (code, out) == (2, "")
    assert "edgekiln deploy" in one_line(err)


@pytest.mark.parametrize("command", ["train", "quantize", "export", "flash", "deploy", "bench"])
def test_an_unknown_model_is_one_line(edgekiln: Call, tmp_path: Path, command: str) -> None:
    board = ("--board", "mps2-an386") if command in ("flash", "deploy", "bench") else ()
    code, out, err = edgekiln(command, "digits_cn", *board, "--build-dir", tmp_path)
    assert (code, out) == (2, "")
    assert "digits_cnn" in one_line(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "quantize"])
def test_a_file_cannot_be_trained(
    edgekiln: Call, model: Path, tmp_path: Path, command: str
) -> None:
    code, out, err = edgekiln(command, model, "--build-dir", tmp_path)
    assert (code, out) == (2, "")
    assert "edgekiln models" in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_model_and_board_may_look_like_options(edgekiln: Call, tmp_path: Path) -> None:
    code, out, err = edgekiln("deploy", "--board", "--help", "--build-dir", tmp_path, "--", "-x")
    assert (code, out) == (2, "")
    assert "--help" in one_line(err)
