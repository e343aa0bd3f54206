"""The public header of a model."""

from __future__ import annotations

from edgekiln.export.emit.literals import c_float
from edgekiln.export.emit.program import ARENA_ALIGNMENT, Program, extern_c, pointer
from edgekiln.export.ir import Tensor


def emit_interface(program: Program) -> str:
    """Returns the header that an application includes."""
    upper = program.upper
    lines = [
        program.banner("interface"),
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stdint.h>",
        "",
        f'#define {upper}_MODEL_SHA256 "{program.sha256}"',
        f"#define {upper}_MACS {program.macs}u",
        f"#define {upper}_ARENA_BYTES {max(program.plan.arena_bytes, 1)}",
        f"#define {upper}_ARENA_ALIGNMENT {ARENA_ALIGNMENT}",
        *([f"#define {upper}_STATE_BYTES {program.state_bytes}"] if program.states() else []),
        "",
    ]
    for io_name, tensor in program.io():
        lines += _tensor_macros(f"{upper}_{io_name.upper()}", tensor)
    declarations = [*_state(program)]
    if not program.separate_io:
        declarations += _accessors(program)
    declarations += [*_invoke(program), *_golden(program)]
    return "\n".join([*lines, *extern_c(declarations), "#endif", ""])


def _tensor_macros(prefix: str, tensor: Tensor) -> list[str]:
    shape = ", ".join(map(str, tensor.shape))
    lines = [
        f"#define {prefix}_LEN {tensor.elements}",
        f"#define {prefix}_BYTES {tensor.bytes}",
        f"#define {prefix}_RANK {len(tensor.shape)}",
        f"#define {prefix}_SHAPE {{{shape}}}",
    ]
    if tensor.quantization is not None:
        lines += [
            f"#define {prefix}_SCALE {c_float(tensor.q.scale)}",
            f"#define {prefix}_ZERO_POINT ({tensor.q.zero_point})",
        ]
    return [*lines, ""]


def _state(program: Program) -> list[str]:
    if not program.states():
        return []
    members = [f"    {t.dtype.c_type} {n}[{t.elements}];" for n, t in program.states()]
    if program.state_padding_bytes:
        members.append(f"    uint8_t padding[{program.state_padding_bytes}];")
    return [
        "/* What the model remembers from one inference to the next. */",
        "typedef struct {",
        *members,
        f"}} {program.name}_state;",
        "",
        "/* Makes the model forget: call it before the first inference. */",
        f"void {program.name}_reset({program.name}_state *state);",
        "",
    ]


def _accessors(program: Program) -> list[str]:
    lines = [f"/* Inputs and outputs lie in the arena, aligned to {ARENA_ALIGNMENT} bytes. */"]
    for names, const in ((program.inputs(), ""), (program.outputs(), "const ")):
        for io_name, tensor in names:
            place, found = program.place(tensor.index)
            kind = tensor.dtype.c_type
            value = pointer(place, found, kind, bool(const))
            lines += [
                f"static inline {const}{kind} *{program.name}_{io_name}({const}int8_t *arena)",
                "{",
                f"    return {value};",
                "}",
                "",
            ]
    return lines


def _invoke(program: Program) -> list[str]:
    comment = [
        "/* Runs the model once. The inputs' bytes are reused on the way: write them anew for",
        " * each run. */",
    ]
    if program.separate_io:
        comment = [
            f"/* Runs the model once. Inputs are only read; the arena is aligned to "
            f"{ARENA_ALIGNMENT} bytes. */"
        ]
    return [*comment, f"void {program.name}_invoke({program.invoke_parameters()});", ""]


def _golden(program: Program) -> list[str]:
    return [
        "/* An input and the output it leads to, for a self-test; linked only where used. */",
        *(
            f"extern const {t.dtype.c_type} "
            f"{program.name}_golden_{n}[{program.upper}_{n.upper()}_LEN];"
            for n, t in program.io()
        ),
        "",
    ]
