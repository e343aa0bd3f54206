"""Where an image goes, as a user says it."""

from __future__ import annotations

from dataclasses import dataclass

from edgekiln.errors import BadInputError

AUTO = "auto"
EMULATOR = "emulator"


@dataclass(frozen=True)
class Destination:
    """Where an image goes.

    Attributes:
        runner: The runner's name, or None for the board's first that works here.
        port: The board's serial port, `AUTO` to find it, or None where nothing was said.
        to: The drive's directory for uf2, or GDB's server.

    Raises:
        BadInputError: The emulator is to be reached at a place.
    """

    runner: str | None = None
    port: str | None = None
    to: str | None = None

    def __post_init__(self) -> None:
        place = self.to if self.port is None else self.port
        if self.runner == EMULATOR and place is not None:
            raise BadInputError(
                "an emulator is at no place", got=repr(place), hint="choose another --runner"
            )

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was said."""
        return self == Destination()
