"""UF2: the file format that a bootloader takes by being copied to a USB drive.

A file is a row of 512-byte blocks, each of which says by itself where its payload goes
(github.com/microsoft/uf2). What is written here has payloads of 256 bytes, a page of flash each,
as the RP2040's bootrom wants them; what is read may have other sizes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from edgekiln.errors import BadInputError

BLOCK_BYTES = 512
PAYLOAD_BYTES = 256

_FIRST_MAGIC = 0x0A324655
_SECOND_MAGIC = 0x9E5D5157
_LAST_MAGIC = 0x0AB16F30
_FLAG_NOT_MAIN_FLASH = 0x0000_0001
_FLAG_FAMILY = 0x0000_2000
_HEADER = struct.Struct("<8I")
_LAST = struct.Struct("<I")
_DATA_BYTES = BLOCK_BYTES - _HEADER.size - _LAST.size


@dataclass(frozen=True)
class Uf2:
    """What a UF2 file writes to flash.

    Attributes:
        address: Where the first byte goes.
        data: All bytes, without a gap; the last block's padding included.
        family: Number of the chip's family, or None where the file names none.
    """

    address: int
    data: bytes
    family: int | None


@dataclass(frozen=True)
class _Block:
    flags: int
    address: int
    payload: bytes
    number: int
    count: int
    family: int


def encode_uf2(data: bytes, address: int, family: int) -> bytes:
    """Returns a UF2 file that writes bytes to an address; the last page is filled with zeros.

    Args:
        data: What is written, at least one byte.
        address: Where it goes, a multiple of 256.
        family: Number of the chip's family.

    Raises:
        BadInputError: There are no bytes, or the address is not a page's.
    """
    if not data or address % PAYLOAD_BYTES:
        raise BadInputError(
            "a UF2 file holds whole pages",
            got=f"{len(data)} bytes at {address:#x}",
            allowed=f"bytes from a multiple of {PAYLOAD_BYTES} on",
        )
    pages = [data[at : at + PAYLOAD_BYTES] for at in range(0, len(data), PAYLOAD_BYTES)]
    return b"".join(
        _HEADER.pack(
            *(_FIRST_MAGIC, _SECOND_MAGIC, _FLAG_FAMILY, address + number * PAYLOAD_BYTES),
            *(PAYLOAD_BYTES, number, len(pages), family),
        )
        + page.ljust(_DATA_BYTES, b"\0")
        + _LAST.pack(_LAST_MAGIC)
        for number, page in enumerate(pages)
    )


def decode_uf2(data: bytes, where: object = "") -> Uf2:
    """Reads a UF2 file and checks it as strictly as a flash deserves.

    Blocks that are not meant for the main flash are left out, as bootloaders do.

    Args:
        data: The file's bytes.
        where: The file's name, for messages.

    Raises:
        BadInputError: A block is damaged, missing, there twice, or of another family than the
            first; or the blocks leave a gap.
    """
    if not data or len(data) % BLOCK_BYTES:
        raise BadInputError(
            "not a UF2 file",
            where=where,
            got=f"{len(data)} bytes",
            allowed=f"a multiple of {BLOCK_BYTES}",
        )
    every = list(_read_blocks(data, where))
    numbers = [block.number for block in every]
    if sorted(numbers) != list(range(len(every))) or {len(every)} != {b.count for b in every}:
        raise BadInputError("blocks of the UF2 file are missing or there twice", where=where)
    blocks = sorted(
        (block for block in every if not block.flags & _FLAG_NOT_MAIN_FLASH),
        key=lambda block: block.address,
    )
    if not blocks:
        raise BadInputError("the UF2 file holds nothing for the flash", where=where)
    families = {block.family if block.flags & _FLAG_FAMILY else None for block in blocks}
    if len(families) != 1:
        raise BadInputError("the UF2 file is for several families of chips", where=where)
    written = bytearray()
    for block in blocks:
        if block.address != blocks[0].address + len(written):
            raise BadInputError(
                "the blocks of the UF2 file do not follow each other",
                where=where,
                got=f"{block.address:#010x}",
                allowed=f"{blocks[0].address + len(written):#010x}",
            )
        written += block.payload
    return Uf2(blocks[0].address, bytes(written), families.pop())


def _read_blocks(data: bytes, where: object) -> Iterator[_Block]:
    for at in range(0, len(data), BLOCK_BYTES):
        first, second, flags, address, size, number, count, family = _HEADER.unpack_from(data, at)
        (last,) = _LAST.unpack_from(data, at + BLOCK_BYTES - _LAST.size)
        magic = (first, second, last) == (_FIRST_MAGIC, _SECOND_MAGIC, _LAST_MAGIC)
        if not magic or not 0 < size <= _DATA_BYTES:
            raise BadInputError(f"block {at // BLOCK_BYTES} is not one of UF2", where=where)
        start = at + _HEADER.size
        yield _Block(flags, address, data[start : start + size], number, count, family)
