"""Copies an image to a bootloader that shows up as a drive.

The bootloader writes each block of the file where the block says, whatever the file's name, and
restarts into the image when it has them all: then the drive is gone. A file that was copied in
part does nothing. What tells a whole copy is therefore that the drive goes away.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edgekiln.console import progress, say
from edgekiln.errors import BadInputError, BoardError, CheckFailedError, EdgekilnError
from edgekiln.files import read_input_file
from edgekiln.firmware.flash.diagnosis import Trouble
from edgekiln.firmware.flash.runner import Job, Runner, Step
from edgekiln.firmware.flash.settings import Uf2Settings

INFO_NAME = "INFO_UF2.TXT"
UNKNOWN_DRIVE = "<drive>"

_MOUNTS = Path("/proc/self/mounts")
_VOLUMES = Path("/Volumes")
_LABELS = Path("/dev/disk/by-label")  # a bootloader's drive has its Board-ID for a label
_WAIT_SECONDS = 20.0
_RESTART_SECONDS = 20.0
_PAUSE_SECONDS = 0.2
_CHUNK_BYTES = 16384
#: What writing to a drive that goes away ends with.
_GONE = {errno.EIO, errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.EROFS, errno.ESTALE}


class Uf2(Runner):
    """The copy of a UF2 file to the bootloader's drive."""

    name = "uf2"
    takes_to = True

    def why_not(self) -> str:
        """Tells why it cannot work on this machine."""
        return "" if os.name == "posix" else "drives are found on Linux and macOS only"

    def how_to_get(self) -> str:
        """Returns nothing: there is nothing to install."""
        return ""

    def steps(self, job: Job) -> tuple[Step, ...]:
        """Returns no run: no tool is needed."""
        return ()

    def commands(self, job: Job) -> list[str]:
        """Returns the copy as a line for a shell."""
        found = self._drives(job)
        drive = shlex.quote(f"{found[0]}/") if found else f"{UNKNOWN_DRIVE}/"
        return [f"cp {shlex.quote(str(self._file(job)))} {drive}"]

    def write(self, job: Job) -> None:
        """Copies the image, and waits until the bootloader has taken it.

        Raises:
            BoardError: There is no drive, it cannot be written to, or the board did not restart.
            BadInputError: Several drives fit.
            CheckFailedError: The file reads back differently.
        """
        data = read_input_file(self._file(job))
        drive = self._wait_for_drive(job)
        is_mount = os.path.ismount(drive)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text(f"{self._file(job)} to {drive}\n", encoding="utf-8")
        target = drive / self._file(job).name
        try:
            error = _copy(data, target, f"{self.name} to {drive}")
        except OSError as early:
            raise self._refusal(job, drive, early) from None
        if error and not (is_mount and error.errno in _GONE and _wait_until_gone(drive)):
            raise self._refusal(job, drive, error)
        if is_mount:
            self._check_taken(job, drive)
        elif read_input_file(target) != data:
            raise CheckFailedError(
                Trouble.NOT_VERIFIED.what, where=target, hint=Trouble.NOT_VERIFIED.hint
            )

    def _file(self, job: Job) -> Path:
        if job.image.uf2 is None:
            raise BadInputError("the image is not made as a UF2 file", where=job.board.slug)
        return job.image.uf2

    def _drives(self, job: Job) -> list[Path]:
        """Returns the drive that the user named, or those that are this board's bootloader."""
        assert isinstance(self.settings, Uf2Settings)
        if job.to is None:
            return find_drives(self.settings.board_id)
        drive = Path(job.to)
        found = read_board_id(drive)
        if found != self.settings.board_id:
            raise BadInputError(
                f"not the drive of this board's bootloader (it has a {INFO_NAME})",
                where=drive,
                got=repr(found) if found else "none",
                allowed=repr(self.settings.board_id),
            )
        return [drive]

    def _wait_for_drive(self, job: Job) -> Path:
        deadline = time.monotonic() + _WAIT_SECONDS
        drives = self._drives(job)
        if not drives:
            say(f"waiting {_WAIT_SECONDS:.0f} s for the board's drive: {self.enter}")
        while not drives and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
            drives = self._drives(job)
        if len(drives) > 1:
            raise BadInputError(
                "several drives fit",
                where=f"{job.board.slug}, {self.name}",
                got=", ".join(map(str, drives)),
                hint="name one with --to",
            )
        if not drives:
            raise BoardError(
                Trouble.NO_DEVICE.what,
                where=f"{job.board.slug}, {self.name}",
                got=f"no mounted drive with a {INFO_NAME} of this board",
                hint=self._how_to_mount(),
            )
        return drives[0]

    def _how_to_mount(self) -> str:
        """Returns what to do: where no desktop does it, a drive has to be mounted by hand."""
        assert isinstance(self.settings, Uf2Settings)
        disk = _LABELS / self.settings.board_id
        if disk.exists():
            return f"mount it, as with: udisksctl mount -b {disk.resolve()}"
        return self.enter

    def _check_taken(self, job: Job, drive: Path) -> None:
        if not _wait_until_gone(drive):
            raise BoardError(
                "the board did not take the image: its drive is still there",
                where=f"{job.board.slug}, {self.name}",
                got=str(drive),
                hint=f"unplug it, {self.enter}, and try again",
            )

    def _refusal(self, job: Job, drive: Path, error: OSError) -> EdgekilnError:
        denied = error.errno in (errno.EACCES, errno.EPERM)
        return BoardError(
            f"the drive cannot be written to: {error.strerror}",
            where=f"{job.board.slug}, {self.name}",
            got=str(drive),
            hint="mount it so that you may write to it" if denied else "plug the board in anew",
        )


