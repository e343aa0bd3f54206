"""`edgekiln flash`, and deploys to a board at a port: the whole way, with real tools on doubles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from empty_qemu import EmptyBoard, empty_qemu

from edgekiln import cli, console, pipeline
from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware import boards
from edgekiln.firmware.flash.destination import Destination

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(root: Path, tmp_path: Path) -> Path:
    """A model in a directory whose name no shell should see."""
    directory = tmp_path / "it's $(touch pwned)"
    directory.mkdir()
    return Path(shutil.copy(root / "tests/golden/digits_mlp_int8.tflite", directory / "m.tflite"))


@pytest.fixture
def edgekiln(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    """Runs a command in an empty directory, on a machine with no serial ports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("serial.tools.list_ports.comports", list)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    return call


@pytest.fixture
def qemu_at_a_port(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EmptyBoard]:
    """An empty board behind GDB's server; its file says what QEMU calls a reset."""
    if shutil.which("gdb-multiarch") is None:
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        (pytest.fail if in_ci else pytest.skip)("not installed: gdb-multiarch")
    directory = tmp_path / "boards"
    directory.mkdir()
    text = (root / "firmware/boards/mps2-an386.toml").read_text()
    (directory / "mps2-an386.toml").write_text(f'{text}\n[flash.gdb]\nreset = "system_reset"\n')
    monkeypatch.setattr(boards, "BOARDS", directory)
    with empty_qemu(boards.load_board("mps2-an386")) as there:
        yield there


@pytest.mark.emulator
def test_a_dry_run_prints_the_commands_and_nothing_else(edgekiln: Call, model: Path) -> None:
    code, out, _ = edgekiln("flash", "--board", "nucleo-f446re", "--dry-run", model)
    assert (code, out) == (
        0,
        "(cd build/m/nucleo-f446re/image && openocd -f interface/stlink.cfg "
        "-f target/stm32f4x.cfg -c 'program image.elf verify reset exit')\n",
    )
    assert (Path("build/m/nucleo-f446re/image/image.elf")).is_file()
    assert not Path("build/m/nucleo-f446re/flash").exists()
    assert not Path("pwned").exists()


@pytest.mark.emulator
def test_nothing_heavy_is_loaded_on_the_way_to_the_tool(model: Path, tmp_path: Path) -> None:
    """What trains and converts takes seconds to load: with nothing to do it stays away."""
    program = (
        "import sys\n"
        "from edgekiln.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'tensorflow', 'keras', 'onnx', 'onnxruntime', 'sklearn', 'scipy', 'jinja2'}\n"
        "print(code, sorted(heavy & {name.partition('.')[0] for name in sys.modules}))\n"
    )
    arguments = ["flash", "--board", "nucleo-f446re", "--dry-run", str(model)]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr


@pytest.mark.emulator
def test_a_dry_run_needs_neither_tool_nor_board(
    edgekiln: Call, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **more: None if "st" in name[:2] else which(name, **more)
    )
    arguments = ("flash", "--board", "stm32f405", "--runner", "stm32flash")
    code, out, _ = edgekiln(*arguments, "--dry-run", model)
    assert code == 0 and out.endswith("-g 0x08000000 '<port>')\n")
    code, out, err = edgekiln(*arguments, model)
    assert (code, out) == (3, "")
    assert "stm32f405: stm32flash is not installed; " in err.splitlines()[-1]


@pytest.mark.emulator
def test_an_emulator_is_not_written_to(edgekiln: Call, model: Path) -> None:
    code, out, err = edgekiln("flash", "--board", "mps2-an386", "--dry-run", model)
    assert (code, out) == (0, "") and "nothing is written: mps2-an386 is handed" in err
    code, out, err = edgekiln("flash", "--board", "mps2-an386", model)
    assert (code, out) == (0, "build/m/mps2-an386/image/image.elf\n")
    assert "boots on mps2-an386, emulated, and answers as it should" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--board", "mps2-an386", "--runner", "jtag"), 2, "'jtag'; allowed: emulator, gdb"),
        (
            ("--board", "mps2-an386", "--runner", "emulator", "--port", "auto"),
            2,
            "an emulator is at no place",
        ),
        (("--board", "host", "--port", "auto"), 3, "host: there is no way to write to it"),
        (("--board", "rpi"), 2, "rpi"),
    ],
)
@pytest.mark.parametrize("command", ["flash", "deploy", "bench"])
def test_what_makes_no_sense_is_one_line(
    edgekiln: Call, model: Path, command: str, arguments: tuple[str, ...], code: int, message: str
) -> None:
    got, out, err = edgekiln(command, *arguments, model)
    if command == "deploy" and "rpi" in arguments:
        return  # such a board is deployed to over SSH
    assert (got, out) == (code, ""), err
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("edgekiln: error: ")


