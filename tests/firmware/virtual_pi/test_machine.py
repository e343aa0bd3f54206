"""Virtual Pis in QEMU's machines: one boot of each kind, and what is put together for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekiln.errors import BadInputError
from edgekiln.firmware.virtual_pi import VirtualPi, machine, start_virtual_pi
from edgekiln.firmware.virtual_pi.access import Access
from edgekiln.firmware.virtual_pi.cpio import emit_cpio
from edgekiln.firmware.virtual_pi.machine import Kernel, MachineKind

Start = Callable[..., VirtualPi]

in_ci = pytest.mark.skipif(
    os.environ.get("CI", "").lower() not in ("1", "true"), reason="slow: runs with CI=true"
)


def boot_and_use(start: Start, kind: MachineKind, tmp_path: Path) -> str:
    """Returns what the device tree calls it, after a login, a copy and a power cut."""
    with start("arm64", kind) as pi:
        directory = pi.ssh_config.parent
        (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)
        copy = ["rsync", "-e", f"ssh -F {pi.ssh_config}", tmp_path / "file", f"{pi.alias}:file"]
        subprocess.run(copy, check=True, timeout=200)
        command = "sync; tr -d '\\0' </proc/device-tree/model; echo; uname -m; id -un"
        model, *rest = run(pi, command).split("\n")
        assert rest == ["aarch64", "pi", ""]
        pi.cut_power()
        pi.power_on()
        assert run(pi, "wc -c <file") == "256000\n"
    assert not directory.exists()
    return model


def run(pi: VirtualPi, command: str) -> str:
    result = subprocess.run(
        [*pi.ssh_command(), command], capture_output=True, text=True, check=True, timeout=200
    )
    return result.stdout


@pytest.mark.emulator
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_virt_boots(start: Start, tmp_path: Path) -> None:
    assert boot_and_use(start, "virt", tmp_path) == "linux,dummy-virt"


@in_ci
@pytest.mark.emulator
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_raspi3b_boots_from_its_card(start: Start, tmp_path: Path) -> None:
    assert boot_and_use(start, "raspi3b", tmp_path) == "Raspberry Pi 3 Model B"


@pytest.fixture
def access(tmp_path: Path) -> Access:
    made = Access(tmp_path / "a,b")
    made.server_files.mkdir(parents=True)
    (made.server_files / "authorized_keys").write_text("ssh-ed25519 AAAA\n")
    return made


@pytest.mark.parametrize("kind", ["virt", "raspi3b"])
def test_the_command(
    kind: MachineKind, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_program", lambda name, package: f"/usr/bin/{name}")
    monkeypatch.setattr(machine.time, "time", lambda: 1700000000.4)
    kernel = Kernel(tmp_path / "vmlinuz", tmp_path / "pi.dtb", tmp_path / "modules.cpio")
    kernel.initrd.write_bytes(b"modules")
    disk = tmp_path / "root.img"
    disk.write_bytes(b"a disk")
    command = machine.machine_command(kind, kernel, disk, access, 4022, "cortex-a76")
    assert command[:3] == ["/usr/bin/qemu-system-aarch64", "-M", kind]
    assert "user,id=net,hostfwd=tcp:127.0.0.1:4022-:22" in command
    own_disk = access.directory / "disk.img"
    assert own_disk.read_bytes() == b"a disk"
    drive = f"file={own_disk},format=raw".replace("a,b", "a,,b")
    if kind == "virt":
        assert command[command.index("-cpu") + 1] == "cortex-a76"
        assert f"if=none,id=disk,{drive}" in command
        assert command[-1].endswith(" pi_time=1700000000 pi_root=/dev/vda")
    else:
        assert "-cpu" not in command
        assert f"if=sd,{drive}" in command
        assert command[command.index("-dtb") + 1] == str(kernel.device_tree)
        assert " pi_root=/dev/mmcblk0 " in command[-1]
    initrd = (access.directory / "initrd").read_bytes()
    assert initrd.startswith(b"modules070701")
    assert b"pi/authorized_keys\0" in initrd


def test_what_is_on_the_disk_survives_the_next_start(
    access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_program", lambda name, package: f"/usr/bin/{name}")
    (access.directory / "disk.img").write_bytes(b"changed")
    (tmp_path / "initrd").write_bytes(b"")
    kernel = Kernel(tmp_path / "vmlinuz", tmp_path / "pi.dtb", tmp_path / "initrd")
    machine.machine_command("virt", kernel, tmp_path / "absent", access, 4022, "max")
    assert (access.directory / "disk.img").read_bytes() == b"changed"


def test_a_disk_that_cannot_be_copied_is_one_line(
    access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_program", lambda name, package: f"/usr/bin/{name}")
    kernel = Kernel(tmp_path / "vmlinuz", tmp_path / "pi.dtb", tmp_path / "initrd")
    with pytest.raises(BadInputError, match=r"no room for a virtual Pi's disk; got cp: .*absent"):
        machine.machine_command("virt", kernel, tmp_path / "absent", access, 4022, "max")


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(BadInputError, match="no virt of this architecture; got armhf"):
        start_virtual_pi("armhf", "virt")
    with pytest.raises(BadInputError, match="a disk of limited size is for the kind 'chroot'"):
        start_virtual_pi("arm64", "virt", disk_bytes=1)
    with pytest.raises(BadInputError, match="the Raspberry Pi 3 has a core of its own"):
        start_virtual_pi("arm64", "raspi3b", cpu="max")


def test_modules_come_after_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, needed in {"ext4": "jbd2,mbcache,crc-x", "jbd2": "", "mbcache": ""}.items():
        (tmp_path / f"{name}.ko").write_bytes(b"ELF\0depends=" + needed.encode() + b"\0more")
    (tmp_path / "modules.builtin").write_text("kernel/lib/crc_x.ko\n")
    monkeypatch.setattr(machine, "_MODULES", ("ext4", "mbcache"))
    names = [path.name for path in machine._order_modules(tmp_path)]
    assert names == ["jbd2.ko", "mbcache.ko", "ext4.ko"]


def test_an_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    archive = emit_cpio({"a/b/file": (0o755, b"12345"), "init": (0o644, b"")})
    assert len(archive) % 512 == 0
    # Head: magic, inode, mode, and so on; the content begins at the next multiple of four.
    position = archive.index(b"a/b/file\0")
    head = archive[position - 110 : position]
    assert head[:6] == b"070701"
    assert int(head[14:22], 16) == 0o100755
    assert int(head[54:62], 16) == 5
    start = position + len("a/b/file\0")
    assert archive[start + -start % 4 :].startswith(b"12345" + bytes(3) + b"070701")
    cpio = shutil.which("cpio")
    if cpio:
        subprocess.run([cpio, "-idm", "--quiet"], input=archive, cwd=tmp_path, check=True)
        assert (tmp_path / "a/b/file").read_bytes() == b"12345"
