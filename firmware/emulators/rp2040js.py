"""rp2040js: an RP2040 that boots the UF2 file, with UART0 on a terminal and cycles counted."""

from __future__ import annotations

from edgekiln.errors import BadInputError
from edgekiln.firmware.counting import CountPlan
from edgekiln.firmware.emulators.base import Counter, Job, Launch
from edgekiln.firmware.rp2040js import SCRIPT, find_node, find_rp2040js, wanted_version


def cycles_model() -> str:
    """Returns how the cycles are modelled, in words."""
    return (
        f"rp2040js {wanted_version()}: the Cortex-M0+ pipeline by the cycle table of its manual; "
        "the XIP cache is not modelled, code and constants in flash are as fast as RAM"
    )


def plan(job: Job) -> Launch:
    """Says how rp2040js runs an image.

    Raises:
        ToolMissingError: Node.js or rp2040js is not installed.
        BadInputError: The image has no UF2 file.
    """
    if job.image.uf2 is None:
        raise BadInputError("the image has no UF2 file", where=job.board.slug)
    command = [find_node(), str(SCRIPT), "--module", str(find_rp2040js())]
    command += ["--uf2", str(job.image.uf2.resolve()), "--terminal", str(job.terminal)]
    if not job.count:
        return Launch(tuple(command))
    counter = Counter("cycles", cycles_model(), CountPlan(job.image), job.work / "counts")
    (job.work / "plan").write_text(counter.plan.emit(), encoding="ascii")
    command += ["--plan", str(job.work / "plan"), "--out", str(counter.path)]
    return Launch(tuple(command), counter)
