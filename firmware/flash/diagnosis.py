"""Turns what a flash tool printed into one line that a person can act on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from edgekiln.errors import BoardError, CheckFailedError, EdgekilnError
from edgekiln.firmware.flash.process import ToolRun


class Trouble(Enum):
    """What can be wrong, with what a person does about it."""

    NO_PROBE = "no debug probe is attached", "plug it in, or choose another way with --runner"
    NO_DEVICE = "no board is attached in its bootloader", ""
    NO_PORT = "the port cannot be opened", "check the cable, and the port's name with --port"
    NO_SERVER = "no GDB server answers", "start the probe's server, or name it with --to host:port"
    NO_ACCESS_USB = (
        "permission to use the USB device is denied",
        "the tool's Debian package brings a udev rule: plug the board in anew, or add yourself to "
        "its group with: sudo usermod -aG plugdev $USER",
    )
    NO_ACCESS_PORT = (
        "permission to use the port is denied",
        "add yourself to its group with: sudo usermod -aG dialout $USER, then log in again",
    )
    BUSY = "another program uses the board", "close it: a serial monitor, a debugger, an IDE"
    NO_ANSWER = "the board's bootloader does not answer", ""
    NO_TARGET = (
        "the debug probe reaches no chip",
        "check that the board has power and how the probe is wired",
    )
    WRONG_CHIP = "the chip is another one than this board's", "check --board"
    LOCKED = (
        "the chip is locked against reading or writing",
        "unlocking erases it; see the chip maker's tool",
    )
    NOT_VERIFIED = "the board's memory differs from the image after writing", "flash it again"

    @property
    def what(self) -> str:
        """What is wrong."""
        return str(self.value[0])

    @property
    def hint(self) -> str:
        """What to do; empty where it depends on the board."""
        return str(self.value[1])


#: Those that pass when the board is brought into its bootloader.
_NEED_ENTER = (Trouble.NO_DEVICE, Trouble.NO_ANSWER)


@dataclass(frozen=True)
class Symptom:
    """Words of a tool's output, and what they mean."""

    pattern: str
    trouble: Trouble


def explain(
    symptoms: Sequence[Symptom], run: ToolRun, where: str, enter: str, needs: str, log: Path
) -> EdgekilnError:
    """Returns the error that a failed run of a tool means.

    Args:
        symptoms: What the tool is known to say, the most telling first.
        run: What it did.
        where: The board and the runner.
        enter: What a person does to bring the board into its bootloader; empty for nothing.
        needs: What is wrong when the tool failed without a word that is known.
        log: Where its whole output is.
    """
    output = f"the whole output is in {log}"
    for symptom in symptoms:
        match = re.search(f"^.*?(?:{symptom.pattern}).*$", run.output, re.MULTILINE)
        if match:
            trouble = symptom.trouble
            kind = CheckFailedError if trouble is Trouble.NOT_VERIFIED else BoardError
            hint = enter if trouble in _NEED_ENTER and enter else trouble.hint
            return kind(
                trouble.what,
                where=where,
                got=repr(match[0].strip()[:200]),
                hint=f"{hint}; {output}" if hint else output,
            )
    if run.code == 0:
        return CheckFailedError(needs, where=where, got=_last_line(run.output), hint=output)
    return BoardError(
        f"{run.program} failed with {run.code}",
        where=where,
        got=_last_line(run.output) or "no message",
        hint=output,
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return repr(lines[-1][:200]) if lines else ""
