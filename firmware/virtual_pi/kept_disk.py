"""The disk of a virtual Pi that is kept from one start to the next."""

from __future__ import annotations

import fcntl
from pathlib import Path

from edgekiln.console import say
from edgekiln.errors import BadInputError
from edgekiln.files import write_text
from edgekiln.firmware.virtual_pi.rootfs import remove_tree


class KeptDisk:
    """A directory with what one virtual Pi has written; used by one at a time.

    Args:
        directory: The directory, made if it is not there.
        made_for: What it was made over: the name of the root file system. What was written over
            another one is removed.

    Raises:
        BadInputError: It cannot be written, or another virtual Pi uses it.
    """

    def __init__(self, directory: Path, made_for: str) -> None:
        self._directory = directory.absolute()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = (self._directory / "lock").open("ab")
        except OSError as error:
            raise BadInputError(f"cannot be written: {error.strerror}", where=directory) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise BadInputError(
                "this virtual Pi is in use",
                where=directory,
                hint="wait for the other deploy, or give another --build-dir",
            ) from None
        self._start_anew_unless(made_for)

    def put_at(self, place: Path) -> None:
        """Makes a path, which does not exist or was made so before, lead to the disk."""
        if not place.is_symlink():
            place.symlink_to(self._directory / place.name)
            if not place.suffix:
                (self._directory / place.name).mkdir(exist_ok=True)

    def release(self) -> None:
        """Lets others use it."""
        self._lock.close()

    def _start_anew_unless(self, made_for: str) -> None:
        note = self._directory / "made-for"
        if note.is_file() and note.read_text(encoding="utf-8") == made_for:
            return
        if note.is_file():
            say("the virtual Pi is another one now: what was deployed to it is gone")
        for path in self._directory.iterdir():
            if path.name == "lock":
                continue
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink()
        write_text(note, made_for)
