"""Writes the C of a model: its header, its code, its tables, and a pair to test it with.

The code of a model is a table of contents: one function per kernel and specialisation, each
of them a kernel of ``kernels/`` inlined with the parameters on which its nodes agree as
constants, and ``<model>_invoke``, which calls them node by node.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from numpy.typing import NDArray

from edgekiln import __version__
from edgekiln.export.ir import Graph, Tensor
from edgekiln.export.lower import Node
from edgekiln.export.ops.base import KernelCall
from edgekiln.export.plan import MemoryPlan

Array = NDArray[Any]

# Declarations and definitions must agree on it: some ABIs promise more for large arrays.
_ALIGNED = "EK_ALIGN(4)"

_C_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t"}


@dataclass(frozen=True)
class Program:
    """All that the emitter needs.

    Attributes:
        name: The model's C name.
        graph: The graph.
        nodes: Its nodes, lowered.
        plan: Where the activations lie.
        root: For each activation the tensor whose memory it shares.
        target: The target's name.
        optimize: What the sharing of functions favours.
        separate_io: Whether the caller passes input and output buffers.
        sha256: Of the model file.
        macs: Of one inference.
    """

    name: str
    graph: Graph
    nodes: tuple[Node, ...]
    plan: MemoryPlan
    root: Mapping[int, int]
    target: str
    optimize: str
    separate_io: bool
    sha256: str
    macs: int

    def input_names(self) -> list[str]:
        """Returns "input", or "input_0", "input_1", … where there are several."""
        return _numbered("input", len(self.graph.inputs))

    def output_names(self) -> list[str]:
        """Returns "output", or "output_0", "output_1", … where there are several."""
        return _numbered("output", len(self.graph.outputs))

    def io(self) -> list[tuple[str, Tensor]]:
        """Returns the C names and tensors of all inputs and outputs."""
        names = self.input_names() + self.output_names()
        indices = self.graph.inputs + self.graph.outputs
        return [(n, self.graph.tensor(i)) for n, i in zip(names, indices, strict=True)]


@dataclass(frozen=True)
class _Instance:
    """A function that calls run through: one kernel, some parameters constant.

    Attributes:
        name: The C function's name.
        calls: (node position, call number) of the calls that share it.
        varying: The parameters that come from a table, in the kernel's order.
    """

    name: str
    first: KernelCall
    calls: tuple[tuple[int, int], ...]
    varying: tuple[str, ...]


def emit_files(program: Program, golden: Mapping[str, Array]) -> dict[str, str]:
    """Returns all files of the bundle by name.

    Args:
        program: The model.
        golden: Values by the names of ``Program.io``: inputs and the outputs they lead to.
    """
    tables = _Tables(program)
    name = program.name
    files = {
        f"{name}.h": _emit_header(program),
        f"{name}.c": _emit_code(program, tables),
        f"{name}_weights.h": tables.emit_declarations(),
        f"{name}_weights.c": tables.emit_definitions(),
        f"{name}_golden.c": _emit_golden(program, golden),
    }
    headers = {call.header for node in program.nodes for call in node.calls}
    kernels = resources.files("edgekiln.export") / "kernels"
    for header in sorted({"ek_common.h", *headers}):
        files[header] = (kernels / header).read_text(encoding="utf-8")
    return files


class _Tables:
    """The constant tables of a model; equal ones are stored once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.arrays: dict[str, Array] = {}
        self.names: dict[tuple[str, bytes], str] = {}
        for node in program.nodes:
            for number, call in enumerate(node.calls):
                suffix = f"_{number}" if len(node.calls) > 1 else ""
                for key, array in call.arrays.items():
                    self._add(f"{program.name}_n{node.op.index}{suffix}_{key}", array)

    def _add(self, name: str, array: Array) -> None:
        if self.names.setdefault(_content(array), name) == name:
            self.arrays[name] = array

    def name_of(self, array: Array) -> str:
        """Returns the C name of a table."""
        return self.names[_content(array)]

    @property
    def bytes(self) -> int:
        """Size of all tables."""
        return sum(array.nbytes for array in self.arrays.values())

    def emit_declarations(self) -> str:
        guard = f"{self.program.name.upper()}_WEIGHTS_H"
        lines = [
            _banner(self.program, "weights and other tables (private)"),
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            '#include "ek_common.h"',
            "",
            *_extern_c_begin(),
        ]
        for name, array in self.arrays.items():
            lines.append(f"extern {_declaration(name, array)} {_ALIGNED};")
        return "\n".join([*lines, "", *_extern_c_end(), "#endif", ""])

    def emit_definitions(self) -> str:
        name = self.program.name
        lines = [
            _banner(self.program, "weights and other tables"),
            f'#include "{name}_weights.h"',
            "",
        ]
        for key, array in self.arrays.items():
            lines += _emit_array(f"{_declaration(key, array)} {_ALIGNED}", array)
        return "\n".join(lines)


