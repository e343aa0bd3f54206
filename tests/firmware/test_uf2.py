from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import BadInputError
from edgekiln.firmware.boot2 import boot2_checksum
from edgekiln.firmware.uf2 import Uf2, decode_uf2, encode_uf2

PICO = 0xE48BFF56


def change(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


@given(st.binary(min_size=1, max_size=2000), st.integers(0, 1 << 20), st.randoms())
def test_what_is_written_is_read_in_any_order(
    data: bytes, page: int, shuffle: random.Random
) -> None:
    file = encode_uf2(data, page * 256, PICO)
    blocks = [file[at : at + 512] for at in range(0, len(file), 512)]
    shuffle.shuffle(blocks)
    padded = data.ljust(-(-len(data) // 256) * 256, b"\0")
    assert decode_uf2(b"".join(blocks)) == Uf2(page * 256, padded, PICO)


def test_a_block_is_as_the_format_says() -> None:
    file = encode_uf2(bytes(range(256)) + b"\xff", 0x1000_0000, PICO)
    assert len(file) == 1024
    assert file[:4] == b"UF2\n"
    assert struct.unpack_from("<8I", file, 512) == (
        *(0x0A324655, 0x9E5D5157, 0x2000, 0x1000_0100),
        *(256, 1, 2, 0xE48BFF56),
    )
    assert file[32:288] == bytes(range(256))
    assert file[544:800] == b"\xff" + bytes(255)
    assert file[508:512] == file[1020:] == bytes.fromhex("306fb10a")


@pytest.mark.parametrize(("data", "address"), [(b"", 0), (b"x", 255), (b"x", 0x1000_0080)])
def test_only_whole_pages_are_written(data: bytes, address: int) -> None:
    with pytest.raises(BadInputError, match="a UF2 file holds whole pages"):
        encode_uf2(data, address, PICO)


FILE = encode_uf2(bytes(600), 0x1000_0000, PICO)


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"", "not a UF2 file; got 0 bytes"),
        (FILE[:-1], "not a UF2 file; got 1535 bytes"),
        (FILE[512:], "missing or there twice"),
        (FILE[:512] * 3, "missing or there twice"),
        (FILE + FILE[:512], "missing or there twice"),
        (change(FILE, 0, 0), "block 0 is not one of UF2"),
        (change(FILE, 512 + 4, 0), "block 1 is not one of UF2"),
        (change(FILE, 1024 + 508, 0), "block 2 is not one of UF2"),
        (change(FILE, 16, 477), "block 0 is not one of UF2"),
        (change(FILE, 16, 0), "block 0 is not one of UF2"),
        (change(FILE, 28, 1), "several families"),
        (change(FILE, 8, 0), "several families"),
        (change(FILE, 16, 255), "do not follow each other; got 0x10000100; allowed: 0x100000ff"),
        (change(FILE, 512 + 12, 0x1000_0000), "do not follow each other"),
    ],
)
def test_a_damaged_file_is_refused(damaged: bytes, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        decode_uf2(damaged, "image.uf2")
    assert str(caught.value).startswith("image.uf2: ")


def test_blocks_that_are_not_for_the_flash_are_left_out() -> None:
    file = change(FILE, 1024 + 8, 0x2001)
    assert decode_uf2(file) == Uf2(0x1000_0000, bytes(512), PICO)
    for at in (8, 512 + 8):
        file = change(file, at, 0x2001)
    with pytest.raises(BadInputError, match="holds nothing for the flash"):
        decode_uf2(file)


def test_a_file_may_name_no_family() -> None:
    file = change(encode_uf2(b"x", 0, PICO), 8, 0)
    assert decode_uf2(file).family is None


def test_the_bootroms_checksum() -> None:
    """CRC-32/MPEG-2 of the catalogue's check string, reveng.sourceforge.io/crc-catalogue."""
    assert boot2_checksum(b"123456789") == 0x0376E6E7