def find_drives(board_id: str) -> list[Path]:
    """Returns the mounted drives of a bootloader, sorted.

    Args:
        board_id: ``Board-ID`` in their INFO_UF2.TXT.
    """
    return sorted(path for path in _mount_points() if read_board_id(path) == board_id)


def read_board_id(drive: Path) -> str:
    """Returns ``Board-ID`` of a drive's INFO_UF2.TXT; empty where there is none."""
    try:
        with (drive / INFO_NAME).open(encoding="ascii", errors="replace") as file:
            text = file.read(4096)
    except OSError:
        return ""
    match = re.search(r"^Board-ID:\s*(\S+)\s*$", text, re.MULTILINE)
    return match[1] if match else ""


def _mount_points() -> Iterator[Path]:
    if sys.platform == "darwin":
        yield from (path for path in _VOLUMES.glob("*") if path.is_dir())
        return
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        device, path, kind, *_ = [*line.split(" "), "", "", ""]
        # A bootloader's drive is FAT on a block device: nothing else is looked into.
        if device.startswith("/dev/") and kind in ("vfat", "msdos", "fuseblk"):
            yield Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path))


def _copy(data: bytes, target: Path, what: str) -> OSError | None:
    """Writes a file, piece by piece, each of which the drive has before the next one comes.

    Returns:
        What went wrong with the last piece: with it the bootloader restarts, and its drive goes
        away before the file is closed.

    Raises:
        OSError: Something went wrong earlier.
    """
    is_last = False
    try:
        with progress() as bar, target.open("wb", buffering=0) as file:
            task = bar.add_task(what, total=len(data), note="bytes")
            for start in range(0, len(data), _CHUNK_BYTES):
                piece = data[start : start + _CHUNK_BYTES]
                is_last = start + len(piece) == len(data)
                file.write(piece)
                os.fsync(file.fileno())
                bar.advance(task, len(piece))
    except OSError as error:
        if not is_last:
            raise
        return error
    return None


def _wait_until_gone(drive: Path) -> bool:
    """Waits until a drive is gone; tells whether it is."""
    deadline = time.monotonic() + _RESTART_SECONDS
    while read_board_id(drive):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True
