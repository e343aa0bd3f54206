"""GDB itself, against QEMU without a program: what was loaded has to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from empty_qemu import empty_qemu

from edgekiln.bench.device import run_on_board
from edgekiln.errors import BoardError, CheckFailedError
from edgekiln.firmware.boards import board_slugs, load_board
from edgekiln.firmware.flash.registry import find_runner
from edgekiln.firmware.flash.runner import Job, Runner
from edgekiln.firmware.flash.settings import GdbSettings
from edgekiln.firmware.flash.tools import Gdb
from edgekiln.firmware.image import Image

Plan = Callable[..., tuple[Runner, Job]]
BuildDigits = Callable[[str, str], Image]

#: What QEMU calls a reset; probes' servers call it "reset".
QEMU_SETTINGS = GdbSettings(reset="system_reset")


def qemu_boards() -> list[str]:
    boards = map(load_board, board_slugs())
    return [
        b.slug
        for b in boards
        if b.core.startswith("Cortex-M") and b.emulator is not None and b.emulator.kind == "qemu"
    ]


@pytest.mark.emulator
@pytest.mark.parametrize("slug", qemu_boards())
def test_every_cortex_m_is_loaded_compared_and_runs(
    slug: str, digits_image: BuildDigits, need: Callable[[str], str], tmp_path: Path
) -> None:
    need("gdb-multiarch")
    board = load_board(slug)
    image = digits_image("mlp", slug)
    codes = np.random.default_rng(2).integers(-128, 128, (2, 8, 8, 1)).astype(np.int8)
    shape = (2, *image.inputs[0].shape[1:])
    with empty_qemu(board) as there:
        job = Job(board, image, tmp_path / "flash.log", to=there.server)
        Gdb(QEMU_SETTINGS).write(job)
        got = run_on_board(image, board, codes.reshape(shape), port=there.port, progress=False)
    assert "matched." in job.log.read_text()
    wanted = run_on_board(image, board, codes.reshape(shape), count=False, progress=False)
    np.testing.assert_array_equal(got.outputs[0], wanted.outputs[0])
    assert not got.emulated, "a board at a port is a real one, as far as anybody can tell"


@pytest.mark.emulator
def test_memory_that_does_not_hold_is_found(
    digits_image: BuildDigits, need: Callable[[str], str], tmp_path: Path
) -> None:
    """An image for the RAM of another board: QEMU drops what is written to nowhere."""
    need("gdb-multiarch")
    board = load_board("mps2-an386")
    image = digits_image("mlp", "mps2-an386")
    elf = tmp_path / "image.elf"
    elf.write_bytes(image.elf.read_bytes())
    moved = dataclasses.replace(image, elf=move_text(elf))
    with empty_qemu(board) as there:
        job = Job(board, moved, tmp_path / "flash.log", to=there.server)
        with pytest.raises(CheckFailedError, match="memory differs from the image"):
            Gdb(QEMU_SETTINGS).write(job)


def move_text(elf: Path) -> Path:
    """Moves the code of an ELF to where the board has no memory."""
    import subprocess

    subprocess.run(
        ["arm-none-eabi-objcopy", "--change-section-address", ".weights=0x70000000", str(elf)],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return elf


def test_no_server_is_one_line(plan: Plan, need: Callable[[str], str]) -> None:
    need("gdb-multiarch")
    runner, job = plan("gdb", to="127.0.0.1:9")
    with pytest.raises(BoardError, match=r"demo, gdb: no GDB server answers.*--to host:port"):
        runner.write(job)


def test_a_board_of_the_project_has_it() -> None:
    runner = find_runner(load_board("mps2-an386"), "gdb")
    assert isinstance(runner, Gdb) and runner.settings == GdbSettings()