def constants_bytes(program: Program) -> int:
    """Returns the size of the model's weights and other tables."""
    return _Tables(program).bytes


def _content(array: Array) -> tuple[str, bytes]:
    return array.dtype.name, array.tobytes()


def _declaration(name: str, array: Array) -> str:
    return f"const {_C_TYPES[array.dtype.name]} {name}[{array.size}]"


def _emit_array(declaration: str, array: Array) -> list[str]:
    values = ", ".join(map(_c_int, array.reshape(-1).tolist()))
    return [
        f"{declaration} = {{",
        textwrap.fill(values, 98, initial_indent="    ", subsequent_indent="    "),
        "};",
        "",
    ]


def _c_int(value: int) -> str:
    return "INT32_MIN" if value == -(2**31) else str(value)


def _emit_header(program: Program) -> str:
    name, upper = program.name, program.name.upper()
    lines = [
        _banner(program, "interface"),
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stdint.h>",
        "",
        f'#define {upper}_MODEL_SHA256 "{program.sha256}"',
        f"#define {upper}_MACS {program.macs}u",
        f"#define {upper}_ARENA_BYTES {max(program.plan.arena_bytes, 1)}",
        f"#define {upper}_ARENA_ALIGNMENT 4",
        "",
    ]
    for io_name, tensor in program.io():
        lines += _emit_tensor_macros(f"{upper}_{io_name.upper()}", tensor)
    lines += _extern_c_begin()
    if program.separate_io:
        lines += _emit_separate_interface(program)
    else:
        lines += _emit_arena_interface(program)
    lines += [
        "/* An input and the output it leads to, for a self-test; linked only where used. */",
        *(
            f"extern const int8_t {name}_golden_{io_name}[{upper}_{io_name.upper()}_LEN];"
            for io_name, _ in program.io()
        ),
        "",
        *_extern_c_end(),
        "#endif",
        "",
    ]
    return "\n".join(lines)


def _emit_tensor_macros(prefix: str, tensor: Tensor) -> list[str]:
    shape = ", ".join(map(str, tensor.shape))
    return [
        f"#define {prefix}_LEN {tensor.elements}",
        f"#define {prefix}_BYTES {tensor.bytes}",
        f"#define {prefix}_RANK {len(tensor.shape)}",
        f"#define {prefix}_SHAPE {{{shape}}}",
        f"#define {prefix}_SCALE {_c_float(tensor.q.scale)}",
        f"#define {prefix}_ZERO_POINT ({tensor.q.zero_point})",
        "",
    ]


def _c_float(value: float) -> str:
    text = f"{value:.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def _emit_arena_interface(program: Program) -> list[str]:
    name, upper = program.name, program.name.upper()
    lines = ["/* Inputs and outputs lie in the arena, which needs 4-byte alignment. */"]
    for io_name, index in zip(program.input_names(), program.graph.inputs, strict=True):
        offset = program.plan.offsets[index]
        lines += [
            f"static inline int8_t *{name}_{io_name}(int8_t *arena)",
            "{",
            f"    return arena + {offset};",
            "}",
            "",
        ]
    for io_name, index in zip(program.output_names(), program.graph.outputs, strict=True):
        offset = program.plan.offsets[index]
        lines += [
            f"static inline const int8_t *{name}_{io_name}(const int8_t *arena)",
            "{",
            f"    return arena + {offset};",
            "}",
            "",
        ]
    lines += [
        "/* Runs the model once. The inputs' bytes are reused on the way: write them anew for",
        " * each run. */",
        f"void {name}_invoke(int8_t arena[{upper}_ARENA_BYTES]);",
        "",
    ]
    return lines


def _emit_separate_interface(program: Program) -> list[str]:
    return [
        "/* Runs the model once. Inputs are only read. The arena needs 4-byte alignment. */",
        f"void {program.name}_invoke({_separate_parameters(program)});",
        "",
    ]


