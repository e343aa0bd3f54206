"""A Raspberry Pi for tests, and for people without one.

`start_virtual_pi` runs a Debian for the Pi's architecture with sshd, and that is all an
application can see of a Pi anyway. There are three kinds: a chroot under qemu-user, which starts
in a second and needs root; QEMU's ``virt`` machine, which does not; and QEMU's ``raspi3b``, with an
SD card and Ethernet over USB, which is slow and the most faithful. None of them tells anything
about a Pi's speed.
"""

from __future__ import annotations

from edgekiln.firmware.virtual_pi.access import ALIAS
from edgekiln.firmware.virtual_pi.instance import Kind, VirtualPi
from edgekiln.firmware.virtual_pi.rootfs import Architecture, Root, build_root
from edgekiln.firmware.virtual_pi.start import start_virtual_pi

__all__ = [
    "ALIAS",
    "Architecture",
    "Kind",
    "Root",
    "VirtualPi",
    "build_root",
    "start_virtual_pi",
]
