"""The command that runs a Debian of another architecture as a chroot under qemu-user."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path

from edgekiln.errors import ToolMissingError
from edgekiln.firmware.toolchain import install_hint
from edgekiln.firmware.virtual_pi.rootfs import Architecture, Root, find_program

_BINFMT_MISC = Path("/proc/sys/fs/binfmt_misc")
_PRIVATE_BINFMT_SINCE = (6, 7)  # Linux: one table for each user namespace
_EMULATORS: dict[Architecture, str] = {"arm64": "qemu-aarch64", "armhf": "qemu-arm"}
_CPUS: dict[Architecture, str] = {"arm64": "cortex-a72", "armhf": "cortex-a7"}

#: How the kernel knows a program: ELF class, byte order, version; executable or library; machine.
_ELF_MACHINE: dict[Architecture, tuple[int, int]] = {"arm64": (2, 0xB7), "armhf": (1, 0x28)}
_ELF_MASK = bytes([255] * 7 + [0] + [255] * 8 + [0xFE, 255, 255, 255])

_CORES = 4
_CPUINFO: dict[Architecture, str] = {
    "arm64": """\
processor\t: {core}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
""",
    "armhf": """\
processor\t: {core}
model name\t: ARMv7 Processor rev 5 (v7l)
BogoMIPS\t: 57.60
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x0
CPU part\t: 0xc07
CPU revision\t: 5
""",
}
#: What differs where the core is another one: a Raspberry Pi 5's.
_CORTEX_A76 = {
    "fp asimd evtstrm crc32 cpuid": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp "
    "asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    "variant\t: 0x0": "variant\t: 0x4",
    "0xd08": "0xd0b",
    "revision\t: 3": "revision\t: 1",
}
_MODEL = "Model\t\t: edgekiln virtual Raspberry Pi (qemu-user)\n"


def default_cpu(architecture: Architecture) -> str:
    """Returns QEMU's name of the core that a Pi of this architecture has."""
    return _CPUS[architecture]


def emit_cpuinfo(architecture: Architecture, cpu: str) -> str:
    """Returns a /proc/cpuinfo; the host's own would tell of another architecture."""
    text = _CPUINFO[architecture]
    if cpu == "cortex-a76":
        for usual, other in _CORTEX_A76.items():
            text = text.replace(usual, other)
    cores = [text.format(core=core) for core in range(_CORES)]
    return "\n".join([*cores, _MODEL])


def why_not(architecture: Architecture) -> ToolMissingError | None:
    """Returns the reason for which there is no chroot under qemu-user here, if any."""
    if os.geteuid() != 0:
        return ToolMissingError(
            "a chroot needs root", hint="run it as root, or take the slower kind 'virt'"
        )
    try:
        find_program("unshare", "util-linux")
        find_program("chroot", "coreutils")
        _find_emulator(architecture)
    except ToolMissingError as error:
        return error
    release = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
    if not _is_registered(architecture) and release < _PRIVATE_BINFMT_SINCE:
        return ToolMissingError(
            f"this kernel does not know that {_EMULATORS[architecture]} runs programs "
            f"for {architecture}",
            got=f"Linux {platform.release()}",
            hint=f"{install_hint(['qemu-user-static', 'binfmt-support'])}, or take the slower "
            "kind 'virt'",
        )
    return None


def chroot_command(root: Root, scratch: Path, cpu: str, disk_bytes: int | None) -> list[str]:
    """Returns the command that serves a root file system's sshd.

    Args:
        root: The file system; it is not written to.
        scratch: A directory for everything that changes. Its ``etc`` is copied to /run/edgekiln.
        cpu: QEMU's name of the core.
        disk_bytes: How much can be written to the disk, which is lost with the process then;
            None for as much as there is.

    Raises:
        ToolMissingError: It cannot be done here; says why.
    """
    reason = why_not(root.architecture)
    if reason is not None:
        raise reason
    (scratch / "cpuinfo").write_text(emit_cpuinfo(root.architecture, cpu), encoding="ascii")
    emulator = _find_emulator(root.architecture)
    binfmt = "" if _is_registered(root.architecture) else _binfmt_line(root.architecture, emulator)
    namespaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    script = Path(__file__).with_name("chroot.sh")
    disk = "" if disk_bytes is None else str(disk_bytes)
    unshare = [find_program("unshare", "util-linux"), *namespaces]
    return [*unshare, "sh", str(script), str(root.path), str(scratch), cpu, binfmt, disk]


def _find_emulator(architecture: Architecture) -> str:
    name = _EMULATORS[architecture]
    # A later Debian's qemu-user is static and has no suffix.
    return shutil.which(f"{name}-static") or find_program(name, "qemu-user-static")


def _is_registered(architecture: Architecture) -> bool:
    """Tells whether the kernel runs such programs, in a chroot too (flag F)."""
    try:
        text = (_BINFMT_MISC / _EMULATORS[architecture]).read_text(encoding="ascii")
    except OSError:
        return False
    return text.startswith("enabled") and re.search(r"^flags: .*F", text, re.MULTILINE) is not None


def _binfmt_line(architecture: Architecture, emulator: str) -> str:
    """Returns what to write to binfmt_misc's ``register``.

    See the kernel's Documentation/admin-guide/binfmt-misc.rst.
    """
    if ":" in emulator:
        raise ToolMissingError("a colon in the emulator's path", where=emulator)
    elf_class, machine = _ELF_MACHINE[architecture]
    magic = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9) + bytes([2, 0, machine, 0])
    magic_text, mask_text = (
        "".join(f"\\x{byte:02x}" for byte in data) for data in (magic, _ELF_MASK)
    )
    return f":{_EMULATORS[architecture]}:M::{magic_text}:{mask_text}:{emulator}:PF"
