"""A board for the tests of flash runners, with settings as a board's file has them."""

from __future__ import annotations

import dataclasses

from edgekiln.firmware.boards import Board, Flash, Usb, load_board
from edgekiln.firmware.flash.settings import SETTINGS, RunnerSettings

ORIGIN = 0x0800_0000

EXAMPLES: dict[str, dict[str, str | int]] = {
    "uf2": {"board_id": "RPI-RP2", "enter": "hold BOOTSEL while plugging it in"},
    "stm32flash": {"enter": "set BOOT0 and press reset"},
    "openocd": {"interface": "interface/stlink.cfg", "target": "target/stm32f4x.cfg"},
    "pyocd": {"target": "nrf52840"},
    "st-flash": {},
    "dfu-util": {"usb_id": "0483:df11", "enter": "set BOOT0 and press reset"},
    "avrdude": {"part": "atmega328p", "programmer": "arduino", "baud": 115_200},
    "gdb": {},
}


def settings_of(name: str, **changes: str | int) -> RunnerSettings:
    return SETTINGS[name](**{**EXAMPLES[name], **changes})


def make_board(*settings: tuple[str, RunnerSettings], usb: Usb | None = None) -> Board:
    """Returns a board like an STM32F405, with these runners."""
    board = load_board("mps2-an386")
    assert board.memory is not None
    return dataclasses.replace(
        board,
        slug="demo",
        memory=dataclasses.replace(board.memory, flash_origin=ORIGIN),
        emulator=None,
        usb=usb,
        flash=Flash(tuple(name for name, _ in settings), tuple(values for _, values in settings)),
    )