def _separate_parameters(program: Program) -> str:
    upper = program.name.upper()
    parameters = [f"const int8_t {n}[{upper}_{n.upper()}_LEN]" for n in program.input_names()]
    parameters += [f"int8_t {n}[{upper}_{n.upper()}_LEN]" for n in program.output_names()]
    return ", ".join([*parameters, f"int8_t arena[{upper}_ARENA_BYTES]"])


def _emit_golden(program: Program, golden: Mapping[str, Array]) -> str:
    lines = [_banner(program, "golden pair"), f'#include "{program.name}.h"', ""]
    for io_name, _ in program.io():
        name = f"{program.name}_golden_{io_name}"
        lines += _emit_array(_declaration(name, golden[io_name]), golden[io_name])
    return "\n".join(lines)


def _emit_code(program: Program, tables: _Tables) -> str:
    name = program.name
    instances = _share(program)
    headers = sorted({call.header for node in program.nodes for call in node.calls})
    lines = [
        _banner(program, "code"),
        f'#include "{name}.h"',
        *(f'#include "{header}"' for header in headers),
        f'#include "{name}_weights.h"',
        "",
        "/* Called after each node with its number, its output and the output's size: a place",
        " * for counters and traces. */",
        "#ifndef EK_AFTER_NODE",
        "#define EK_AFTER_NODE(index, data, bytes) ((void)0)",
        "#endif",
        "",
    ]
    for instance in instances:
        lines += _emit_instance(program, instance, tables)
    lines += _emit_invoke(program, instances)
    return "\n".join(lines)


def _share(program: Program) -> list[_Instance]:
    """Decides which calls run through one function.

    With ``balanced`` (and ``ram``) calls share when they agree on the scalars that their
    kernel asks to have specialised; with ``flash`` whenever they use the same kernel; with
    ``time`` never.
    """
    groups: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for position, node in enumerate(program.nodes):
        for number, call in enumerate(node.calls):
            key: tuple[object, ...] = (call.kernel,)
            if program.optimize == "time":
                key += (position, number)
            elif program.optimize != "flash":
                key += tuple(call.scalars[scalar] for scalar in call.specialise)
            groups.setdefault(key, []).append((position, number))
    counts: dict[str, int] = {}
    instances = []
    for calls in groups.values():
        members = [program.nodes[position].calls[number] for position, number in calls]
        kernel = members[0].kernel
        number = counts[kernel] = counts.get(kernel, -1) + 1
        instances.append(
            _Instance(
                f"{program.name}_{kernel.removeprefix('ek_')}_{number}",
                members[0],
                tuple(calls),
                _varying(members),
            )
        )
    return instances


def _varying(calls: Sequence[KernelCall]) -> tuple[str, ...]:
    first = calls[0]
    scalars = [k for k in first.scalars if any(c.scalars[k] != first.scalars[k] for c in calls)]
    arrays = [
        k
        for k in first.arrays
        if any(_content(c.arrays[k]) != _content(first.arrays[k]) for c in calls)
    ]
    return (*scalars, *arrays)


def _emit_instance(program: Program, instance: _Instance, tables: _Tables) -> list[str]:
    call = instance.first
    nodes = sorted({program.nodes[position].op.index for position, _ in instance.calls})
    lines = [
        f"/* {call.kernel} for node{'s' if len(nodes) > 1 else ''} {', '.join(map(str, nodes))} */"
    ]
    if instance.varying:
        lines += ["typedef struct {"]
        lines += [f"    {_field_type(call, key)}{key};" for key in instance.varying]
        lines += [f"}} {instance.name}_args;", ""]
    parameters = [f"const {instance.name}_args *args"] if instance.varying else []
    parameters += [f"const int8_t *{n}" for n in _numbered("input", len(call.inputs), 1)]
    parameters.append("int8_t *output")
    lines += [
        f"static EK_NOINLINE void {instance.name}({', '.join(parameters)})",
        "{",
        f"    {call.kernel}_params p;",
    ]
    for key, value in call.scalars.items():
        source = f"args->{key}" if key in instance.varying else _c_int(value)
        lines.append(f"    p.{key} = {source};")
    for key, array in call.arrays.items():
        source = f"args->{key}" if key in instance.varying else tables.name_of(array)
        lines.append(f"    p.{key} = {source};")
    arguments = ["&p", *_numbered("input", len(call.inputs), 1), "output"]
    lines += [f"    {call.kernel}({', '.join(arguments)});", "}", ""]
    if instance.varying:
        for position, number in instance.calls:
            lines += _emit_arguments(program, instance, position, number, tables)
    return lines


