"""stm32flash itself, against a double of the bootloader in the chip's ROM."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from stm32_bootloader import ERASE, READ, WRITE, Stm32Bootloader

from edgekiln.bench.device import run_on_board
from edgekiln.errors import BoardError, CheckFailedError, EdgekilnError
from edgekiln.firmware.boards import board_slugs, load_board
from edgekiln.firmware.flash.runner import Job, Runner
from edgekiln.firmware.image import Image

Plan = Callable[..., tuple[Runner, Job]]


@pytest.fixture(autouse=True)
def stm32flash(need: Callable[[str], str]) -> Iterator[None]:
    need("stm32flash")
    yield


def test_the_flash_holds_the_image(plan: Plan, image: Image) -> None:
    assert image.bin is not None
    data = image.bin.read_bytes()
    with Stm32Bootloader() as chip:
        # A pty has no parity.
        runner, job = plan("stm32flash", port=chip.port, mode="8n1")
        runner.write(job)
    assert chip.flash[: len(data)] == data
    assert chip.flash[len(data) : 16384] == b"\xff" * (16384 - len(data))
    assert set(chip.flash[16384:]) == {0}, "more was erased than the image needs"
    assert chip.started_at == 0x0800_0000
    assert {ERASE, WRITE, READ} <= set(chip.commands)
    log = job.log.read_text()
    assert "stm32flash -b 115200" in log and "Wrote and verified" in log
    assert not (Path.cwd() / "pwned").exists()


FAULTS = {
    "a byte that does not hold": (
        {"spoil": lambda address, value: value & 0xFE if address == 0x0800_0107 else value},
        CheckFailedError,
        "memory differs from the image",
    ),
    "no bootloader": ({"silent": True}, BoardError, "does not answer.*set BOOT0"),
    "a locked chip": ({"locked": True}, BoardError, "locked"),
    "another chip": ({"product": 0x999}, BoardError, "another one than this board's"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_can_be_wrong_is_one_line(plan: Plan, fault: str) -> None:
    changes, kind, message = FAULTS[fault]
    with Stm32Bootloader(**changes) as chip:
        runner, job = plan("stm32flash", port=chip.port, mode="8n1")
        with pytest.raises(kind, match=message) as caught:
            runner.write(job)
    assert isinstance(caught.value, EdgekilnError)
    assert str(caught.value).count("\n") == 0 and str(job.log) in str(caught.value)
    assert chip.started_at is None


def test_a_port_that_is_gone(plan: Plan) -> None:
    runner, job = plan("stm32flash", port="/dev/ttyEK0")
    with pytest.raises(BoardError, match="demo, stm32flash: the port cannot be opened"):
        runner.write(job)


def stm32_boards() -> list[str]:
    boards = map(load_board, board_slugs())
    return [b.slug for b in boards if b.flash and "stm32flash" in b.flash.runners and b.emulator]


@pytest.mark.emulator
@pytest.mark.parametrize("slug", stm32_boards())
def test_what_was_written_boots(
    slug: str, plan: Plan, digits_image: Callable[[str, str], Image], tmp_path: Path
) -> None:
    image, board = digits_image("cnn", slug), load_board(slug)
    with Stm32Bootloader() as chip:
        runner, job = plan("stm32flash", port=chip.port, mode="8n1")
        runner.write(dataclasses.replace(job, image=image))
    written = tmp_path / "written.bin"
    written.write_bytes(chip.flash)
    codes = np.random.default_rng(1).integers(-128, 128, (2, 8, 8, 1)).astype(np.int8)
    wanted = run_on_board(image, board, codes, count=False, progress=False)
    got = run_on_board(
        dataclasses.replace(image, elf=written), board, codes, count=False, progress=False
    )
    np.testing.assert_array_equal(got.outputs[0], wanted.outputs[0])
