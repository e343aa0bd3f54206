"""What to do about a model that a board is too small for.

An option is only named when an image that was built with it fits. What the other models on the
same data need is kept in needs.json, so that naming one takes no training; a board is named when
it has the room.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekiln.errors import DoesNotFitError
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.firmware.boards import Board, board_slugs, load_board
from edgekiln.firmware.image import build_image

NEEDS = Path(__file__).with_name("needs.json")

# What an image takes beside arena, stack and constants, generously: the application with the
# kernels' code, and the variables.
_CODE_BYTES = 12 * 1024
_VARIABLE_BYTES = 256

_OPTIMIZATIONS = ("balanced", "ram", "flash")


@dataclass(frozen=True)
class Need:
    """What one of the project's own models needs of a board.

    Attributes:
        model: Its name.
        dataset: What it was trained on.
        arena_bytes: All of its activations.
        constants_bytes: Its weights and tables.
        macs: Multiply-accumulates of one inference.
    """

    model: str
    dataset: str
    arena_bytes: int
    constants_bytes: int
    macs: int

    def fits(self, board: Board) -> bool:
        """Whether a board has room for it."""
        return _has_room(board, self.arena_bytes, self.constants_bytes)


def read_needs() -> tuple[Need, ...]:
    """Returns what is known of all models, by name."""
    values = json.loads(NEEDS.read_text(encoding="utf-8"))
    return tuple(Need(model, **need) for model, need in values.items())


def need_of(model: str, dataset: str, data: bytes) -> Need:
    """Returns what a model needs, for needs.json: it is compiled for any core.

    Args:
        model: Its name.
        dataset: What it was trained on.
        data: The .tflite file's bytes.
    """
    report = compile_model(data, name=model).report
    numbers = {key: report[key] for key in ("arena_bytes", "constants_bytes", "macs")}
    return Need(model, dataset, **numbers)


def explain(
    error: DoesNotFitError,
    data: bytes,
    name: str,
    board: Board,
    *,
    optimize: str,
    dataset: str | None,
    shrinks: bool = False,
) -> DoesNotFitError:
    """Returns the error with the nearest option, or else model, that would fit, and a board.

    Args:
        error: What `build_image` said.
        data: The .tflite file's bytes.
        name: The model's name.
        board: The board.
        optimize: What the compiler favoured.
        dataset: What the model was trained on, or None for one from outside.
        shrinks: Whether it is a Keras model from which channels can still be removed.
    """
    least = compile_model(data, name=name, optimize="ram").report
    hints = [error.hint]
    if _can_hold(board, least):
        hints.append(_find_option(data, name, board, optimize))
    if not any(hints[1:]) and dataset is not None:
        hints.append(_find_model(name, dataset, board))
    if not any(hints[1:]) and shrinks:
        hints.append("--channels 0.5 makes it smaller")
    hints.append(_find_board(data, name, board, least))
    return DoesNotFitError(
        error.what,
        where=error.where,
        got=error.got,
        allowed=error.allowed,
        hint="; ".join(hint for hint in hints if hint),
    )


def _find_option(data: bytes, name: str, board: Board, optimize: str) -> str:
    for option in _OPTIMIZATIONS:
        if option == optimize:
            continue
        with tempfile.TemporaryDirectory(prefix="edgekiln-fit-") as directory:
            bundle = Path(directory) / "c"
            compiled = compile_model(data, name=name, target=board.target, optimize=option)
            write_bundle(compiled, bundle)
            try:
                image = build_image(bundle, board, Path(directory) / "image")
            except DoesNotFitError:
                continue
        ram_bytes = image.ram_bytes(image.stack_reserve_bytes)
        return (
            f"--optimize {option} would fit, with {image.flash_bytes:,} bytes of flash and "
            f"{ram_bytes:,} of RAM"
        )
    return ""


def _find_model(name: str, dataset: str, board: Board) -> str:
    """Names the model on the same data that comes nearest in work and has room."""
    fitting = [
        need
        for need in read_needs()
        if need.dataset == dataset and need.model != name and need.fits(board)
    ]
    if not fitting:
        return ""
    best = max(fitting, key=lambda need: need.macs)
    return (
        f"{best.model} would fit, with {best.constants_bytes:,} bytes of weights and "
        f"{best.arena_bytes:,} of arena"
    )


def _find_board(data: bytes, name: str, board: Board, least: dict[str, Any]) -> str:
    def size(other: Board) -> tuple[int, int]:
        return (other.ram_bytes or 0, other.flash_bytes or 0)

    reports: dict[str, dict[str, Any]] = {}
    for other in sorted(_microcontrollers(), key=size):
        if other.slug == board.slug or not _can_hold(other, least):
            continue
        if other.target not in reports:
            reports[other.target] = compile_model(data, name=name, target=other.target).report
        report = reports[other.target]
        arena_bytes = report["arena_bytes"] + report.get("state_bytes", 0)
        if _has_room(other, arena_bytes, report["constants_bytes"]):
            return f"the smallest board that holds it is {other.slug}"
    return ""


def _microcontrollers() -> Iterator[Board]:
    boards = (load_board(slug) for slug in board_slugs())
    return (board for board in boards if board.memory is not None)


def _can_hold(board: Board, least: dict[str, Any]) -> bool:
    """Whether a board might do: no kernels need less than the most frugal ones at their best."""
    arena_bytes = least["arena_bound_bytes"] + least.get("state_bytes", 0)
    return (
        board.memory is not None
        and arena_bytes + board.memory.stack_bytes <= board.memory.ram_bytes
        and least["constants_bytes"] // 2 <= board.memory.flash_bytes
    )


def _has_room(board: Board, arena_bytes: int, constants_bytes: int) -> bool:
    memory = board.memory
    return (
        memory is not None
        and arena_bytes + memory.stack_bytes + _VARIABLE_BYTES <= memory.ram_bytes
        and constants_bytes + _CODE_BYTES <= memory.flash_bytes
    )