def _field_type(call: KernelCall, key: str) -> str:
    if key in call.scalars:
        return "int32_t "
    return f"const {_C_TYPES[call.arrays[key].dtype.name]} *"


def _emit_arguments(
    program: Program, instance: _Instance, position: int, number: int, tables: _Tables
) -> list[str]:
    call = program.nodes[position].calls[number]
    lines = [f"static const {instance.name}_args {_arguments_name(program, position, number)} = {{"]
    for key in instance.varying:
        value = (
            _c_int(call.scalars[key]) if key in call.scalars else tables.name_of(call.arrays[key])
        )
        lines.append(f"    {value}, /* {key} */")
    return [*lines, "};", ""]


def _arguments_name(program: Program, position: int, number: int) -> str:
    node = program.nodes[position]
    suffix = f"_{number}" if len(node.calls) > 1 else ""
    return f"{program.name}_n{node.op.index}{suffix}_args"


def _emit_invoke(program: Program, instances: Iterable[_Instance]) -> list[str]:
    upper = program.name.upper()
    parameters = f"int8_t arena[{upper}_ARENA_BYTES]"
    if program.separate_io:
        parameters = _separate_parameters(program)
    lines: list[str] = []
    owner = {call: instance for instance in instances for call in instance.calls}
    for position, node in enumerate(program.nodes):
        lines.append(f"    {_describe_node(program, node)}")
        for number, call in enumerate(node.calls):
            lines.append(f"    {_emit_call(program, owner[position, number], position, number)}")
            if number == len(node.calls) - 1:
                output = program.graph.tensor(call.output)
                lines.append(
                    f"    EK_AFTER_NODE({node.op.index}, "
                    f"{_pointer(program, call.output)}, {output.bytes});"
                )
    names = ["arena", *(name for name, _ in program.io() if program.separate_io)]
    body = "\n".join(line for line in lines if not line.startswith("    /*"))
    unused = [f"    (void){n};" for n in names if not re.search(rf"\b{n}\b", body)]
    return [f"void {program.name}_invoke({parameters})", "{", *unused, *lines, "}", ""]


def _describe_node(program: Program, node: Node) -> str:
    shapes = [
        "x".join(map(str, program.graph.tensor(t).shape))
        for t in (*node.op.activation_inputs(program.graph), *node.op.outputs)
    ]
    text = f"{node.op.index} {node.op.name} {', '.join(shapes[:-1])} -> {shapes[-1]}"
    return f"/* {text}{'' if node.calls else ': the same bytes'} */"


def _emit_call(program: Program, instance: _Instance, position: int, number: int) -> str:
    call = program.nodes[position].calls[number]
    arguments = [f"&{_arguments_name(program, position, number)}"] if instance.varying else []
    arguments += [_pointer(program, tensor) for tensor in call.inputs]
    output = _pointer(program, call.output)
    if call.output_offset_bytes:
        output += f" + {call.output_offset_bytes}"
    return f"{instance.name}({', '.join([*arguments, output])});"


def _pointer(program: Program, tensor: int) -> str:
    offset = program.plan.offsets.get(tensor)
    if offset is not None:
        return f"arena + {offset}" if offset else "arena"
    root = program.root[tensor]
    for name, index in zip(
        program.input_names() + program.output_names(),
        program.graph.inputs + program.graph.outputs,
        strict=True,
    ):
        if program.root[index] == root:
            return name
    raise AssertionError(f"tensor {tensor} has no memory")


def _numbered(name: str, count: int, first: int = 0) -> list[str]:
    return [name] if count == 1 else [f"{name}_{first + i}" for i in range(count)]


def _extern_c_begin() -> list[str]:
    return ["#ifdef __cplusplus", 'extern "C" {', "#endif", ""]


def _extern_c_end() -> list[str]:
    return ["#ifdef __cplusplus", "}", "#endif", ""]


def _banner(program: Program, what: str) -> str:
    return (
        f"/* {program.name}: {what}.\n"
        f" * Generated by edgekiln {__version__} for {program.target}, optimized for "
        f"{program.optimize}; do not edit.\n"
        f" * Model: sha256 {program.sha256}\n"
        " */"
    )