@pytest.mark.emulator
@pytest.mark.parametrize("port", ["/dev/ttyEK0", "-x", "$(touch pwned)", "auto"])
def test_a_port_that_is_not_there(edgekiln: Call, model: Path, port: str) -> None:
    arguments = ("--board", "stm32f405", "--runner", "stm32flash", "--port", port)
    code, out, err = edgekiln("flash", *arguments, model)
    assert (code, out) == (3, "")
    wanted = "no serial port of this board" if port == "auto" else "no such port"
    assert wanted in err.splitlines()[-1]
    assert not Path("pwned").exists()


@pytest.mark.emulator
def test_flash_to_a_board_at_a_port(
    edgekiln: Call, model: Path, qemu_at_a_port: EmptyBoard
) -> None:
    there = ("--to", qemu_at_a_port.server, "--port", qemu_at_a_port.port)
    code, out, err = edgekiln("flash", "--board", "mps2-an386", *there, model)
    assert (code, out) == (0, "build/m/mps2-an386/image/image.elf\n"), err
    lines = err.splitlines()
    assert any(line.endswith("-ex detach image.elf)") for line in lines), "the exact command"
    assert "m is on mps2-an386, written by gdb and verified" in lines
    assert lines[-1].endswith("boots on mps2-an386 and answers as it should")
    assert "matched." in Path("build/m/mps2-an386/flash/flash.log").read_text()


@pytest.mark.emulator
@pytest.mark.slow
def test_deploy_to_a_board_at_a_port(
    edgekiln: Call, model: Path, qemu_at_a_port: EmptyBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ("--to", qemu_at_a_port.server, "--port", qemu_at_a_port.port)
    code, out, err = edgekiln("deploy", "--board", "mps2-an386", *there, "--json", model)
    assert code == 0, err
    results = json.loads(out)
    assert results["emulated"] is False and results["board_facts"]["emulator"] is None
    assert results["instructions"] is None and results["latency_us"] > 0
    assert all(pair["mismatched_bytes"] == 0 for pair in results["comparisons"])
    assert {pair["left"] for pair in results["comparisons"]} >= {"board"}

    # Who knows what is at the port now? It is written and measured again.
    code, out, err = edgekiln("deploy", "--board", "mps2-an386", *there, model)
    assert code == 0, err
    assert "image for mps2-an386: unchanged" in err and "run on mps2-an386: done in" in err

    # The emulator's results are others.
    code, out, err = edgekiln("deploy", "--board", "mps2-an386", "--json", model)
    assert code == 0, err
    assert json.loads(out)["emulated"] is True


@pytest.mark.emulator
def test_a_board_that_holds_something_else_is_found_out(
    model: Path, qemu_at_a_port: EmptyBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner that writes nothing and says that it did: the model's name is asked for."""
    monkeypatch.setattr("edgekiln.firmware.flash.runner.Runner.write", lambda self, job: None)
    monkeypatch.setattr("edgekiln.bench.protocol.Device.hello.__kwdefaults__", {"within_s": 0.5})
    where = Destination(port=qemu_at_a_port.port, to=qemu_at_a_port.server)
    with pytest.raises(BoardError, match="no answer within"):
        pipeline.flash(str(model), "mps2-an386", tmp_path / "build", where=where)


class TestQuestions:
    def test_nobody_is_asked_without_a_terminal(self) -> None:
        assert console.choose("Which?", ["a", "b"]) is None

    def test_a_person_is(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr(
            console, "stderr", console.Console(stderr=True, force_terminal=True, highlight=False)
        )
        answers = iter(["7", "2"])
        monkeypatch.setattr("builtins.input", lambda prompt="": next(answers))
        assert console.choose("Which?", ["a", "[b]"]) == 1
        said = capfd.readouterr().err
        assert "1  a" in said and "2  [b]" in said


def test_the_port_of_a_real_board_is_found_before_it_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serial.tools.list_ports.comports", list)

    def fail(*arguments: object) -> None:
        raise AssertionError("something was written")

    monkeypatch.setattr("edgekiln.firmware.flash.registry.write_image", fail)
    with pytest.raises((BoardError, BadInputError), match="no serial port of this board"):
        pipeline.deploy(
            str(model), "nucleo-f446re", tmp_path / "build", where=Destination(port="auto")
        )
