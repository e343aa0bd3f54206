"""Where an image goes, as a user says it."""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"


@dataclass(frozen=True)
class Destination:
    """Where an image goes.

    Attributes:
        runner: The runner's name, or None for the board's first that works here.
        port: The board's serial port, `AUTO` to find it, or None where nothing was said.
        to: The drive's directory for uf2, or GDB's server.
    """

    runner: str | None = None
    port: str | None = None
    to: str | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was said."""
        return self == Destination()
