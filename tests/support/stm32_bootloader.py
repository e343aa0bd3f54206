"""A double of the bootloader in the ROM of an STM32: the UART protocol of ST's AN3155 on a pty.

Its flash is NOR: erasing sets all bits, writing clears some, and nothing is erased at first.
"""

from __future__ import annotations

import functools
import operator
import os
import struct
import threading
import tty
from collections.abc import Callable
from types import TracebackType

ACK, NACK = b"\x79", b"\x1f"
GET, GET_VERSION, GET_ID, READ, GO, WRITE, ERASE = 0x00, 0x01, 0x02, 0x11, 0x21, 0x31, 0x44
COMMANDS = (GET, GET_VERSION, GET_ID, READ, GO, WRITE, ERASE)
#: Sectors of an STM32F405 (RM0090, table 5), in KiB.
SECTORS_KIB = (16, 16, 16, 16, 64, 128, 128, 128, 128, 128, 128, 128)
STM32F405 = 0x413


class _GoneError(Exception):
    """The other side has closed the line, or the test is over."""


class Stm32Bootloader:
    """A chip in its bootloader, for the length of a ``with`` block.

    Attributes:
        port: The pty to open.
        flash: The flash's bytes.
        started_at: The address that the host had it start, or None so far.
        commands: What it was told to do, in this order.
    """

    def __init__(
        self,
        *,
        product: int = STM32F405,
        origin: int = 0x08000000,
        silent: bool = False,
        locked: bool = False,
        spoil: Callable[[int, int], int] = lambda _address, value: value,
    ) -> None:
        """Prepares a chip.

        Args:
            product: Its product ID.
            origin: Address of its flash.
            silent: It is not in its bootloader: nothing answers.
            locked: It is protected against being read and written.
            spoil: What a byte that is written becomes: ``spoil(address, value)``.
        """
        self.flash = bytearray(1024 * sum(SECTORS_KIB))
        self.started_at: int | None = None
        self.commands: list[int] = []
        self._product, self._origin = product, origin
        self._silent, self._locked, self._spoil = silent, locked, spoil
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._ours)
        tty.setraw(self._theirs)
        self.port = os.ttyname(self._theirs)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stm32Bootloader:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._theirs)  # with the last user of the port gone, reading ends with EIO
        self._thread.join(10)
        os.close(self._ours)

    def _run(self) -> None:
        try:
            while self._silent or self._take(1) != b"\x7f":
                if self._silent:
                    self._take(1)
            self._send(ACK)
            while self.started_at is None:
                self._obey()
        except _GoneError:
            return

    def _obey(self) -> None:
        (command,) = self._take(1)
        if command == 0x7F:  # the host begins anew
            self._send(NACK)
            return
        (complement,) = self._take(1)
        secret = command in (READ, WRITE, GO, ERASE)
        if command ^ complement != 0xFF or command not in COMMANDS or (self._locked and secret):
            self._send(NACK)
            return
        self._send(ACK)
        self.commands.append(command)
        {
            GET: self._tell_commands,
            GET_VERSION: lambda: self._send(b"\x31\0\0" + ACK),
            GET_ID: lambda: self._send(b"\x01" + struct.pack(">H", self._product) + ACK),
            READ: self._read,
            GO: self._go,
            WRITE: self._write,
            ERASE: self._erase,
        }[command]()

    def _tell_commands(self) -> None:
        self._send(bytes([len(COMMANDS), 0x31, *COMMANDS]) + ACK)

    def _read(self) -> None:
        place = self._take_address()
        (count, complement) = self._take(2)
        if count ^ complement != 0xFF:
            self._send(NACK)
            return
        self._send(ACK + bytes(self.flash[place : place + count + 1]).ljust(count + 1, b"\0"))

    def _go(self) -> None:
        self.started_at = self._take_address() + self._origin

    def _write(self) -> None:
        place = self._take_address()
        (count,) = self._take(1)
        data = self._take(count + 1)
        (checksum,) = self._take(1)
        if functools.reduce(operator.xor, data, count) != checksum:
            self._send(NACK)
            return
        for number, value in enumerate(data, place):
            self.flash[number] &= self._spoil(self._origin + number, value)
        self._send(ACK)

    def _erase(self) -> None:
        (count,) = struct.unpack(">H", self._take(2))
        ends = [1024 * sum(SECTORS_KIB[:number]) for number in range(len(SECTORS_KIB) + 1)]
        if count >= 0xFFF0:  # all of it
            sectors: tuple[int, ...] = tuple(range(len(SECTORS_KIB)))
        else:
            sectors = struct.unpack(f">{count + 1}H", self._take(2 * (count + 1)))
        self._take(1)
        for sector in sectors:
            begin, end = ends[sector : sector + 2]
            self.flash[begin:end] = b"\xff" * (end - begin)
        self._send(ACK)

    def _take_address(self) -> int:
        """Receives an address; returns the place in the flash."""
        data = self._take(5)
        if functools.reduce(operator.xor, data) != 0:
            self._send(NACK)
            raise _GoneError
        self._send(ACK)
        (address,) = struct.unpack(">I", data[:4])
        return int(address) - self._origin

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                piece = os.read(self._ours, count - len(data))
            except OSError:
                raise _GoneError from None
            if not piece:
                raise _GoneError
            data += piece
        return data

    def _send(self, data: bytes) -> None:
        try:
            os.write(self._ours, data)
        except OSError:
            raise _GoneError from None
