"""Where to deploy: hosts as users write them, and virtual Raspberry Pis among them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekiln.console import say
from edgekiln.errors import BadInputError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.linux.ssh import Connection, Host, parse_host
from edgekiln.firmware.virtual_pi import Architecture, Kind, start_virtual_pi

VIRTUAL = "virtual"


@dataclass(frozen=True)
class VirtualKind:
    """A virtual Pi that has a name of its own: what it is, and QEMU's name of its core."""

    architecture: Architecture
    kind: Kind | None
    cpu: str | None = None


#: What may follow ``virtual:``; the first is what ``virtual`` alone means.
VIRTUAL_KINDS = {
    "": VirtualKind("arm64", None),
    "chroot": VirtualKind("arm64", "chroot"),
    "virt": VirtualKind("arm64", "virt"),
    "raspi3b": VirtualKind("arm64", "raspi3b"),
    "pi5": VirtualKind("arm64", None, "cortex-a76"),
    "armhf": VirtualKind("armhf", "chroot"),
}


@dataclass(frozen=True)
class Target:
    """A board to deploy to.

    Attributes:
        text: What the user wrote.
        virtual: What kind of virtual Pi it is, or None for a host.
    """

    text: str
    virtual: VirtualKind | None

    @property
    def directory(self) -> str:
        """A directory's name that no other target has: no host holds a plus sign."""
        return self.text.replace(":", "+")


def parse_target(text: str) -> Target:
    """Reads what `--host` takes: a host, or ``virtual`` or ``virtual:<kind>``.

    Raises:
        BadInputError: It is neither.
    """
    name, colon, kind = text.partition(":")
    if name == VIRTUAL:
        if kind not in VIRTUAL_KINDS or (colon and not kind):
            allowed = ", ".join(f"virtual:{each}" if each else VIRTUAL for each in VIRTUAL_KINDS)
            raise BadInputError(
                "no such virtual Raspberry Pi", got=repr(text[:80]), allowed=allowed
            )
        return Target(text, VIRTUAL_KINDS[kind])
    return Target(str(parse_host(text)), None)


def choose_targets(board: Board, given: Sequence[str]) -> tuple[Target, ...]:
    """Returns where to deploy: what was given, else what the environment or the board says.

    Args:
        board: A board that runs Linux.
        given: What the user wrote on the command line; may be empty.

    Raises:
        BadInputError: Nobody says anything, or what they say is no host.
    """
    variable = f"{board.slug.upper().replace('-', '_')}_HOST"
    texts = list(given) or list(filter(None, re.split(r"[\s,]+", os.environ.get(variable, ""))))
    if not any(texts) and board.linux is not None:
        texts = list(board.linux.hosts)
    if not any(texts):
        raise BadInputError(
            "no host to deploy to",
            where=board.slug,
            hint=f"set {variable}=pi@raspberrypi.local or give --host pi@raspberrypi.local, or use "
            f"the virtual Raspberry Pi: make deploy BOARD={board.slug} HOST={VIRTUAL} "
            f"(--host {VIRTUAL})",
        )
    return tuple(dict.fromkeys(map(parse_target, texts)))


@contextlib.contextmanager
def open_target(target: Target, disks: Path) -> Iterator[Connection]:
    """Yields a connection to a board; a virtual one runs as long as the block.

    Args:
        target: The board.
        disks: Where the disks of virtual Pis are kept from one time to the next.

    Raises:
        ToolMissingError: ssh, or what a virtual Pi needs, is not installed.
        BoardError: A virtual Pi does not start.
    """
    if target.virtual is None:
        with Connection(parse_host(target.text)) as connection:
            yield connection
        return
    virtual = target.virtual
    say(f"{target.text}: starting a virtual Raspberry Pi")
    with (
        start_virtual_pi(
            virtual.architecture,
            virtual.kind,
            cpu=virtual.cpu,
            disk=disks / target.directory,
        ) as pi,
        Connection(Host(pi.alias, label=target.text), ssh_config=pi.ssh_config) as connection,
    ):
        yield connection
