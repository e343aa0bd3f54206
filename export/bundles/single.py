"""The amalgamation: one .c file and one .h file.

A header that turns into the implementation by a macro would be one file less, but it would put
kernels and macros into the application's own source, be compiled as C++ where that is C++, and
hold the tables twice where the macro is defined twice. A .c file is compiled once, by whatever
compiles C, and the header stays as small as it is in the other packages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgekiln.export.bundles.interface import Interface
from edgekiln.export.bundles.selftest import emit_selftest, emit_selftest_header

_INCLUDE = re.compile(r'^#include "(\w+\.h)"\n', re.MULTILINE)
_QUIET = """\
/* Kernel files are here whole, also what this model does not use of them. */
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
"""
_TABLE = re.compile(r"^const ", re.MULTILINE)


def amalgamate(interface: Interface) -> dict[str, str]:
    """Returns ``<name>.h`` and ``<name>.c``, which hold all that the model consists of."""
    name = interface.name
    files = interface.compiled.files
    # Nothing outside of the file uses the tables.
    tables = _TABLE.sub("static const ", files[f"{name}_weights.c"])
    tables = tables.replace(f'#include "{name}_weights.h"\n', '#include "ek_common.h"\n')
    parts = {**files, f"{name}_weights.h": tables}
    inlined = {f"{name}.h"}
    lines = [
        interface.banner("the whole model, its kernels and its self-test"),
        f'#include "{name}.h"',
        "",
        _QUIET,
        _inline(files[f"{name}.c"], parts, inlined),
        f"#ifndef {interface.upper}_NO_SELFTEST /* what a linker may not know to leave out */",
        "",
        _inline(files[f"{name}_golden.c"], parts, inlined),
        _inline(emit_selftest(interface), {**parts, f"{name}_selftest.h": ""}, inlined),
        "#endif",
        "",
    ]
    selftest = emit_selftest_header(interface).replace(f'#include "{name}.h"\n\n', "")
    return {f"{name}.c": "\n".join(lines), f"{name}.h": f"{files[f'{name}.h']}\n{selftest}"}


def _inline(text: str, parts: Mapping[str, str], inlined: set[str]) -> str:
    """Puts files in the place of their first ``#include``; the later ones are dropped."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name in inlined:
            return ""
        inlined.add(name)
        return _inline(parts[name], parts, inlined)

    return _INCLUDE.sub(replace, text)
