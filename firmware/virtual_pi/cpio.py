"""The archive that Linux takes as an initial RAM disk.

See the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

from collections.abc import Mapping

_DIRECTORY, _FILE = 0o040000, 0o100000


def emit_cpio(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Returns an archive; several of them one behind another are one, too.

    Args:
        files: Permissions and content of every file, by its path without a leading slash. The
            directories in these paths are made.
    """
    directories = {
        path[:position] for path in files for position, sign in enumerate(path) if sign == "/"
    }
    members = [(path, _DIRECTORY | 0o755, b"") for path in sorted(directories)]
    members += [(path, _FILE | mode, data) for path, (mode, data) in sorted(files.items())]
    body = b"".join(_member(number, *member) for number, member in enumerate(members, start=1))
    body += _member(0, "TRAILER!!!", 0, b"")
    return body + bytes(-len(body) % 512)


def _member(number: int, path: str, mode: int, data: bytes) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if mode & _DIRECTORY else 1
    fields = [number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name), 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
