"""Reads the idx files in which MNIST and its kin are published."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError
from edgekiln.files import read_input_file

_UINT8 = 0x08


@dataclass(frozen=True)
class IdxFile:
    """A published file, gzip-compressed; checksum and size are those of its content.

    Attributes:
        name: The file's name, ``.gz``.
        sha256: SHA-256 of the uncompressed content, as 64 hexadecimal digits.
        size_bytes: Bytes of the uncompressed content.
    """

    name: str
    sha256: str
    size_bytes: int


def read_idx(path: Path, file: IdxFile) -> npt.NDArray[np.uint8]:
    """Returns the array in a file, uint8 of the shape that the file states.

    Raises:
        BadInputError: The file is missing, damaged, or not the published one.
    """
    data = _decompress(path, read_input_file(path), file.size_bytes)
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise BadInputError(
            "is not the published file",
            where=path,
            got=f"SHA-256 {digest[:16]}… of the uncompressed content",
            allowed=f"{file.sha256[:16]}…",
            hint="remove it, and have it downloaded again",
        )
    return parse_idx(data, path)


def parse_idx(data: bytes, where: Path) -> npt.NDArray[np.uint8]:
    """Returns the array in the content of an idx file: a header of big-endian sizes, then bytes.

    Raises:
        BadInputError: The content contradicts its header.
    """
    dimensions = data[3] if len(data) >= 4 else 0
    header_bytes = 4 + 4 * dimensions
    if data[:3] != bytes((0, 0, _UINT8)) or not dimensions or len(data) < header_bytes:
        raise BadInputError("is not an idx file of bytes", where=where, got=data[:4].hex(" "))
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", dimensions, offset=4))
    values = np.frombuffer(data, np.uint8, offset=header_bytes)
    expected = int(np.prod(shape, dtype=object))
    if values.size != expected:
        raise BadInputError(
            "is shorter or longer than its header says",
            where=where,
            got=f"{values.size} values",
            allowed=f"{expected}, for shape {shape}",
        )
    return values.reshape(shape)


def _decompress(path: Path, data: bytes, size_bytes: int) -> bytes:
    """Decompresses no more than a byte beyond the size that the file must have."""
    decompressor = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        return decompressor.decompress(data, size_bytes + 1)
    except zlib.error as error:
        raise BadInputError("is not a gzip file", where=path, got=error) from None
