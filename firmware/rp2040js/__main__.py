"""``python -m edgekiln.firmware.rp2040js``: installs the emulator of the board pico."""

from __future__ import annotations

import sys

from edgekiln.console import say
from edgekiln.errors import EdgekilnError, ToolMissingError
from edgekiln.firmware.rp2040js import find_rp2040js, install, wanted_version


def main() -> None:
    """Installs rp2040js unless the wanted version is there."""
    try:
        try:
            say(f"rp2040js {wanted_version()} is installed in {find_rp2040js().parent.parent}")
        except ToolMissingError:
            say(f"rp2040js {wanted_version()} is now installed in {install()}")
    except EdgekilnError as error:
        print(f"edgekiln: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
