"""The commands that run a Pi's root file system in an emulated computer, with Debian's kernel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekiln.console import say
from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.files import write_bytes
from edgekiln.firmware.virtual_pi.access import Access
from edgekiln.firmware.virtual_pi.cpio import emit_cpio
from edgekiln.firmware.virtual_pi.rootfs import (
    Root,
    build_packages,
    find_program,
    locked,
)

MachineKind = Literal["virt", "raspi3b"]

#: Where sshd listens inside: what QEMU's user network forwards to.
GUEST = ("0.0.0.0", 22)

_DISK_BYTES = 1 << 30  # QEMU wants an SD card's size to be a power of two
_KERNEL_PACKAGES = ("linux-image-arm64", "busybox-static")
_DEVICE_TREE = "bcm2837-rpi-3-b.dtb"
#: In the order of their loading; what they depend on comes before them.
_MODULES = (
    *("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng"),
    *("crc32c_generic", "ext4"),
    *("bcm2835", "sdhci_iproc", "mmc_block"),  # the SD card
    *("phy_generic", "dwc2", "usbnet", "cdc_ether", "rndis_host"),  # Ethernet over USB
)
_INIT = Path(__file__).with_name("machine_init.sh")


@dataclass(frozen=True)
class Kernel:
    """What a machine starts with.

    Attributes:
        image: Linux.
        device_tree: The Raspberry Pi 3's.
        initrd: The initial RAM disk, to which an instance's own files are added.
    """

    image: Path
    device_tree: Path
    initrd: Path


def build_kernel(cache: Path | None = None) -> Kernel:
    """Returns Debian's kernel for arm64 and its initial RAM disk, built if not in the cache.

    Raises:
        BadInputError: The cache cannot be written or has no room.
        ToolMissingError: A program is missing, or the packages cannot be had.
    """
    root = build_packages("arm64", "kernel", _KERNEL_PACKAGES, _finish_kernel, cache).path
    return Kernel(root / "vmlinuz", root / _DEVICE_TREE, root / "modules.cpio")


def build_disk(root: Root) -> Path:
    """Returns a root file system as an ext4 image, built if not in the cache.

    Raises:
        BadInputError: The cache cannot be written or has no room.
        ToolMissingError: mke2fs is missing.
    """
    mke2fs = find_program("mke2fs", "e2fsprogs")
    image = root.path.parent.with_name(f"{root.path.parent.name}.img")
    with locked(image):
        if not image.exists():
            say(f"Making the disk of the virtual Pi ({root.architecture})")
            _make_disk(mke2fs, root.path, image)
    return image


def machine_command(
    kind: MachineKind, kernel: Kernel, disk: Path, access: Access, port: int, cpu: str
) -> list[str]:
    """Returns the command that runs a machine, whose sshd is reached at a port.

    Args:
        kind: QEMU's name of the machine.
        kernel: What it starts with.
        disk: The image of its disk; what it writes goes to a copy in the scratch directory.
        access: The scratch directory and the keys in it.
        port: The port on this machine's loopback interface.
        cpu: QEMU's name of the core; the Raspberry Pi 3 has its own.

    Raises:
        ToolMissingError: QEMU is missing.
        BadInputError: There is no room for the disk.
    """
    program = find_program("qemu-system-aarch64", "qemu-system-arm")
    own_disk, initrd = (access.directory / "disk.img").resolve(), access.directory / "initrd"
    if not own_disk.exists():
        _copy_disk(disk, own_disk)
    own_files = {f"pi/{p.name}": (0o644, p.read_bytes()) for p in access.server_files.iterdir()}
    init = emit_cpio({"init": (0o755, _INIT.read_bytes()), **own_files})
    initrd.write_bytes(kernel.initrd.read_bytes() + init)
    network = f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:{GUEST[1]}"
    command = [program, "-M", kind, "-display", "none", "-monitor", "none", "-no-reboot"]
    command += ["-chardev", f"file,id=console,append=on,path={_quoted(access.directory / 'log')}"]
    command += ["-serial", "chardev:console", "-kernel", str(kernel.image)]
    command += ["-initrd", str(initrd), "-netdev", network]
    drive = f"file={_quoted(own_disk)},format=raw"
    options = f"console=ttyAMA0 quiet panic=-1 pi_time={time.time():.0f}"
    if kind == "virt":
        command += ["-cpu", cpu, "-smp", "2", "-m", "1024"]
        command += ["-drive", f"if=none,id=disk,{drive}", "-device", "virtio-blk-device,drive=disk"]
        command += ["-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device"]
        return [*command, "-append", f"{options} pi_root=/dev/vda"]
    command += ["-dtb", str(kernel.device_tree), "-drive", f"if=sd,{drive}"]
    command += ["-usb", "-device", "usb-net,netdev=net"]
    # Without the last one its USB driver waits for fast interrupts, which QEMU lacks.
    return [*command, "-append", f"{options} pi_root=/dev/mmcblk0 dwc_otg.fiq_fsm_enable=0"]


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")


def _copy_disk(disk: Path, copy: Path) -> None:
    half = copy.with_name(f".{copy.name}")
    command = ["cp", "--sparse=always", "--reflink=auto", "--", str(disk), str(half)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        half.replace(copy)
    else:
        half.unlink(missing_ok=True)
        raise BadInputError(
            "no room for a virtual Pi's disk",
            got=result.stderr.strip(),
            hint="set TMPDIR to a directory with room",
        )


def _make_disk(mke2fs: str, root: Path, image: Path) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{image.name}.", dir=image.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.truncate(_DISK_BYTES)
        command = [mke2fs, "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d", str(root), name]
        if os.geteuid() != 0:  # what belongs to the user here belongs to root there
            command = [find_program("unshare", "util-linux"), "--map-root-user", *command]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            last = result.stderr.strip().rpartition("\n")[2]
            raise BadInputError("mke2fs cannot make the disk", where=image, got=last)
        os.chmod(name, 0o644)
        os.replace(name, image)
    finally:
        Path(name).unlink(missing_ok=True)


def _finish_kernel(root: Path) -> None:
    """Keeps of the packages what a machine needs."""
    (image,) = root.glob("boot/vmlinuz-*")
    (modules,) = root.glob("usr/lib/modules/*")
    (device_tree,) = root.glob(f"usr/lib/linux-image-*/broadcom/{_DEVICE_TREE}")
    files = {"bin/busybox": (0o755, (root / "usr/bin/busybox").read_bytes())}
    for number, path in enumerate(_order_modules(modules)):
        files[f"modules/{number:02}-{path.name}"] = (0o644, path.read_bytes())
    kept = {"vmlinuz": image.read_bytes(), _DEVICE_TREE: device_tree.read_bytes()}
    kept["modules.cpio"] = emit_cpio(files)
    shutil.rmtree(root)
    for name, data in kept.items():
        write_bytes(root / name, data)


def _order_modules(directory: Path) -> list[Path]:
    """Returns the modules to load in an order in which each finds what it needs."""
    builtin = {_module_name(line) for line in _read_lines(directory / "modules.builtin")}
    paths = {_module_name(path.name): path for path in sorted(directory.rglob("*.ko"))}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in builtin or name in ordered:
            return
        if name not in paths:
            raise ToolMissingError(f"Debian's kernel has no module {name}", where=directory.name)
        match = re.search(rb"\0depends=([^\0]*)\0", paths[name].read_bytes())
        for needed in match[1].decode().split(",") if match else ():
            if needed:
                add(_module_name(needed))
        ordered[name] = paths[name]

    for name in _MODULES:
        add(name)
    return list(ordered.values())


def _module_name(path: str) -> str:
    return Path(path).name.removesuffix(".ko").replace("-", "_")


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines()
