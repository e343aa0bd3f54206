"""``python -m edgekiln.firmware.virtual_pi``: a virtual Pi for a person."""

from __future__ import annotations

import shlex
import signal
import sys
from typing import NoReturn, get_args

import click

from edgekiln.console import say
from edgekiln.errors import EdgekilnError
from edgekiln.firmware.virtual_pi import Architecture, Kind, start_virtual_pi


@click.command()
@click.option("--architecture", type=click.Choice(get_args(Architecture)), default="arm64")
@click.option(
    "--kind",
    type=click.Choice(get_args(Kind)),
    help="How it runs; the fastest that is possible here unless you say otherwise.",
)
@click.option("--cpu", help="QEMU's name of the core, such as cortex-a76.")
@click.option("--port", type=click.IntRange(1, 65535), help="A free port; any by default.")
def main(architecture: Architecture, kind: Kind | None, cpu: str | None, port: int | None) -> None:
    """Runs a virtual Raspberry Pi until Ctrl-C and prints the ssh command that reaches it."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with start_virtual_pi(architecture, kind, cpu=cpu, port=port) as pi:
            say(f"A virtual Raspberry Pi ({pi.kind}, {pi.architecture}) runs until Ctrl-C.")
            click.echo(shlex.join(pi.ssh_command()))
            pi.wait()
    except EdgekilnError as error:
        print(f"edgekiln: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
