"""What tools say when something is wrong, turned into one line."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from flash_boards import EXAMPLES

from edgekiln.errors import BoardError, CheckFailedError, EdgekilnError, ToolMissingError
from edgekiln.firmware.boards import board_slugs, load_board
from edgekiln.firmware.flash.diagnosis import Trouble, explain
from edgekiln.firmware.flash.process import ToolRun
from edgekiln.firmware.flash.registry import RUNNERS, find_runner
from edgekiln.firmware.flash.runner import Job, Runner
from edgekiln.firmware.flash.settings import PyocdSettings

Plan = Callable[..., tuple[Runner, Job]]

#: Runner to what it says where nothing is attached; of OpenOCD, for each kind of probe.
NOBODY = {
    "openocd": ("openocd", {}, "no debug probe is attached"),
    "openocd cmsis-dap": (
        "openocd",
        {"interface": "interface/cmsis-dap.cfg", "target": "target/rp2040.cfg"},
        "no debug probe is attached",
    ),
    "openocd j-link": (
        "openocd",
        {
            "interface": "interface/jlink.cfg",
            "transport": "swd",
            "target": "target/nrf52.cfg",
            "speed_khz": 1000,
        },
        "no debug probe is attached",
    ),
    "pyocd": ("pyocd", {}, "no debug probe is attached"),
    "st-flash": ("st-flash", {}, "no debug probe is attached"),
    "dfu-util": ("dfu-util", {}, "no board is attached in its bootloader.*set BOOT0"),
    "avrdude": ("avrdude", {}, "the port cannot be opened.*--port"),
}


@pytest.mark.parametrize("case", NOBODY)
def test_the_tool_itself_without_a_device(
    case: str, plan: Plan, need: Callable[[str], str]
) -> None:
    name, changes, message = NOBODY[case]
    need(name)
    runner, job = plan(name, port="/dev/ttyEK0" if name == "avrdude" else None, **changes)
    with pytest.raises(BoardError, match=f"demo, {name}: {message}") as caught:
        runner.write(job)
    line = str(caught.value)
    assert "\n" not in line and line.endswith(f"the whole output is in {job.log}")
    assert name in job.log.read_text()
    assert sorted(path.name for path in job.directory.iterdir()) == [
        f"image.{suffix}" for suffix in ("bin", "elf", "hex", "uf2")
    ]


def boards_with(runner: str) -> list[str]:
    boards = map(load_board, board_slugs())
    return [board.slug for board in boards if board.flash and runner in board.flash.runners]


@pytest.mark.parametrize("slug", boards_with("openocd"))
def test_openocd_knows_every_boards_files(
    slug: str, plan: Plan, need: Callable[[str], str]
) -> None:
    """Only what it reads without a complaint leads as far as to the probe."""
    need("openocd")
    _, job = plan("openocd")
    board = load_board(slug)
    with pytest.raises(BoardError, match="no debug probe is attached"):
        find_runner(board, "openocd").write(dataclasses.replace(job, board=board))


@pytest.mark.parametrize("slug", boards_with("pyocd"))
def test_pyocd_knows_every_boards_chip(slug: str, need: Callable[[str], str]) -> None:
    settings = find_runner(load_board(slug), "pyocd").settings
    assert isinstance(settings, PyocdSettings)
    listed = subprocess.run(
        [need("pyocd"), "list", "--targets"], capture_output=True, text=True, timeout=60
    )
    line = rf"^\s*{settings.target}\s.*\sbuiltin\s*$"
    assert re.search(line, listed.stdout, re.MULTILINE)


#: What tools say of devices that a test cannot have, from their sources.
WORDS = {
    "openocd": {
        "Error: libusb_open() failed with LIBUSB_ERROR_ACCESS\nError: open failed": (
            Trouble.NO_ACCESS_USB
        ),
        "Error: libusb_claim_interface() failed with LIBUSB_ERROR_BUSY": Trouble.BUSY,
        "Error: init mode failed (unable to connect to the target)": Trouble.NO_TARGET,
        "Error: Error connecting DP: cannot read IDR": Trouble.NO_TARGET,
        "Warn : UNEXPECTED idcode: 0x2ba01477\nError: expected 1 of 1: 0x0bc11477": (
            Trouble.WRONG_CHIP
        ),
        "Error: checksum mismatch - attempting binary compare\n** Verify Failed **": (
            Trouble.NOT_VERIFIED
        ),
    },
    "pyocd": {
        "0000310 C Access denied (insufficient permissions) [__main__]": Trouble.NO_ACCESS_USB,
        "0000310 W NRF52840 APPROTECT enabled: not automatically unlocking": Trouble.LOCKED,
        "0000310 C No ACK received [__main__]": Trouble.NO_TARGET,
        "Mismatched byte at 0x00000000 (offset 0x0): 0xff (memory) != 0x00 (file)": (
            Trouble.NOT_VERIFIED
        ),
    },
    "st-flash": {
        "WARN usb.c: Error -3 (Access denied (insufficient permissions)) opening": (
            Trouble.NO_ACCESS_USB
        ),
        "ERROR usb.c: Stlink usb device found, but unable to claim (probably already in use?)": (
            Trouble.BUSY
        ),
        "Failed to enter SWD mode": Trouble.NO_TARGET,
        "ERROR common.c: unknown coreid 0x0": Trouble.WRONG_CHIP,
        "Flash memory is write protected": Trouble.LOCKED,
        "ERROR common.c: Verification of flash failed at offset: 1024": Trouble.NOT_VERIFIED,
    },
    "dfu-util": {
        "dfu-util: Cannot open DFU device 0483:df11 found on devnum 7 (LIBUSB_ERROR_ACCESS)\n"
        "dfu-util: No DFU capable USB device available": Trouble.NO_ACCESS_USB,
        "dfu-util: Cannot claim interface - LIBUSB_ERROR_BUSY": Trouble.BUSY,
        "dfu-util: More than one DFU capable USB device found!": Trouble.BUSY,
        "dfu-util: Page at 0x08000000 is not writeable": Trouble.LOCKED,
        "Programmed memory failed verification": Trouble.NOT_VERIFIED,
    },
    "avrdude": {
        "avrdude OS error: cannot open port /dev/ttyACM0: Permission denied": (
            Trouble.NO_ACCESS_PORT
        ),
        "avrdude OS error: cannot open port /dev/ttyACM0: Device or resource busy": Trouble.BUSY,
        "avrdude stk500_getsync() warning: attempt 1 of 10: not in sync: resp=0x00": (
            Trouble.NO_ANSWER
        ),
        "avrdude error: protocol expects sync byte 0x14 but got 0x10": Trouble.NO_ANSWER,
        "avrdude stk500v2_getsync() error: timeout communicating with programmer": (
            Trouble.NO_ANSWER
        ),
        "avrdude error: expected signature for ATmega328P is 1E 95 0F": Trouble.WRONG_CHIP,
        "avrdude error: verification mismatch, first encountered at addr 0x0000": (
            Trouble.NOT_VERIFIED
        ),
    },
    "stm32flash": {
        "Failed to open port: /dev/ttyUSB0: Permission denied": Trouble.NO_ACCESS_PORT,
        "Error: /dev/ttyUSB0 is already open": Trouble.BUSY,
    },
    "gdb": {
        "Remote connection closed": Trouble.NO_TARGET,
        "Error finishing flash operation": Trouble.LOCKED,
        "Section .text, range 0xc0 -- 0x1758: MIS-MATCHED!": Trouble.NOT_VERIFIED,
    },
}


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, said in WORDS.items() for words in said]
)
def test_known_words(name: str, words: str, tmp_path: Path) -> None:
    run = ToolRun(name, 1, f"{name} 1.0\n{words}\nbye\n")
    error = explain(RUNNERS[name].symptoms, run, "demo", "press it", "nothing", tmp_path / "log")
    trouble = WORDS[name][words]
    assert error.what == trouble.what
    assert isinstance(error, CheckFailedError) == (trouble is Trouble.NOT_VERIFIED)
    assert (trouble.hint or "press it") in error.hint
    assert "log" in error.hint and error.got


def test_unknown_words_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    failed = explain((), ToolRun("x", 7, "a\nb \n\n"), "demo", "", "", log)
    assert isinstance(failed, BoardError)
    assert str(failed) == f"demo: x failed with 7; got 'b'; the whole output is in {log}"
    silent = explain((), ToolRun("x", 7, "\n"), "demo", "", "", log)
    assert "no message" in str(silent)
    unproved = explain((), ToolRun("x", 0, "ok"), "demo", "", "nothing was verified", log)
    assert isinstance(unproved, CheckFailedError)
    assert str(unproved).startswith("demo: nothing was verified; got 'ok'")


@pytest.mark.parametrize("name", sorted(RUNNERS.keys() - {"uf2"}))
def test_a_tool_that_is_not_installed(
    name: str, plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    runner, job = plan(name)
    assert runner.why_not() == f"{RUNNERS[name].programs[0]} is not installed"
    assert "install" in runner.how_to_get()
    with pytest.raises(ToolMissingError):
        runner.write(job)


class TestDoubles:
    """Programs on the PATH that say what the tools say, for what needs a USB device."""

    @pytest.fixture
    def add_tool(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        directory = tmp_path / "bin"
        directory.mkdir()
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

        def add(name: str, body: str) -> None:
            path = directory / name
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)

        return add

    DFU = (
        'while [ "$1" ]; do case "$1" in\n'
        '  -D) cp "$2" "$0.flash"; echo "Download [====] 100%"; echo "File downloaded '
        'successfully" ;;\n'
        '  -U) head -c 2048 "$0.flash" >"$2"; echo "Upload done." ;;\n'
        "esac; shift; done"
    )

    def test_dfu_util_is_compared_with_what_it_reads_back(
        self, plan: Plan, add_tool: Callable[..., None]
    ) -> None:
        add_tool("dfu-util", self.DFU)
        runner, job = plan("dfu-util")
        job.log.parent.mkdir()
        job.log.with_name("readback.bin").write_bytes(b"of an earlier run")
        runner.write(job)
        assert not job.log.with_name("readback.bin").exists()
        add_tool("dfu-util", self.DFU.replace("head -c 2048", "tail -c 2047"))
        with pytest.raises(CheckFailedError, match="demo, dfu-util: the board's memory differs"):
            runner.write(job)
        assert not job.log.with_name("readback.bin").exists()

    SAYS: ClassVar[dict[str, str]] = {
        "openocd": "** Programming Finished **\n** Verified OK **",
        "pyocd": "All 2048 bytes match.",
        "st-flash": "  2/  2 pages written\nINFO common.c: Flash written and verified! jolly good!",
        "avrdude": "2048 bytes of flash written\n2048 bytes of flash verified",
        "gdb": "Transfer rate: 5 KB/sec.\nSection .text, range 0xc0 -- 0x17: matched.",
        "stm32flash": "Wrote and verified address 0x08000800 (100.00%) Done.",
    }

    @pytest.mark.parametrize("name", SAYS)
    def test_only_the_tools_own_word_counts_as_done(
        self, name: str, plan: Plan, add_tool: Callable[..., None]
    ) -> None:
        runner, job = plan(name, port="/dev/ttyEK0")
        add_tool(runner.programs[0], f"cat <<'EOF'\n{self.SAYS[name]}\nEOF")
        runner.write(job)
        add_tool(runner.programs[0], "echo done")
        with pytest.raises(CheckFailedError):
            runner.write(job)
        add_tool(runner.programs[0], f"cat <<'EOF'\n{self.SAYS[name]}\nEOF\nexit 1")
        with pytest.raises(BoardError, match="failed with 1"):
            runner.write(job)


def test_a_program_beside_python_is_found(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "pyocd"
    path.write_text("#!/bin/sh\necho All 1 bytes match.\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    runner, job = plan("pyocd")
    assert runner.why_not() == "" and runner.steps(job)[0].argv[0] == str(path)
    runner.write(job)


def test_every_runner_is_tested_here() -> None:
    assert EXAMPLES.keys() == RUNNERS.keys()
    assert WORDS.keys() == RUNNERS.keys() - {"uf2"}
    assert issubclass(CheckFailedError, EdgekilnError)
