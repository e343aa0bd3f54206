"""Writes the C of a model: its interface, its code, its tables, and a pair to test it with.

The code of a model is a table of contents: one function per kernel and specialisation, each
of them a kernel of ``kernels/`` inlined with the parameters on which its nodes agree as
constants, and ``<model>_invoke``, which calls them node by node.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from numpy.typing import NDArray

from edgekiln.export.emit.code import emit_code
from edgekiln.export.emit.interface import emit_interface
from edgekiln.export.emit.program import Program
from edgekiln.export.emit.tables import Tables, emit_golden


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
    kernels = resources.files("edgekiln.export") / "kernels"
    for header in sorted({"ek_common.h", *program.headers()}):
        files[header] = (kernels / header).read_text(encoding="utf-8")
    return files
