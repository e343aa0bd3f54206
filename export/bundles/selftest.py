"""The self-test of a package: C that runs the golden pair and counts what is wrong."""

from __future__ import annotations

from edgekiln.export.bundles.interface import Buffer, Interface
from edgekiln.export.emit.literals import c_float
from edgekiln.export.emit.program import extern_c
from edgekiln.export.ops.base import accumulated_tolerance

# The relative part of a tolerance refers to the largest value: what sums cancel to is no measure.
_COUNT_WRONG = """\
/* How many values lie further from the wanted ones than the operators' tolerance allows. */
static uint32_t count_wrong(const float *got, const float *want, uint32_t count)
{
    float allowed = 0.0f;
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < count; ++i) {
        const float size = want[i] < 0.0f ? -want[i] : want[i];
        allowed = size > allowed && size <= FLT_MAX ? size : allowed;
    }
    allowed = @absolute@ + @relative@ * allowed;
    for (uint32_t i = 0; i < count; ++i) {
        const float difference = got[i] < want[i] ? want[i] - got[i] : got[i] - want[i];
        wrong += difference <= allowed || got[i] == want[i] ? 0u : 1u;
    }
    return wrong;
}
"""


def selftest_header_name(interface: Interface) -> str:
    """Returns the name of the header that an application includes."""
    return f"{interface.name}_selftest.h"


def emit_selftest_header(interface: Interface) -> str:
    """Returns the header that declares ``<model>_selftest``."""
    guard = f"{interface.upper}_SELFTEST_H"
    declaration = [
        "/* Runs the golden pair: an input, and the output that it has to lead to. Returns how",
        " * many of the output's values are wrong: 0 when all is well. */",
        f"{_prototype(interface)};",
        "",
    ]
    lines = [
        interface.banner("self-test"),
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        f'#include "{interface.name}.h"',
        "",
        *extern_c(declaration),
        "#endif",
        "",
    ]
    return "\n".join(lines)


def emit_selftest(interface: Interface) -> str:
    """Returns the source of ``<model>_selftest``."""
    reals = [b for b in interface.outputs if _is_real(b)]
    body = [*([f"{interface.name}_reset(state);"] if interface.has_state else [])]
    if not interface.is_separate:
        body += interface.copy_golden_inputs()
    body.append(interface.invoke(inputs=[b.golden for b in interface.inputs], state="state"))
    for buffer in interface.outputs:
        body += _compare(buffer)
    lines = [
        interface.banner("self-test"),
        *(["#include <float.h>"] if reals else []),
        "#include <string.h>",
        "",
        f'#include "{selftest_header_name(interface)}"',
        "",
        *([_emit_count_wrong(interface)] if reals else []),
        _prototype(interface),
        "{",
        "    uint32_t wrong = 0;",
        *(f"    {line}" for line in body),
        "    return wrong;",
        "}",
        "",
    ]
    return "\n".join(lines)


def selftest_arguments(interface: Interface) -> str:
    """Returns what the examples pass, which call their buffers as the parameters are called."""
    outputs = [b.name for b in interface.outputs] if interface.is_separate else []
    return ", ".join([*outputs, "arena", *(["&state"] if interface.has_state else [])])


def _prototype(interface: Interface) -> str:
    outputs = [b.declaration for b in interface.outputs] if interface.is_separate else []
    parameters = [
        *outputs,
        f"int8_t arena[{interface.upper}_ARENA_BYTES]",
        *([f"{interface.name}_state *state"] if interface.has_state else []),
    ]
    return f"uint32_t {interface.name}_selftest({', '.join(parameters)})"


def _is_real(buffer: Buffer) -> bool:
    return buffer.tensor.dtype.c_type == "float"


def _compare(buffer: Buffer) -> list[str]:
    if _is_real(buffer):
        return [f"wrong += count_wrong({buffer.expression}, {buffer.golden}, {buffer.macro}_LEN);"]
    return [
        f"for (uint32_t i = 0; i < {buffer.macro}_LEN; ++i) {{",
        f"    wrong += {buffer.expression}[i] == {buffer.golden}[i] ? 0u : 1u;",
        "}",
    ]


def _emit_count_wrong(interface: Interface) -> str:
    tolerance = accumulated_tolerance(interface.compiled.graph.ops)
    text = _COUNT_WRONG.replace("@absolute@", c_float(tolerance.absolute))
    return text.replace("@relative@", c_float(tolerance.relative))
