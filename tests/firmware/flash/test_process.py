"""How tools are run: output, progress, ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekiln.errors import BoardError, ToolMissingError
from edgekiln.firmware.flash.process import find_percent, run_tool


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        ("Wrote and verified address 0x08000800 (100.00%) Done.", 100),
        ("Wrote address 0x08000400 (50.00%) ", 50),
        ("Download\t[=====           ]  21%         1024 bytes", 21),
        ("Writing | ##############################", 60),
        ("Writing | ################################################## | 100% 0.07s", 100),
        ("  3/ 12 pages written", 25),
        ("  3/ 12 pages written\r  6/ 12 pages written", 50),
        ("10% 20%\r30%", 30),
        ("nothing", None),
        ("2000%", None),
    ],
)
def test_progress(text: str, percent: float | None) -> None:
    assert find_percent(text) == percent


def test_all_output_is_kept_and_progress_is_told(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "print('in', os.getcwd(), os.environ['LC_ALL'], sys.stdin.read() == '', flush=True)\n"
        "print('25%', end='\\r', flush=True)\n"
        "print('75%', file=sys.stderr, flush=True)\n"
        "sys.exit(3)\n"
    )
    told: list[float] = []
    log = tmp_path / "log"
    run = run_tool(
        [sys.executable, "-c", program], tmp_path, log, silence_s=30, on_percent=told.append
    )
    assert run.code == 3
    assert run.output.split() == ["in", str(tmp_path), "C", "True", "25%", "75%"]
    assert told[-1] == 75
    text = log.read_text()
    assert text.startswith(f"$ cd {tmp_path} && ") and "25%" in text and "ended with 3" in text


def test_a_tool_that_falls_silent_is_ended(tmp_path: Path) -> None:
    program = "import time; print('begun', flush=True); time.sleep(600)"
    with pytest.raises(BoardError, match=r"says nothing for 1 s; its output is in .*log"):
        run_tool([sys.executable, "-c", program], tmp_path, tmp_path / "log", silence_s=1)
    assert "begun" in (tmp_path / "log").read_text()


def test_a_tool_that_does_not_want_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekiln.firmware.flash.process._END_SECONDS", 0.1)
    program = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('begun', flush=True)\n"
        "time.sleep(600)\n"
    )
    with pytest.raises(BoardError):
        run_tool([sys.executable, "-c", program], tmp_path, tmp_path / "log", silence_s=1)


def test_an_interrupt_ends_the_tool(tmp_path: Path) -> None:
    program = "import os, time; print(os.getpid(), '50%', flush=True); time.sleep(600)"

    def interrupt(percent: float) -> None:
        raise KeyboardInterrupt

    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        run_tool([sys.executable, "-c", program], tmp_path, log, silence_s=30, on_percent=interrupt)
    number = log.read_text().splitlines()[-1].split()[0]
    assert not Path("/proc", number).exists()


def test_a_tool_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError, match="no-such-tool cannot be run"):
        run_tool(["no-such-tool"], tmp_path, tmp_path / "log", silence_s=1)


def test_no_shell_sees_the_arguments(tmp_path: Path) -> None:
    words = ["$(touch pwned)", "; touch pwned", "a b", "--help", "'", "\n"]
    program = "import sys; print(sys.argv[1:])"
    run = run_tool(
        [sys.executable, "-c", program, *words], tmp_path, tmp_path / "log", silence_s=30
    )
    assert run.output == f"{words}\n"
    assert not (tmp_path / "pwned").exists()
