"""Starts a virtual Pi of any kind."""

from __future__ import annotations

from pathlib import Path

from edgekiln.console import say
from edgekiln.errors import BadInputError
from edgekiln.firmware.virtual_pi import chroot, machine
from edgekiln.firmware.virtual_pi.access import Access
from edgekiln.firmware.virtual_pi.instance import Kind, VirtualPi
from edgekiln.firmware.virtual_pi.kept_disk import KeptDisk
from edgekiln.firmware.virtual_pi.machine import MachineKind
from edgekiln.firmware.virtual_pi.rootfs import Architecture, build_root, find_program

_CHROOT_WAIT_S = 60.0
_MACHINE_WAIT_S: dict[MachineKind, float] = {"virt": 300.0, "raspi3b": 600.0}


def start_virtual_pi(
    architecture: Architecture = "arm64",
    kind: Kind | None = None,
    *,
    cpu: str | None = None,
    disk_bytes: int | None = None,
    port: int | None = None,
    cache: Path | None = None,
    disk: Path | None = None,
) -> VirtualPi:
    """Builds a virtual Pi if need be, and starts it.

    Args:
        architecture: ``arm64``, or ``armhf`` for a 32-bit one.
        kind: How it runs; None for the fastest that is possible here.
        cpu: QEMU's name of the core, such as ``cortex-a76`` for one with dot products.
        disk_bytes: How much can be written to its disk; None for as much as there is.
        port: A free port on the loopback interface; None for any.
        cache: Where the root file system is kept.
        disk: A directory that keeps its disk from one start to the next; None for a disk that
            is gone when it is stopped. One virtual Pi at a time can use it.

    Returns:
        The running Pi, whose sshd answers. It is to be stopped, best by ``with``.

    Raises:
        ToolMissingError: A program or root is missing, or the packages cannot be had.
        BadInputError: An option makes no sense, the port is in use, or there is no room.
        BoardError: It does not start; says what it said last.
    """
    if cpu is not None and not cpu.replace("-", "").replace(",", "").isalnum():
        raise BadInputError("no such core", got=cpu)
    if disk_bytes is not None and (disk_bytes <= 0 or disk is not None):
        raise BadInputError("no such disk", got=f"{disk_bytes} bytes")
    reason = chroot.why_not(architecture) if kind in (None, "chroot") else None
    if kind is None and reason is not None and architecture == "arm64":
        say(f"No chroot here ({reason.what}); taking the slower kind 'virt'.")
        kind, reason = "virt", None
    if reason is not None:
        raise reason
    if kind == "virt" or kind == "raspi3b":
        return _start_machine(kind, architecture, cpu, disk_bytes, port, cache, disk)
    return _start_chroot(architecture, cpu, disk_bytes, port, cache, disk)


def _start_chroot(
    architecture: Architecture,
    cpu: str | None,
    disk_bytes: int | None,
    port: int | None,
    cache: Path | None,
    disk: Path | None,
) -> VirtualPi:
    root = build_root(architecture, cache)
    core = cpu or chroot.default_cpu(architecture)
    kept = None if disk is None else KeptDisk(disk, root.path.parent.name)

    def plan(access: Access, chosen: int) -> list[str]:
        if kept is not None:
            kept.put_at(access.directory / "disk")
        if disk_bytes is not None and (access.directory / "disk").exists():
            raise BadInputError("a disk of limited size is lost with its power")
        access.write_configuration(
            chosen, guest=(VirtualPi.host, chosen), environment=f"QEMU_CPU={core}"
        )
        return chroot.chroot_command(root, access.directory, core, disk_bytes)

    return VirtualPi("chroot", architecture, plan=plan, port=port, wait_s=_CHROOT_WAIT_S, disk=kept)


def _start_machine(
    kind: MachineKind,
    architecture: Architecture,
    cpu: str | None,
    disk_bytes: int | None,
    port: int | None,
    cache: Path | None,
    disk: Path | None,
) -> VirtualPi:
    if architecture != "arm64":
        raise BadInputError(f"no {kind} of this architecture", got=architecture, allowed="arm64")
    if disk_bytes is not None:
        raise BadInputError("a disk of limited size is for the kind 'chroot'", got=kind)
    if cpu is not None and kind == "raspi3b":
        raise BadInputError("the Raspberry Pi 3 has a core of its own", got=cpu)
    find_program("qemu-system-aarch64", "qemu-system-arm")
    find_program("mke2fs", "e2fsprogs")
    image, kernel = machine.build_disk(build_root(architecture, cache)), machine.build_kernel(cache)
    core = cpu or chroot.default_cpu(architecture)
    kept = None if disk is None else KeptDisk(disk, image.name)

    def plan(access: Access, chosen: int) -> list[str]:
        if kept is not None:
            kept.put_at(access.directory / "disk.img")
        access.write_configuration(
            chosen, guest=machine.GUEST, environment=f"EDGEKILN_VIRTUAL_PI={kind}"
        )
        return machine.machine_command(kind, kernel, image, access, chosen, core)

    wait_s = _MACHINE_WAIT_S[kind]
    return VirtualPi(kind, architecture, plan=plan, port=port, wait_s=wait_s, disk=kept)
