"""The checksum without which the RP2040's bootrom does not start an image.

The bootrom copies the first 256 bytes of the flash, the second stage of the boot, into RAM and
runs them only if the last four are the CRC-32 of the others, most significant bit first and not
inverted at the end (RP2040 datasheet, 2.8.1.3.1).
"""

from __future__ import annotations

import struct
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from edgekiln.errors import BadInputError

BOOT2_BYTES = 256
_CODE_BYTES = BOOT2_BYTES - 4
_SECTION = ".boot2"
_POLYNOMIAL = 0x04C11DB7


def boot2_checksum(code: bytes) -> int:
    """Returns the checksum of the second stage's 252 bytes."""
    crc = 0xFFFFFFFF
    for byte in code:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (_POLYNOMIAL if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def seal_boot2(elf: Path) -> None:
    """Writes the checksum into an ELF's second stage; does nothing where it has none.

    Raises:
        BadInputError: The file is not an ELF, or its second stage has a wrong size.
    """
    try:
        with elf.open("rb") as stream:
            section = ELFFile(stream).get_section_by_name(_SECTION)
            if section is None:
                return
            code, offset = section.data(), section["sh_offset"]
    except (OSError, ELFError) as error:
        raise BadInputError(f"not an ELF file: {error}", where=elf) from None
    if len(code) != BOOT2_BYTES:
        raise BadInputError(
            "the second stage of the boot has a wrong size",
            where=elf,
            got=f"{len(code)} bytes",
            allowed=f"{BOOT2_BYTES} bytes",
        )
    with elf.open("r+b") as stream:
        stream.seek(offset + _CODE_BYTES)
        stream.write(struct.pack("<I", boot2_checksum(code[:_CODE_BYTES])))
