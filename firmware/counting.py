"""What an emulator counts: a plan that says where, and lines that say how much.

QEMU counts instructions, exactly, by TCG plugins of our own (qemu/count.c on boards), which are
compiled on first use into the user's cache and found there afterwards.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import BadInputError, BoardError
from edgekiln.firmware.boards import FIRMWARE
from edgekiln.firmware.image import Image, read_symbols
from edgekiln.firmware.native import build_native

_PLUGINS = FIRMWARE / "qemu"
_FLAGS = ("-std=c99", "-O2", "-shared", "-fPIC", "-fvisibility=hidden")
_VERSION = re.compile(r"version (\d+)\.")


@dataclass(frozen=True)
class InferenceCount:
    """What one inference took, from the entry of invoke to its return.

    The unit is the emulator's: instructions retired, or clock cycles.

    Attributes:
        total: All of them.
        per_node: Those of each node, in the order of ``Image.nodes``; 0 where a node needs no
            code. The first one includes what invoke does before it.
    """

    total: int
    per_node: tuple[int, ...]

    @property
    def overhead(self) -> int:
        """What invoke does after its last node: restoring registers and returning."""
        return self.total - sum(self.per_node)


class CountPlan:
    """What the plugin has to count for one image, and how its answers are read.

    Args:
        image: An image with the labels of ek_node_marks.h.

    Raises:
        BadInputError: The image lacks the symbols that tell where an inference is.
    """

    def __init__(self, image: Image) -> None:
        symbols = read_symbols(image.elf)
        try:
            self._begin = symbols[f"{image.name}_invoke"]
            self._end = symbols["ek_invoke_end"]
        except KeyError as error:
            raise BadInputError("lacks a symbol", where=image.elf, got=str(error)) from None
        marks = (symbols.get(f"ek_after_node_{node.index}") for node in image.nodes)
        self._marks = tuple(marks)

    def emit(self) -> str:
        """Returns the plan in the plugin's format."""
        lines = [f"begin {self._begin:#x}", f"end {self._end:#x}"]
        for number, address in enumerate(self._marks):
            if address is not None:
                lines.append(f"node {number} {address:#x}")
        return "\n".join(lines) + "\n"

    def parse(self, text: str) -> tuple[InferenceCount, ...]:
        """Reads whole lines of the plugin's output, one inference a line.

        Raises:
            BoardError: A line is not what the plan leads to.
        """
        return tuple(self._parse_line(line) for line in text.splitlines())

    def _parse_line(self, line: str) -> InferenceCount:
        numbers = [int(word) for word in line.split()]
        counted = iter(numbers[1:])
        marked = sum(address is not None for address in self._marks)
        if len(numbers) != 1 + marked:
            raise BoardError(
                "an inference did not pass all of its nodes",
                got=f"{len(numbers) - 1} nodes",
                allowed=str(marked),
            )
        per_node = tuple(0 if address is None else next(counted) for address in self._marks)
        return InferenceCount(numbers[0], per_node)


def build_plugin(qemu: str, name: str = "count") -> Path:
    """Returns a plugin's shared library for a QEMU, compiled if it is not in the cache.

    Args:
        qemu: The path of the QEMU program that will load it.
        name: Of its source in ``qemu/``.

    Raises:
        ToolMissingError: The system has no C compiler.
        BadInputError: The plugin does not compile, or the cache cannot be written.
    """
    flags = (*_FLAGS, *_plugin_defines(qemu))
    return build_native(_PLUGINS / f"{name}.c", flags, f"{name}-{{}}.so", ())


def _plugin_defines(qemu: str) -> tuple[str, ...]:
    """What a plugin has to know of a QEMU: version 9 changed the plugin interface."""
    result = subprocess.run(
        [qemu, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    match = _VERSION.search(result.stdout)
    if match and int(match[1]) >= 9:
        return ("-DEK_PLUGIN_API=2", "-DEK_PLUGIN_INLINE=0")
    return ("-DEK_PLUGIN_API=1", "-DEK_PLUGIN_INLINE=1")
