"""Finds the serial port of a board among those of this machine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.flash.destination import AUTO
from edgekiln.firmware.flash.diagnosis import Trouble

_RESTART_SECONDS = 10.0
_PAUSE_SECONDS = 0.1

Choose = Callable[[str, Sequence[str]], int | None]
"""Asks a person: a question and the answers, to the number of one; None where nobody is there."""


@dataclass(frozen=True)
class Port:
    """A serial port of this machine.

    Attributes:
        device: Its path.
        description: What it says of itself.
        usb_id: Vendor and product, ``1234:abcd``; empty where it is not on USB.
        serial_number: The device's own, or empty.
        interface: The number of its USB interface, or None where it is not known.
    """

    device: str
    description: str = ""
    usb_id: str = ""
    serial_number: str = ""
    interface: int | None = None

    def __str__(self) -> str:
        words = [self.device, f"({self.usb_id})" if self.usb_id else "", self.description]
        return " ".join(filter(None, words))


def list_ports() -> tuple[Port, ...]:
    """Returns this machine's serial ports on USB, sorted by path."""
    from serial.tools.list_ports import comports

    return tuple(
        Port(
            device=port.device,
            description="" if port.description in (None, "n/a") else port.description,
            usb_id=f"{port.vid:04x}:{port.pid:04x}",
            serial_number=port.serial_number or "",
            interface=_interface_of(port.location),
        )
        for port in sorted(comports(), key=lambda port: str(port.device))
        if port.vid is not None and port.pid is not None
    )


def find_port(board: Board, named: str, choose: Choose) -> Port:
    """Returns the port that a user named, or the one that is this board's.

    A board without a USB identity of its own is behind some adapter: then each port fits.

    Args:
        board: The board.
        named: A port's path, or `AUTO`.
        choose: Asks which, where several fit.

    Raises:
        BoardError: There is no such port, or none that fits, or it may not be used.
        BadInputError: Several fit, and nobody is there to be asked.
    """
    here = list_ports()
    if named != AUTO:
        # An absolute path cannot be taken for an option.
        device = os.path.abspath(named)
        known = next((port for port in here if port.device == device), Port(device))
        return _check(board, known, here)
    fitting = [port for port in here if _fits(board, port)]
    if not fitting:
        raise BoardError(
            "no serial port of this board is there",
            where=board.slug,
            got=_list(here),
            allowed=f"USB {', '.join(board.usb.ids)}" if board.usb else "any on USB",
            hint="plug it in, or name its port with --port",
        )
    if len(fitting) == 1:
        return _check(board, fitting[0], here)
    answer = choose(f"Which of these is {board.slug}?", [str(port) for port in fitting])
    if answer is None:
        raise BadInputError(
            "several serial ports fit",
            where=board.slug,
            got=_list(fitting),
            hint="name one with --port",
        )
    return _check(board, fitting[answer], here)


def _fits(board: Board, port: Port) -> bool:
    if board.usb is None:
        return True
    is_other = None not in (board.usb.interface, port.interface)
    return port.usb_id in board.usb.ids and not (is_other and board.usb.interface != port.interface)


def _interface_of(location: str | None) -> int | None:
    """Returns the interface's number at the end of a place on USB, like ``1-1.4:1.0``."""
    match = re.search(r":\d+\.(\d+)$", location or "")
    return int(match[1]) if match else None


def probe_of(board: Board, port: Port) -> str:
    """Returns the serial number of the debug probe that a port belongs to.

    Empty where the port is not its probe's, or where there is only one such probe: then the
    tools find it without.
    """
    if board.usb is None or not board.usb.is_probe or port.usb_id not in board.usb.ids:
        return ""
    serials = {each.serial_number for each in list_ports() if each.usb_id in board.usb.ids}
    return port.serial_number if len(serials) > 1 else ""


def wait_for_port(device: str) -> None:
    """Waits until a port is there: a board that restarts may take its port along.

    Raises:
        BoardError: It does not come back.
    """
    deadline = time.monotonic() + _RESTART_SECONDS
    while not os.access(device, os.R_OK | os.W_OK):
        if time.monotonic() > deadline:
            raise BoardError(
                f"the port did not come back within {_RESTART_SECONDS:.0f} s", where=device
            )
        time.sleep(_PAUSE_SECONDS)


def _check(board: Board, port: Port, here: Sequence[Port]) -> Port:
    if not os.path.exists(port.device):
        raise BoardError("no such port", where=port.device, allowed=_list(here))
    if not os.access(port.device, os.R_OK | os.W_OK):
        trouble = Trouble.NO_ACCESS_PORT
        raise BoardError(trouble.what, where=f"{board.slug}, {port.device}", hint=trouble.hint)
    return port


def _list(ports: Sequence[Port]) -> str:
    return ", ".join(map(str, ports)) or "no serial port on USB"
