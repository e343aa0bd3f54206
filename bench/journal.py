"""A journal of a long run on a board: a run that was broken off goes on where it stopped.

A text file, a line for each answer, each with its CRC-32; the first line says what the answers
belong to. Lines are added as the board answers. What is read back is what stands before the first
line that is damaged, or half written.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgekiln.errors import BadInputError
from edgekiln.files import sha256_bytes, sha256_file
from edgekiln.firmware.counting import InferenceCount
from edgekiln.firmware.image import Image

FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What the board answered to one input.

    Attributes:
        output: All outputs' bytes.
        elapsed_us: How long the inference took, by the board's clock.
        count: What an emulator counted, or None.
    """

    output: bytes
    elapsed_us: int
    count: InferenceCount | None


def journal_key(
    image: Image, rows: Sequence[bytes], *, port: str | None, counted: str | None
) -> dict[str, Any]:
    """Returns what the answers of a run depend on: it goes on only where all of it is the same."""
    return {
        "journal": FORMAT,
        "image_sha256": sha256_file(image.bin or image.elf),
        "inputs_sha256": sha256_bytes(b"".join(rows)),
        "inferences": len(rows),
        "board": image.board,
        "port": port,
        "counted": counted,
    }


class Journal:
    """The journal of one run. Use it in a ``with`` statement.

    Args:
        path: The file; made, or begun anew where it belongs to another run.
        key: What `journal_key` returns.

    Attributes:
        entries: What an earlier run left behind, in the order of the inputs.

    Raises:
        BadInputError: The file cannot be written.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path = path
        self._key = dict(key)
        self.entries, valid_bytes = _read(path, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Appended to, so that what is there is never lost by a run that fails at once.
            self._file: TextIOWrapper = path.open("a", encoding="ascii", newline="\n")
            self._file.truncate(valid_bytes)
            if not valid_bytes:
                self._write(self._key)
        except OSError as error:
            raise BadInputError(f"cannot be written: {error.strerror}", where=path) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, entry: Entry) -> None:
        """Adds an answer; it is in the file when this returns.

        Raises:
            BadInputError: The file cannot be written.
        """
        line: dict[str, Any] = {"us": entry.elapsed_us, "output": entry.output.hex()}
        if entry.count is not None:
            line |= {"total": entry.count.total, "per_node": list(entry.count.per_node)}
        try:
            self._write(line)
        except OSError as error:
            raise BadInputError(f"cannot be written: {error.strerror}", where=self._path) from None

    def begin_anew(self) -> None:
        """Forgets the answers of the earlier run.

        Raises:
            BadInputError: The file cannot be written.
        """
        self.entries = []
        try:
            self._file.truncate(0)
            self._write(self._key)
        except OSError as error:
            raise BadInputError(f"cannot be written: {error.strerror}", where=self._path) from None

    def remove(self) -> None:
        """Removes the file: the run is complete."""
        self._path.unlink(missing_ok=True)

    def _write(self, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, separators=(",", ":"))
        self._file.write(f"{text}*{zlib.crc32(text.encode('ascii')):08x}\n")
        self._file.flush()


def _read(path: Path, key: Mapping[str, Any]) -> tuple[list[Entry], int]:
    """Returns the answers of a run with this key, and the bytes that they take in the file."""
    try:
        data = path.read_bytes()
    except OSError:
        return [], 0
    entries: list[Entry] = []
    valid_bytes = 0
    for number, line in enumerate(data.splitlines(keepends=True)):
        try:
            value = _parse(line)
            if number == 0 and value != dict(key):
                return [], 0
            if number:
                entries.append(_entry_of(value))
        except (ValueError, KeyError, TypeError):
            break
        valid_bytes += len(line)
    return entries[: int(key["inferences"])], valid_bytes


def _parse(line: bytes) -> dict[str, Any]:
    text, _, crc = line.rpartition(b"*")
    if line[-1:] != b"\n" or int(crc, 16) != zlib.crc32(text):
        raise ValueError("damaged")
    value: dict[str, Any] = json.loads(text)
    return value


def _entry_of(value: Mapping[str, Any]) -> Entry:
    count = InferenceCount(value["total"], tuple(value["per_node"])) if "total" in value else None
    return Entry(bytes.fromhex(value["output"]), int(value["us"]), count)
