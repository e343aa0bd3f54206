"""Takes a model to every microcontroller's emulator, and says in one table what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekiln import pipeline
from edgekiln.console import say
from edgekiln.errors import (
    BoardError,
    CheckFailedError,
    DoesNotFitError,
    EdgekilnError,
    ToolMissingError,
)

if TYPE_CHECKING:
    from edgekiln.bench.inputs import ModelInputs
    from edgekiln.firmware.boards import Board
    from edgekiln.firmware.image import Image

# Multiply-accumulates of all samples together on one board: what an emulator does in seconds.
_MOST_MACS = {"qemu": 300_000_000}
_MOST_MACS_OF_A_CYCLE_COUNTER = 4_000_000

Outcome = Literal["equal", "built", "does not fit", "not installed", "differs", "failed"]


@dataclass(frozen=True)
class Trial:
    """What came of one model on one board.

    Attributes:
        board: The board's slug.
        core: Its processor core.
        model: The model's name.
        outcome: ``equal``: every output byte is the host's. ``built``: there is no emulator, so
            the image was made and not run.
        note: What went wrong, in a sentence; else empty.
        flash_bytes: The linked image, or None where there is none.
        ram_bytes: Arena, variables and the measured peak of the stack, or None.
        stack_bytes: That peak, or None.
        instructions: Instructions of one inference, or None.
        cycles: Clock cycles of one inference, or None.
        samples: Inferences that were compared.
        bytes_equal: Output bytes that equal the host's, or None where nothing ran.
    """

    board: str
    core: str
    model: str
    outcome: Outcome
    note: str = ""
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    stack_bytes: int | None = None
    instructions: int | None = None
    cycles: int | None = None
    samples: int = 0
    bytes_equal: int | None = None


def try_everywhere(
    models: Sequence[str],
    build: Path,
    optimize: str = "balanced",
    boards: Sequence[str] = (),
) -> tuple[Trial, ...]:
    """Tries a model on each microcontroller; where it does not fit, the next one given.

    Args:
        models: Recipes or .tflite files, the one that matters first.
        build: The root of the build tree.
        optimize: What the compiler favours.
        boards: Slugs; none means all.

    Raises:
        EdgekilnError: A board is not known, or a model cannot be made or compiled at all.
    """
    from edgekiln.firmware.boards import board_slugs, load_board

    chosen = [load_board(slug) for slug in boards or board_slugs()]
    works = [pipeline.find_model(model, build, optimize) for model in models]
    return tuple(_try_board(works, board) for board in chosen if board.memory is not None)


def check(trials: Sequence[Trial]) -> None:
    """Passes when nothing went wrong; what is not installed, or does not fit, is no failure.

    Raises:
        CheckFailedError: A board's bytes differ from the host's.
        BoardError: An emulator failed.
    """
    for outcome, error in (("differs", CheckFailedError), ("failed", BoardError)):
        bad = [trial for trial in trials if trial.outcome == outcome]
        if bad:
            raise error(bad[0].note, hint=f"boards: {', '.join(trial.board for trial in bad)}")


def _try_board(works: Sequence[pipeline.Work], board: Board) -> Trial:
    trial = _try_model(works[0], board)
    for work in works[1:]:
        if trial.outcome != "does not fit":
            break
        trial = _try_model(work, board)
    return trial


def _try_model(work: pipeline.Work, board: Board) -> Trial:
    from edgekiln.bench.inputs import read_inputs_file
    from edgekiln.firmware.installed import missing_tools

    def ended(outcome: Outcome, error: object) -> Trial:
        say(f"{board.slug}: {outcome}: {error}")
        return Trial(board.slug, board.core, work.name, outcome, note=str(error))

    missing = missing_tools(board)
    if missing:
        return ended("not installed", ", ".join(tool.program for tool in missing))
    inputs = read_inputs_file(work.inputs)
    try:
        image = work.image(board)
        return _run(work, board, image, inputs)
    except DoesNotFitError as error:
        return ended("does not fit", error)
    except ToolMissingError as error:
        return ended("not installed", error)
    except CheckFailedError as error:
        return ended("differs", error)
    except EdgekilnError as error:
        return ended("failed", error)


def _run(work: pipeline.Work, board: Board, image: Image, inputs: ModelInputs) -> Trial:
    from edgekiln.bench.measure import measure_few

    if board.emulator is None:
        return Trial(board.slug, board.core, work.name, "built", flash_bytes=image.flash_bytes)
    most = _MOST_MACS.get(board.emulator.kind, _MOST_MACS_OF_A_CYCLE_COUNTER)
    few = inputs.head(max(1, min(inputs.samples, most // max(1, image.macs))))
    found = measure_few(work.name, image, board, work.host_bundle, few)
    return Trial(
        board=board.slug,
        core=board.core,
        model=work.name,
        outcome="equal",
        flash_bytes=found.flash_bytes,
        ram_bytes=found.ram_bytes,
        stack_bytes=found.stack_bytes,
        instructions=found.instructions,
        cycles=found.cycles,
        samples=few.samples,
        bytes_equal=few.samples * image.output_bytes,
    )
