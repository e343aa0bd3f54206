"""The copy of a UF2 file, to directories that stand for a bootloader's drive."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekiln.bench.device import run_on_board
from edgekiln.errors import BadInputError, BoardError, CheckFailedError
from edgekiln.firmware.boards import board_slugs, load_board
from edgekiln.firmware.flash import uf2
from edgekiln.firmware.flash.registry import find_runner
from edgekiln.firmware.flash.runner import Job, Runner
from edgekiln.firmware.image import Image

Plan = Callable[..., tuple[Runner, Job]]

INFO = "UF2 Bootloader v3.0\r\nModel: Raspberry Pi RP2\r\nBoard-ID: RPI-RP2\r\n"


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """A directory that stands for the drive of a Pico in its bootloader."""
    path = tmp_path / "media" / "RPI RP2"
    path.mkdir(parents=True)
    (path / "INFO_UF2.TXT").write_text(INFO, newline="")
    return path


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Says what is mounted: ``mounts("/dev/sda1 /path vfat", …)``; the waits are short."""
    path = tmp_path / "mounts"
    path.write_text("")
    monkeypatch.setattr(uf2, "_MOUNTS", path)
    monkeypatch.setattr(uf2, "_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(uf2, "_RESTART_SECONDS", 0.5)
    monkeypatch.setattr(uf2, "_PAUSE_SECONDS", 0.02)

    def write(*lines: str) -> None:
        new = path.with_suffix(".new")
        new.write_text("".join(f"{line} rw,nosuid 0 0\n" for line in lines))
        new.replace(path)

    return write


def mounted(path: Path, device: str = "/dev/sda1", kind: str = "vfat") -> str:
    return f"{device} {str(path).replace(' ', chr(92) + '040')} {kind}"


def test_the_file_is_copied_and_compared(
    plan: Plan, drive: Path, mounts: Callable[..., None]
) -> None:
    mounts(mounted(drive))
    runner, job = plan("uf2")
    runner.write(job)
    assert (drive / "image.uf2").read_bytes() == (job.directory / "image.uf2").read_bytes()


def test_the_command_of_a_dry_run(plan: Plan, drive: Path, mounts: Callable[..., None]) -> None:
    runner, job = plan("uf2")
    (before,) = runner.commands(job)
    assert before.startswith("cp ") and before.endswith(" <drive>/")
    mounts(mounted(drive))
    (line,) = runner.commands(job)
    assert line.endswith(f" '{drive}/'")
    assert list(drive.iterdir()) == [drive / "INFO_UF2.TXT"]
    shutil.copy(job.directory / "image.uf2", drive)  # what the line says


def test_a_drive_that_comes_later_is_waited_for(
    plan: Plan, drive: Path, mounts: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    threading.Timer(0.2, mounts, [mounted(drive)]).start()
    runner, job = plan("uf2")
    runner.write(job)
    assert (drive / "image.uf2").exists()
    assert "hold BOOTSEL while plugging it in" in capfd.readouterr().err


def test_no_drive(plan: Plan, drive: Path, mounts: Callable[..., None]) -> None:
    other = drive.with_name("other")
    other.mkdir()
    (other / "INFO_UF2.TXT").write_text("Board-ID: SAMD51-x\n")
    mounts(
        mounted(other),
        mounted(drive, device="tmpfs", kind="tmpfs"),
        mounted(drive, kind="ext4"),
        mounted(drive.with_name("gone")),
    )
    runner, job = plan("uf2")
    with pytest.raises(BoardError, match=r"no board is attached in its bootloader.*hold BOOTSEL"):
        runner.write(job)
    assert not job.log.exists()


def test_a_drive_that_is_not_mounted(
    plan: Plan, mounts: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sdx1").touch()
    (tmp_path / "RPI-RP2").symlink_to("sdx1")
    monkeypatch.setattr(uf2, "_LABELS", tmp_path)
    runner, job = plan("uf2")
    with pytest.raises(BoardError, match=rf"mount it, as with: udisksctl .* {tmp_path}/sdx1$"):
        runner.write(job)


def test_several_drives(plan: Plan, drive: Path, mounts: Callable[..., None]) -> None:
    other = drive.with_name("RPI-RP2-2")
    shutil.copytree(drive, other)
    mounts(mounted(drive), mounted(other, "/dev/sdb1"))
    runner, job = plan("uf2")
    with pytest.raises(BadInputError, match=r"several drives fit.*--to"):
        runner.write(job)
    runner, job = plan("uf2", to=str(other))
    runner.write(job)
    assert (other / "image.uf2").exists() and not (drive / "image.uf2").exists()


@pytest.mark.parametrize("content", [None, "Board-ID: SAMD51-x\n", "Model: x\n", "\xff" * 9000])
def test_what_is_named_has_to_be_the_drive(plan: Plan, tmp_path: Path, content: str | None) -> None:
    place = tmp_path / "home"
    place.mkdir()
    if content is not None:
        (place / "INFO_UF2.TXT").write_text(content, encoding="latin-1")
    runner, job = plan("uf2", to=str(place))
    with pytest.raises(BadInputError, match="not the drive of this board's bootloader"):
        runner.write(job)
    assert not (place / "image.uf2").exists()


def test_a_real_drive_goes_away_when_all_is_there(
    plan: Plan, drive: Path, mounts: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts(mounted(drive))
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == drive)
    runner, job = plan("uf2")
    wanted = (job.directory / "image.uf2").read_bytes()
    taken: list[bytes] = []

    def restart_when_whole() -> None:
        path, deadline = drive / "image.uf2", time.monotonic() + 10
        while time.monotonic() < deadline:
            if path.exists() and len(data := path.read_bytes()) == len(wanted):
                taken.append(data)
                drive.rename(drive.with_name("gone"))
                return
            time.sleep(0.01)

    bootloader = threading.Thread(target=restart_when_whole)
    bootloader.start()
    runner.write(job)
    bootloader.join()
    assert taken == [wanted]


@pytest.mark.parametrize(("pieces", "fine"), [(3, False), (4, True)])
def test_a_drive_that_goes_away_while_it_is_written(
    plan: Plan,
    drive: Path,
    mounts: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    pieces: int,
    fine: bool,
) -> None:
    """With the last piece the bootloader restarts; before, somebody has pulled the plug."""
    mounts(mounted(drive))
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == drive)
    monkeypatch.setattr(uf2, "_CHUNK_BYTES", 512)
    synced: list[int] = []

    def sync(handle: int) -> None:
        synced.append(handle)
        if len(synced) == pieces:
            drive.rename(drive.with_name("gone"))
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", sync)
    runner, job = plan("uf2")
    assert len((job.directory / "image.uf2").read_bytes()) == 4 * 512
    if fine:
        runner.write(job)
    else:
        with pytest.raises(BoardError, match=r"cannot be written to: .*plug the board in anew"):
            runner.write(job)


def test_a_real_drive_that_stays_took_nothing(
    plan: Plan, drive: Path, mounts: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts(mounted(drive))
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == drive)
    runner, job = plan("uf2")
    with pytest.raises(BoardError, match="did not take the image"):
        runner.write(job)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_drive_that_cannot_be_written_to(
    plan: Plan,
    drive: Path,
    mounts: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    mounts(mounted(drive))

    def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    runner, job = plan("uf2")
    with pytest.raises(BoardError, match=os.strerror(number)):
        runner.write(job)


def test_a_stand_in_that_changes_the_file(
    plan: Plan, drive: Path, mounts: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts(mounted(drive))
    copy = uf2._copy

    def damage(data: bytes, target: Path, what: str) -> OSError | None:
        return copy(data[:-1] + bytes([data[-1] ^ 1]), target, what)

    monkeypatch.setattr(uf2, "_copy", damage)
    runner, job = plan("uf2")
    with pytest.raises(CheckFailedError, match="memory differs"):
        runner.write(job)


def test_drives_on_macos(
    plan: Plan, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(uf2, "_VOLUMES", drive.parent)
    assert uf2.find_drives("RPI-RP2") == [drive]
    assert uf2.find_drives("other") == []


@pytest.mark.emulator
@pytest.mark.parametrize("slug", [slug for slug in board_slugs() if load_board(slug).uf2_family])
def test_the_emulator_boots_what_was_copied(
    slug: str, drive: Path, digits_image: Callable[[str, str], Image], tmp_path: Path
) -> None:
    board, image = load_board(slug), digits_image("mlp", slug)
    runner = find_runner(board, "uf2")
    runner.write(Job(board, image, tmp_path / "flash.log", to=str(drive)))
    there = dataclasses.replace(image, uf2=drive / "image.uf2")
    shape = (2, *image.inputs[0].shape[1:])
    codes = np.random.default_rng(3).integers(-128, 128, shape).astype(np.int8)
    wanted = run_on_board(image, board, codes, count=False, progress=False)
    got = run_on_board(there, board, codes, count=False, progress=False)
    np.testing.assert_array_equal(got.outputs[0], wanted.outputs[0])


def test_an_image_without_a_uf2_file(plan: Plan, drive: Path) -> None:
    runner, job = plan("uf2", to=str(drive))
    job = dataclasses.replace(job, image=dataclasses.replace(job.image, uf2=None))
    with pytest.raises(BadInputError, match="not made as a UF2 file"):
        runner.write(job)
