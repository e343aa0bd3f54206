"""The parts of the examples that differ between models, for the templates' placeholders."""

from __future__ import annotations

from collections.abc import Callable

from edgekiln.export.bundles.interface import Buffer, Interface
from edgekiln.export.bundles.selftest import selftest_arguments


def example_values(interface: Interface) -> dict[str, str]:
    """Returns C by placeholder: buffers, arguments, statements (indented by four spaces)."""
    load = [f"{interface.name}_reset(&state);"] if interface.has_state else []
    load += interface.copy_golden_inputs()
    return {
        "buffers": "\n".join(_define_buffers(interface)),
        "selftest_arguments": selftest_arguments(interface),
        "load": _indent(load),
        "invoke": _indent(
            [interface.invoke(inputs=[b.name for b in interface.inputs], state="&state")]
        ),
        "printf_outputs": _indent(_each_value(interface, _printf)),
        "print_outputs": _indent(_each_value(interface, _arduino_print)),
    }


def _define_buffers(interface: Interface) -> list[str]:
    separate = [*interface.inputs, *interface.outputs] if interface.is_separate else []
    return [
        *(f"static {buffer.declaration};" for buffer in separate),
        f"static int8_t arena[{interface.upper}_ARENA_BYTES]",
        f"    __attribute__((aligned({interface.upper}_ARENA_ALIGNMENT)));",
        *([f"static {interface.name}_state state;"] if interface.has_state else []),
    ]


def _each_value(interface: Interface, emit: Callable[[Buffer], list[str]]) -> list[str]:
    """Returns loops over all values of all outputs."""
    lines = []
    for buffer in interface.outputs:
        lines.append(f"for (int i = 0; i < {buffer.macro}_LEN; ++i) {{")
        lines += [f"    {line}" for line in emit(buffer)]
        lines.append("}")
    return lines


def _scaled(buffer: Buffer) -> tuple[str, str]:
    """A value as a C integer, and what to say of it: not every printf has real numbers."""
    if buffer.tensor.dtype.c_type == "float":
        return f"(long)({buffer.expression}[i] * 1000.0f)", " / 1000"
    return f"(long){buffer.expression}[i]", ""


def _printf(buffer: Buffer) -> list[str]:
    value, unit = _scaled(buffer)
    return [f'printf("{buffer.name}[%d] = %ld{unit}\\n", i, {value});']


def _arduino_print(buffer: Buffer) -> list[str]:
    value, unit = _scaled(buffer)
    return [
        f'Serial.print("{buffer.name}[");',
        "Serial.print(i);",
        'Serial.print("] = ");',
        *([f"Serial.print({value});", f'Serial.println("{unit}");'] if unit else []),
        *([] if unit else [f"Serial.println({value});"]),
    ]


def _indent(lines: list[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
