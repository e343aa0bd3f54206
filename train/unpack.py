"""How large what is packed in a zip file from outside may be."""

from __future__ import annotations

import os
import zipfile

from edgekiln.errors import BadInputError


def check_unpacked_size(archive: zipfile.ZipFile, where: object) -> None:
    """Refuses a zip file whose content would take more than half of this machine's memory.

    Kilobytes can unpack to terabytes. What a member says of its size holds: no more than that
    is ever read from it.

    Raises:
        BadInputError: It is too large.
    """
    size, most = sum(member.file_size for member in archive.infolist()), memory_bytes() // 2
    if size > most:
        raise BadInputError(
            "unpacks to more than half of this machine's memory",
            where=where,
            got=f"{size:,} bytes",
            allowed=f"at most {most:,}",
        )


def memory_bytes() -> int:
    """Returns how much memory this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
