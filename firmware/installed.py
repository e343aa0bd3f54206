"""What a board needs on this machine, and what of it is there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgekiln.firmware.boards import Board

Purpose = Literal["compiler", "emulator"]


@dataclass(frozen=True)
class Tool:
    """A program that a board needs.

    Attributes:
        purpose: What for.
        program: Its name.
        packages: The Debian packages that hold it.
    """

    purpose: Purpose
    program: str
    packages: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """Whether the program is found."""
        return shutil.which(self.program) is not None


def tools_of(board: Board) -> tuple[Tool, ...]:
    """Returns what a board needs: its C compiler, and its emulator where it has one."""
    prefix = board.toolchain.prefix
    compiler = f"{prefix}gcc" if prefix else "cc"
    tools = [Tool("compiler", compiler, board.toolchain.packages)]
    if board.emulator:
        tools.append(Tool("emulator", board.emulator.program, board.emulator.packages))
    return tuple(tools)


def missing_tools(board: Board) -> tuple[Tool, ...]:
    """Returns what of it is not installed."""
    return tuple(tool for tool in tools_of(board) if not tool.is_installed)


def packages_of(tools: Iterable[Tool]) -> tuple[str, ...]:
    """Returns the Debian packages that hold some tools, each once."""
    return tuple(dict.fromkeys(name for tool in tools for name in tool.packages))
