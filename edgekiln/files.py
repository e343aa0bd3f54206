"""Files that are whole or absent, and manifests that say what made them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import BadInputError

MANIFEST_NAME = "manifest.json"


def sha256_bytes(data: bytes) -> str:
    """Returns the SHA-256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_input_file(path: Path) -> bytes:
    """Reads a file that a user named.

    Raises:
        BadInputError: The file is missing, a directory, or not readable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInputError("no such file", where=path, hint="check the path") from None
    except IsADirectoryError:
        raise BadInputError("is a directory, a file is needed", where=path) from None
    except OSError as error:
        raise BadInputError(f"cannot be read: {error.strerror}", where=path) from None


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` under a temporary name beside ``path``, then renames it.

    Raises:
        BadInputError: The file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise BadInputError(f"cannot be written: {error.strerror}", where=path) from None
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise BadInputError(f"cannot be written: {error.strerror}", where=path) from None
        raise


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` as UTF-8, whole or not at all. Raises as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Writes ``value`` as indented JSON, whole or not at all. Raises as `write_bytes` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields an empty directory which replaces ``path`` when the block ends without an error.

    After an error ``path`` is what it was before. A crash between the two renames can
    leave the old directory under a temporary name, never a half-written one under ``path``.

    Raises:
        BadInputError: The directory cannot be made there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise BadInputError(f"cannot be written: {error.strerror}", where=path) from None
    try:
        os.chmod(temporary, 0o755)
        yield temporary
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, old / "old")
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline, which is skipped when nothing it depends on has changed.

    Attributes:
        name: The stage's name, as in the manifest.
        directory: Where its outputs and its manifest lie. The stage owns the whole directory.
        inputs: Files it reads.
        options: Everything else its outputs depend on; JSON values.
        code: Source files or directories whose text its outputs depend on.
    """

    name: str
    directory: Path
    inputs: Sequence[Path]
    options: Mapping[str, Any]
    code: Sequence[Path]

    def _wanted(self) -> dict[str, Any]:
        return {
            "stage": self.name,
            "inputs": {path.name: sha256_file(path) for path in self.inputs},
            "options": json.loads(json.dumps(dict(self.options))),
            "code": _hash_code(self.code),
        }

    def is_current(self) -> bool:
        """Tells whether the outputs are there, undamaged, and made from these inputs."""
        try:
            manifest = json.loads((self.directory / MANIFEST_NAME).read_text(encoding="utf-8"))
            outputs = manifest.pop("outputs")
            return bool(
                manifest == self._wanted()
                and all(
                    sha256_file(self.directory / name) == digest for name, digest in outputs.items()
                )
            )
        except (OSError, ValueError, KeyError, AttributeError):
            return False

    def run(self, make: Callable[[Path], None]) -> bool:
        """Calls ``make(directory)`` unless the outputs are current, then writes the manifest.

        ``make`` writes into a temporary directory that becomes the stage's own when it
        returns, so a stage that fails leaves what was there before.

        Returns:
            True when the stage ran, False when it was skipped.
        """
        if self.is_current():
            return False
        with new_directory(self.directory) as directory:
            make(directory)
            files = sorted(path for path in directory.rglob("*") if path.is_file())
            outputs = {str(path.relative_to(directory)): sha256_file(path) for path in files}
            write_json(directory / MANIFEST_NAME, {**self._wanted(), "outputs": outputs})
        return True


def _hash_code(code: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for root in code:
        files = [root] if root.is_file() else sorted(root.rglob("*"))
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.name.encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
