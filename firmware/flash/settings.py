"""What a board's file may say of each runner: the tables ``[flash.<runner>]``.

The fields of a class are the keys of its table; those with a default may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EmulatorSettings:
    """The emulator takes the image each time it starts: there is nothing to set."""


@dataclass(frozen=True)
class Uf2Settings:
    """A bootloader that shows up as a drive.

    Attributes:
        board_id: ``Board-ID`` in the drive's INFO_UF2.TXT.
        enter: What a person does to make the drive appear.
    """

    board_id: str
    enter: str


@dataclass(frozen=True)
class Stm32flashSettings:
    """ST's bootloader in ROM, over a serial port (application note AN3155).

    Attributes:
        enter: What a person does to start the bootloader.
        mode: Bits, parity and stop bits; AN3155 wants even parity.
    """

    enter: str
    mode: str = "8e1"


@dataclass(frozen=True)
class OpenocdSettings:
    """OpenOCD with a debug probe.

    Attributes:
        interface: OpenOCD's file for the probe, or for the whole board.
        target: OpenOCD's file for the chip; empty where the board's file includes it.
        transport: The probe's transport, where it has several.
        speed_khz: Clock of the debug port; 0 leaves it to the files.
    """

    interface: str
    target: str = ""
    transport: str = ""
    speed_khz: int = 0


@dataclass(frozen=True)
class PyocdSettings:
    """pyOCD with a debug probe.

    Attributes:
        target: pyOCD's name of the chip.
    """

    target: str


@dataclass(frozen=True)
class StFlashSettings:
    """st-flash with an ST-LINK: it finds out everything itself."""


@dataclass(frozen=True)
class DfuUtilSettings:
    """ST's bootloader in ROM, over USB (application note AN3156).

    Attributes:
        usb_id: The bootloader's vendor and product.
        enter: What a person does to start the bootloader.
    """

    usb_id: str
    enter: str


@dataclass(frozen=True)
class AvrdudeSettings:
    """An AVR's bootloader over a serial port.

    Attributes:
        part: avrdude's name of the chip.
        programmer: avrdude's name of the bootloader's protocol.
        baud: The bootloader's speed.
    """

    part: str
    programmer: str
    baud: int


@dataclass(frozen=True)
class GdbSettings:
    """GDB with the server of any debug probe.

    Attributes:
        server: Where the server listens, ``host:port``.
        reset: What the server calls a reset that lets the board run.
    """

    server: str = "localhost:3333"
    reset: str = "reset"


RunnerSettings = (
    EmulatorSettings
    | Uf2Settings
    | Stm32flashSettings
    | OpenocdSettings
    | PyocdSettings
    | StFlashSettings
    | DfuUtilSettings
    | AvrdudeSettings
    | GdbSettings
)

#: Runner to the class of its table.
SETTINGS: dict[str, type[RunnerSettings]] = {
    "emulator": EmulatorSettings,
    "uf2": Uf2Settings,
    "stm32flash": Stm32flashSettings,
    "openocd": OpenocdSettings,
    "pyocd": PyocdSettings,
    "st-flash": StFlashSettings,
    "dfu-util": DfuUtilSettings,
    "avrdude": AvrdudeSettings,
    "gdb": GdbSettings,
}
