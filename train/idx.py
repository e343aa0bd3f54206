"""Reads the idx files in which MNIST and its kin are published."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekiln.errors import BadInputError

_UINT8 = 0x08


def parse_idx(data: bytes, where: object) -> npt.NDArray[np.uint8]:
    """Returns the array in the content of an idx file: a header of big-endian sizes, then bytes.

    Args:
        data: The file's content, uncompressed.
        where: The file's name, for messages.

    Returns:
        uint8, of the shape that the file states.

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
