"""avrdude itself, against an Arduino's own bootloader in simavr: what it writes has to boot."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from avr import require_avr

from edgekiln import pipeline
from edgekiln.bench.device import run_on_board
from edgekiln.errors import BoardError
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.flash.destination import Destination
from edgekiln.firmware.flash.registry import find_runner
from edgekiln.firmware.flash.runner import Job
from edgekiln.firmware.flash.settings import AvrdudeSettings
from edgekiln.firmware.flash.tools import Avrdude
from edgekiln.firmware.image import Image

T = TypeVar("T")

pytestmark = pytest.mark.emulator

BOOTLOADERS = Path("/usr/share/arduino/hardware/arduino/avr/bootloaders")
#: Board to its bootloader's file and address.
BOARDS = {
    "uno": ("optiboot/optiboot_atmega328.hex", 0x7E00),
    "mega": ("stk500v2/stk500boot_v2_mega2560.hex", 0x3E000),
}


@dataclass(frozen=True)
class Arduino:
    """A board with its bootloader and nothing else.

    Attributes:
        port: Its serial port.
        dump: Holds its flash once it is off.
    """

    port: str
    dump: Path


def read_hex(path: Path | None, output: Path) -> bytes:
    """Returns what an Intel HEX file holds, from its first byte; ``output`` will hold it too."""
    assert path is not None
    command = ["avr-objcopy", "-I", "ihex", "-O", "binary", "--gap-fill", "0xff", path, output]
    subprocess.run(command, check=True, timeout=30)
    return output.read_bytes()


def patiently(write: Callable[[], T]) -> T:
    """Tries up to four times: on a starved machine simavr answers later than avrdude waits."""
    for _ in range(3):
        try:
            return write()
        except BoardError as error:
            if "bootloader does not answer" not in str(error):
                raise
    return write()


Boot = Callable[[str], contextlib.AbstractContextManager[Arduino]]


@pytest.fixture(scope="module")
def arduino(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Boot:
    """Returns a function that runs a board for the length of a ``with`` block."""
    require_avr()
    if shutil.which("avrdude") is None or not BOOTLOADERS.is_dir():
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        (pytest.fail if in_ci else pytest.skip)("not installed: avrdude, arduino-core-avr")
    work = tmp_path_factory.mktemp("arduino")
    program = work / "avr_bootloader"
    source = root / "tests/support/avr_bootloader.c"
    command = ["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", source]
    subprocess.run([*command, "-o", program, "-lsimavr"], check=True)

    @contextlib.contextmanager
    def boot(slug: str) -> Iterator[Arduino]:
        name, origin = BOARDS[slug]
        board, code, dump = load_board(slug), work / f"{slug}.bin", work / f"{slug}.flash"
        assert board.emulator is not None
        read_hex(BOOTLOADERS / name, code)
        ours, theirs = os.openpty()
        tty.setraw(theirs)
        process = subprocess.Popen(
            [
                *(program, board.emulator.machine, str(board.clock_hz)),
                *(code, hex(origin), str(ours), dump),
            ],
            pass_fds=[ours],
            stdout=subprocess.PIPE,
        )
        os.close(ours)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.stdout.close()
            yield Arduino(os.ttyname(theirs), dump)
        finally:
            os.close(theirs)
            try:
                assert process.wait(30) == 0
            finally:
                process.kill()

    return boot


@pytest.mark.parametrize("slug", BOARDS)
def test_what_was_written_boots(
    slug: str, arduino: Boot, digits_image: Callable[[str, str], Image], tmp_path: Path
) -> None:
    board = load_board(slug)
    image = digits_image("mlp", slug)
    runner = find_runner(board, "avrdude")
    shape = (1, *image.inputs[0].shape[1:])
    codes = np.random.default_rng(4).integers(-128, 128, shape).astype(np.int8)
    with arduino(slug) as there:
        job = Job(board, image, tmp_path / "flash.log", port=there.port)
        patiently(lambda: runner.write(job))
        got = run_on_board(image, board, codes, port=there.port, progress=False)
    wanted = run_on_board(image, board, codes, count=False, progress=False)
    np.testing.assert_array_equal(got.outputs[0], wanted.outputs[0])
    data = read_hex(image.hex, tmp_path / "image.bin")
    assert there.dump.read_bytes()[: len(data)] == data
    assert "bytes of flash verified" in job.log.read_text()


def test_the_whole_command(
    arduino: Boot, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = root / "tests/golden/digits_mlp_int8.tflite"
    with arduino("uno") as there:
        where = Destination(port=there.port)
        image = patiently(
            lambda: pipeline.flash(str(model), "uno", tmp_path / "build", where=where)
        )
    said = capfd.readouterr().err.splitlines()
    directory = f"{tmp_path}/build/digits_mlp_int8/uno/image"
    command = (
        f"(cd {directory} && avrdude -p atmega328p -c arduino -P {there.port} -b 115200 "
        "-D -U flash:w:image.hex:i)"
    )
    assert command in said
    assert said[-1] == f"{image.elf} boots on uno and answers as it should"


def test_another_chip_is_found_out(
    arduino: Boot, digits_image: Callable[[str, str], Image], tmp_path: Path
) -> None:
    board = load_board("uno")
    image = digits_image("mlp", "uno")
    settings = find_runner(board, "avrdude").settings
    assert isinstance(settings, AvrdudeSettings)
    runner = Avrdude(dataclasses.replace(settings, part="atmega2560"))
    with arduino("uno") as there:
        job = Job(board, image, tmp_path / "flash.log", port=there.port)
        with pytest.raises(BoardError, match=r"uno, avrdude: the chip is another one"):
            patiently(lambda: runner.write(job))
    assert set(there.dump.read_bytes()[:1024]) == {0xFF}, "nothing was written"
