"""One model on many boards, and the table that comes of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekiln import cli, trials
from edgekiln.bench import measure
from edgekiln.bench.device import DeviceRun, run_on_board
from edgekiln.errors import BadInputError, BoardError, CheckFailedError
from edgekiln.firmware import boards
from edgekiln.trials import Trial

BOARDS = ("mps2-an386", "microbit", "nrf52840dk")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build tree that the tests here share."""
    return tmp_path_factory.mktemp("build")


@pytest.fixture
def cnn(root: Path) -> str:
    return str(root / "tests/golden/digits_cnn_int8.tflite")


@pytest.fixture
def mlp(root: Path) -> str:
    return str(root / "tests/golden/digits_mlp_int8.tflite")


@pytest.mark.emulator
def test_a_table_of_boards(mlp: str, build: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = [part for slug in BOARDS for part in ("--board", slug)]
    arguments = ["boards", "--try", mlp, *chosen, "--build-dir", str(build)]
    assert cli.main([*arguments, "--json"]) == 0
    found = {slug: Trial(**one) for slug, one in json.loads(capfd.readouterr().out).items()}
    assert tuple(found) == BOARDS
    assert [trial.outcome for trial in found.values()] == ["equal", "equal", "built"]
    for trial in found.values():
        assert (trial.model, trial.note, trial.cycles) == ("digits_mlp_int8", "", None)
        assert trial.flash_bytes is not None and trial.flash_bytes > 10_000
    for slug in ("mps2-an386", "microbit"):
        trial = found[slug]
        assert trial.instructions is not None and trial.instructions > 9472 // 2
        assert trial.stack_bytes is not None and trial.ram_bytes is not None
        assert trial.ram_bytes > trial.stack_bytes > 0
        assert trial.bytes_equal == 10 * trial.samples > 0
    assert found["nrf52840dk"].bytes_equal is None

    assert cli.main(arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 1 + len(BOARDS)
    assert lines[1].startswith("mps2-an386") and lines[1].endswith("all 200 of 20 samples")
    assert lines[3].startswith("nrf52840dk") and lines[3].endswith("built")


@pytest.mark.emulator
def test_where_a_model_does_not_fit_the_next_is_tried(
    cnn: str, mlp: str, build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (boards.BOARDS / "mps2-an386.toml").read_text()
    assert text.count("ram_bytes = 4_194_304") == 1
    for slug, ram_bytes in (("small", 4096), ("tiny", 2112)):
        changed = text.replace("ram_bytes = 4_194_304", f"ram_bytes = {ram_bytes}")
        (tmp_path / f"{slug}.toml").write_text(changed)
    monkeypatch.setattr(boards, "BOARDS", tmp_path)
    small, tiny = trials.try_everywhere((cnn, mlp), build)
    assert (small.board, small.model, small.outcome) == ("small", "digits_mlp_int8", "equal")
    assert (tiny.board, tiny.model, tiny.outcome) == ("tiny", "digits_mlp_int8", "does not fit")
    assert "RAM is too small by" in tiny.note
    trials.check((small, tiny))


@pytest.mark.emulator
def test_a_wrong_byte_fails_after_the_table(
    mlp: str, build: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*arguments: object, **options: object) -> DeviceRun:
        run = run_on_board(*arguments, **options)  # type: ignore[arg-type]
        outputs = run.outputs[0].copy()
        outputs[-1, -1] ^= np.int8(1)
        return replace(run, outputs=(outputs,))

    monkeypatch.setattr(measure, "run_on_board", damaged)
    arguments = ["boards", "--try", mlp, "--board", "mps2-an386", "--build-dir", str(build)]
    assert cli.main(arguments) == 1
    out, err = capfd.readouterr()
    assert "differs" in out.splitlines()[1]
    assert "differ in 1 of 200 output bytes" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("boards: mps2-an386")


@pytest.mark.emulator
def test_what_is_not_installed_is_said_and_is_no_failure(
    mlp: str, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def which(program: str, **options: object) -> str | None:
        return None if program == "qemu-system-arm" else shutil.which(program)

    monkeypatch.setattr("edgekiln.firmware.installed.shutil", type("", (), {"which": which}))
    one, other = trials.try_everywhere((mlp,), build, boards=("microbit", "nrf52840dk"))
    assert (one.outcome, one.note) == ("not installed", "qemu-system-arm")
    assert other.outcome == "built"
    trials.check((one, other))


def test_a_failure_is_raised_with_the_boards() -> None:
    equal = Trial("a", "M0", "m", "equal")
    trials.check((equal, replace(equal, outcome="not installed")))
    with pytest.raises(BoardError, match="no answer; boards: b, c"):
        failed = [Trial(slug, "M0", "m", "failed", "no answer") for slug in "bc"]
        trials.check((equal, *failed))
    with pytest.raises(CheckFailedError, match="one byte; boards: d"):
        trials.check((*failed, Trial("d", "M0", "m", "differs", "one byte")))


def test_unknown_boards_and_models_are_refused(mlp: str, build: Path) -> None:
    with pytest.raises(BadInputError, match="no such board"):
        trials.try_everywhere((mlp,), build, boards=("micorbit",))
    with pytest.raises(BadInputError, match="digits_cn"):
        trials.try_everywhere(("digits_cn",), build)
    assert cli.main(["boards", "--board", "microbit"]) == 2
