"""What a board needs on this machine, and what of it is there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from edgekiln.errors import ToolMissingError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.rp2040js import find_rp2040js

Purpose = Literal["compiler", "emulator"]


@dataclass(frozen=True)
class Tool:
    """A program that a board needs.

    Attributes:
        purpose: What for.
        program: Its name.
        packages: The Debian packages that hold it.
        is_installed: Whether it is found.
        command: What installs it where no package does.
    """

    purpose: Purpose
    program: str
    packages: tuple[str, ...]
    is_installed: bool
    command: str = ""


def tools_of(board: Board) -> tuple[Tool, ...]:
    """Returns what a board needs: its C compiler, and its emulator where it has one."""
    prefix = board.toolchain.prefix
    compiler = f"{prefix}gcc" if prefix else "cc"
    tools = [_program("compiler", compiler, board.toolchain.packages)]
    if board.emulator:
        tools.append(_program("emulator", board.emulator.program, board.emulator.packages))
        if board.emulator.kind == "rp2040js":
            tools.append(_rp2040js())
    return tuple(tools)


def _program(purpose: Purpose, name: str, packages: tuple[str, ...]) -> Tool:
    return Tool(purpose, name, packages, shutil.which(name) is not None)


def _rp2040js() -> Tool:
    """The module that the emulator's program runs; npm installs it."""
    command = f"{sys.executable} -m edgekiln.firmware.rp2040js"
    try:
        find_rp2040js()
    except ToolMissingError:
        return Tool("emulator", "rp2040js", (), False, command)
    return Tool("emulator", "rp2040js", (), True, command)


def missing_tools(board: Board) -> tuple[Tool, ...]:
    """Returns what of it is not installed."""
    return tuple(tool for tool in tools_of(board) if not tool.is_installed)


def steps_to_install(tools: Iterable[Tool]) -> str:
    """Returns what installs some tools: Debian packages, then commands; empty for none."""
    tools = tuple(tools)
    commands = dict.fromkeys(tool.command for tool in tools if tool.command)
    return "; ".join(filter(None, [" ".join(packages_of(tools)), *commands]))


def packages_of(tools: Iterable[Tool]) -> tuple[str, ...]:
    """Returns the Debian packages that hold some tools, each once."""
    return tuple(dict.fromkeys(name for tool in tools for name in tool.packages))
