"""QEMU: the UART on a terminal, instructions counted by a plugin of our own."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekiln.errors import ToolMissingError
from edgekiln.firmware import boards
from edgekiln.firmware.counting import CountPlan, build_plugin
from edgekiln.firmware.emulators.base import Counter, Job, Launch
from edgekiln.firmware.toolchain import install_hint


def plan(job: Job) -> Launch:
    """Says how QEMU runs an image.

    Raises:
        ToolMissingError: QEMU, or the compiler for its plugin, is not installed.
    """
    if job.board.emulator is None:
        raise AssertionError("a board whose emulator is QEMU has one")
    command = qemu_command(job.board.emulator, job.image.elf, job.terminal)
    if not job.count:
        return Launch(tuple(command))
    counter = Counter("instructions", "", CountPlan(job.image), job.work / "counts")
    (job.work / "plan").write_text(counter.plan.emit(), encoding="ascii")
    plugin = build_plugin(command[0])
    options = [str(plugin), f"plan={job.work / 'plan'}", f"out={counter.path}"]
    options += job.plugin_arguments
    joined = ",".join(option.replace(",", ",,") for option in options)
    return Launch((*command, "-plugin", joined), counter)


def qemu_command(emulator: boards.Emulator, elf: Path, terminal: int) -> list[str]:
    """Returns the command that runs an ELF with its UART on an open terminal.

    Args:
        emulator: The emulator.
        elf: The image.
        terminal: The file descriptor of a pseudo-terminal's own end, which it inherits.

    Raises:
        ToolMissingError: The emulator is not installed.
    """
    program = shutil.which(emulator.program)
    if program is None:
        raise ToolMissingError(
            f"{emulator.program} is not installed", hint=install_hint(emulator.packages)
        )
    command = [program, "-M", emulator.machine, *emulator.options]
    command += ["-display", "none", "-monitor", "none"]
    command += ["-add-fd", f"fd={terminal},set=1"]
    command += ["-chardev", "serial,id=uart,path=/dev/fdset/1", "-serial", "chardev:uart"]
    return [*command, "-kernel", str(elf)]
