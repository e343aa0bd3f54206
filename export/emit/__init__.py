"""Writes the C of a model: its interface, its code, its tables, and a pair to test it with.

The code of a model is a table of contents: one function per kernel and specialisation, each
of them a kernel of ``kernels/`` inlined with the parameters on which its nodes agree as
constants, and ``<model>_invoke``, which calls them node by node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from numpy.typing import NDArray

from edgekiln.export.emit.code import emit_code
from edgekiln.export.emit.interface import emit_interface
from edgekiln.export.emit.program import Program
from edgekiln.export.emit.tables import Tables, emit_golden

_INCLUDE = re.compile(r'^#include "(ek_\w+\.h)"', re.MULTILINE)


def emit_files(program: Program, golden: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Returns all files of the bundle by name.

    Args:
        program: The model.
        golden: Values by the names of `Program.io`: inputs and the outputs they lead to.
    """
    tables = Tables(program)
    name = program.name
    files = {
        f"{name}.h": emit_interface(program),
        f"{name}.c": emit_code(program, tables),
        f"{name}_weights.h": tables.emit_declarations(),
        f"{name}_weights.c": tables.emit_definitions(),
        f"{name}_golden.c": emit_golden(program, golden),
    }
    return files | read_kernels({"ek_common.h", *program.headers()})


def read_kernels(headers: Iterable[str]) -> dict[str, str]:
    """Returns the text of kernel headers, and of those that they include, by name."""
    directory = resources.files("edgekiln.export") / "kernels"
    found: dict[str, str] = {}
    wanted = set(headers)
    while wanted:
        header = wanted.pop()
        found[header] = (directory / header).read_text(encoding="utf-8")
        wanted |= set(_INCLUDE.findall(found[header])) - set(found)
    return dict(sorted(found.items()))
