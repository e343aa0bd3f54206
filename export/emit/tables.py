"""The constant tables of a model: weights, biases, multipliers, and the golden pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgekiln.export.emit.literals import c_array, c_declaration
from edgekiln.export.emit.program import Program, extern_c

Array = NDArray[Any]

# Where tables lie that are reached through the kernels' parameters (ek_common.h). Constants that
# take the place of an activation are reached by an ordinary pointer.
FLASH = "EK_FLASH"

# Declarations and definitions must agree on it: some ABIs promise more for large arrays.
_ALIGNED = "EK_ALIGN(4)"


def content_of(array: Array) -> tuple[str, bytes]:
    """Returns what makes two tables equal."""
    return array.dtype.name, array.tobytes()


def uniform_byte(array: Array) -> int | None:
    """Returns the byte that an array consists of, or None when its bytes differ."""
    found = set(array.tobytes())
    return found.pop() if len(found) == 1 else None


class Tables:
    """The tables by name; equal ones in the same place are stored once.

    Args:
        program: The model.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.arrays: dict[str, Array] = {}
        self._names: dict[tuple[tuple[str, bytes], str], str] = {}
        self._spaces: dict[str, str] = {}
        for node in program.nodes:
            for number, call in enumerate(node.calls):
                suffix = f"_{number}" if len(node.calls) > 1 else ""
                for key, array in call.arrays.items():
                    self._add(f"{program.name}_n{node.op.index}{suffix}_{key}", array, FLASH)
                for index in call.inputs:
                    tensor = program.graph.tensor(index)
                    if tensor.is_constant:
                        self._add(f"{program.name}_t{index}", tensor.value, "")
        for index in program.graph.states():
            value = program.graph.initial[index]
            if uniform_byte(value) is None:
                self._add(f"{program.name}_t{index}_initial", value, FLASH)

    def _add(self, name: str, array: Array, space: str) -> None:
        if self._names.setdefault((content_of(array), space), name) == name:
            self.arrays[name] = array
            self._spaces[name] = space

    def name_of(self, array: Array, space: str = FLASH) -> str:
        """Returns the C name of a table, or of one that stands for an activation (space "")."""
        return self._names[content_of(array), space]

    @property
    def bytes(self) -> int:
        """Size of all tables."""
        return sum(array.nbytes for array in self.arrays.values())

    def emit_declarations(self) -> str:
        """Returns the private header that declares the tables."""
        guard = f"{self.program.upper}_WEIGHTS_H"
        declarations = [
            f"extern {c_declaration(name, array, self._spaces[name])} {_ALIGNED};"
            for name, array in self.arrays.items()
        ]
        lines = [
            self.program.banner("weights and other tables (private)"),
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            '#include "ek_common.h"',
            "",
            *extern_c([*declarations, ""]),
            "#endif",
            "",
        ]
        return "\n".join(lines)

    def emit_definitions(self) -> str:
        """Returns the source that defines the tables."""
        name = self.program.name
        lines = [self.program.banner("weights and other tables"), f'#include "{name}_weights.h"']
        lines.append("")
        for key, array in self.arrays.items():
            declaration = c_declaration(key, array, self._spaces[key])
            lines += c_array(f"{declaration} {_ALIGNED}", array)
        return "\n".join(lines)


def emit_golden(program: Program, golden: Mapping[str, Array]) -> str:
    """Returns the source that defines the golden pair."""
    lines = [program.banner("golden pair"), f'#include "{program.name}.h"', ""]
    for io_name, _ in program.io():
        array = golden[io_name]
        lines += c_array(c_declaration(f"{program.name}_golden_{io_name}", array), array)
    return "\n".join(lines)
