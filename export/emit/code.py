"""The functions of a model: shared kernels, their arguments, and the calls node by node."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgekiln.export.emit.literals import c_scalar
from edgekiln.export.emit.program import Program, arena_at, numbered, pointer
from edgekiln.export.emit.tables import FLASH, Tables, content_of, uniform_byte
from edgekiln.export.ir import c_type_of
from edgekiln.export.lower import Node
from edgekiln.export.ops.base import KernelCall


@dataclass(frozen=True)
class _Instance:
    """A function that calls run through: one kernel, some parameters constant.

    Attributes:
        name: The C function's name.
        call: One of the calls, for what they all share.
        calls: (node position, call number) of the calls that share it.
        varying: The parameters that come from a table, in the kernel's order.
    """

    name: str
    call: KernelCall
    calls: tuple[tuple[int, int], ...]
    varying: tuple[str, ...]


def emit_code(program: Program, tables: Tables) -> str:
    """Returns the source that computes the model."""
    instances = _share(program)
    lines = [
        program.banner("code"),
        f'#include "{program.name}.h"',
        *(f'#include "{header}"' for header in program.headers()),
        f'#include "{program.name}_weights.h"',
        "",
        "/* Called after each node with its number, its output and the output's size: a place",
        " * for counters and traces. EK_AFTER_OUTPUT is called for further outputs. */",
        "#ifndef EK_AFTER_NODE",
        "#define EK_AFTER_NODE(index, data, bytes) ((void)0)",
        "#endif",
        "#ifndef EK_AFTER_OUTPUT",
        "#define EK_AFTER_OUTPUT(index, output, data, bytes) ((void)0)",
        "#endif",
        "",
    ]
    for instance in instances:
        lines += _function(program, instance, tables)
    return "\n".join([*lines, *_reset(program, tables), *_invoke(program, instances, tables)])


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
        counts[kernel] = counts.get(kernel, -1) + 1
        name = f"{program.name}_{kernel.removeprefix('ek_')}_{counts[kernel]}"
        instances.append(_Instance(name, members[0], tuple(calls), _varying(members)))
    return instances


def _varying(calls: Sequence[KernelCall]) -> tuple[str, ...]:
    first = calls[0]
    scalars = [k for k in first.scalars if any(c.scalars[k] != first.scalars[k] for c in calls)]
    arrays = [
        k
        for k in first.arrays
        if any(content_of(c.arrays[k]) != content_of(first.arrays[k]) for c in calls)
    ]
    return (*scalars, *arrays)


def _parameters(program: Program, call: KernelCall) -> list[tuple[str, str, bool]]:
    """Returns name, C type and constness of the pointers that a kernel takes."""

    def kind(tensor: int) -> str:
        return "int8_t" if call.bytewise else program.graph.tensor(tensor).dtype.c_type

    found = [
        (name, kind(tensor), True)
        for name, tensor in zip(numbered("input", len(call.inputs), 1), call.inputs, strict=True)
    ]
    if call.output is not None:
        found.append(("output", kind(call.output), False))
    names = numbered("state", len(call.states), 1)
    found += [(n, kind(t), False) for n, t in zip(names, call.states, strict=True)]
    names = numbered("scratch", len(call.scratch), 1)
    found += [(n, s.dtype.c_type, False) for n, s in zip(names, call.scratch, strict=True)]
    return found


def _function(program: Program, instance: _Instance, tables: Tables) -> list[str]:
    call = instance.call
    nodes = sorted({program.nodes[position].op.index for position, _ in instance.calls})
    plural = "s" if len(nodes) > 1 else ""
    lines = [f"/* {call.kernel} for node{plural} {', '.join(map(str, nodes))} */"]
    if instance.varying:
        lines += ["typedef struct {"]
        lines += [f"    {_field_type(call, key)}{key};" for key in instance.varying]
        lines += [f"}} {instance.name}_args;", ""]
    parameters = [f"const {FLASH} {instance.name}_args *args"] if instance.varying else []
    pointers = _parameters(program, call)
    parameters += [f"{'const ' if const else ''}{kind} *{n}" for n, kind, const in pointers]
    lines += [f"static EK_NOINLINE void {instance.name}(", f"    {', '.join(parameters)})", "{"]
    lines.append(f"    {call.kernel}_params p;")
    for key, value in call.scalars.items():
        source = f"args->{key}" if key in instance.varying else c_scalar(value)
        lines.append(f"    p.{key} = {source};")
    for key, array in call.arrays.items():
        source = f"args->{key}" if key in instance.varying else tables.name_of(array)
        lines.append(f"    p.{key} = {source};")
    lines += [f"    {call.kernel}({', '.join(['&p', *(n for n, _, _ in pointers)])});", "}", ""]
    if instance.varying:
        for position, number in instance.calls:
            lines += _arguments(program, instance, position, number, tables)
    return lines


def _field_type(call: KernelCall, key: str) -> str:
    if key in call.scalars:
        return "float " if isinstance(call.scalars[key], float) else "int32_t "
    return f"const {FLASH} {c_type_of(call.arrays[key])} *"


def _arguments(
    program: Program, instance: _Instance, position: int, number: int, tables: Tables
) -> list[str]:
    call = program.nodes[position].calls[number]
    name = _arguments_name(program, position, number)
    lines = [f"static const {FLASH} {instance.name}_args {name} = {{"]
    for key in instance.varying:
        value = (
            c_scalar(call.scalars[key]) if key in call.scalars else tables.name_of(call.arrays[key])
        )
        lines.append(f"    {value}, /* {key} */")
    return [*lines, "};", ""]


def _arguments_name(program: Program, position: int, number: int) -> str:
    node = program.nodes[position]
    suffix = f"_{number}" if len(node.calls) > 1 else ""
    return f"{program.name}_n{node.op.index}{suffix}_args"


def _reset(program: Program, tables: Tables) -> list[str]:
    if not program.states():
        return []
    size = f"sizeof({program.name}_state) == {program.upper}_STATE_BYTES"
    lines = [
        "/* Refused by the compiler when the state is not as large as the header says. */",
        f"typedef char {program.name}_state_size_check[{size} ? 1 : -1];",
        "",
        f"void {program.name}_reset({program.name}_state *state)",
        "{",
    ]
    for name, tensor in program.states():
        value = program.graph.initial[tensor.index]
        byte = uniform_byte(value)
        if byte is None:
            source = tables.name_of(value)
            lines.append(f"    ek_copy_table(state->{name}, {source}, sizeof(state->{name}));")
        else:
            lines.append(f"    memset(state->{name}, {byte}, sizeof(state->{name}));")
    if program.state_padding_bytes:
        lines.append("    memset(state->padding, 0, sizeof(state->padding));")
    return [*lines, "}", ""]


def _invoke(program: Program, instances: Iterable[_Instance], tables: Tables) -> list[str]:
    owner = {call: instance for instance in instances for call in instance.calls}
    lines: list[str] = []
    for position, node in enumerate(program.nodes):
        lines.append(f"    {_describe_node(program, node)}")
        for number in range(len(node.calls)):
            call = _call(program, owner[position, number], position, number, tables)
            lines.append(f"    {call}")
        if node.calls:
            lines += _hooks(program, node)
    names = [
        *(name for name, _ in program.io() if program.separate_io),
        "arena",
        *(["state"] if program.states() else []),
    ]
    body = "\n".join(line for line in lines if not line.startswith("    /*"))
    unused = [f"    (void){n};" for n in names if not re.search(rf"\b{n}\b", body)]
    parameters = program.invoke_parameters()
    return [f"void {program.name}_invoke({parameters})", "{", *unused, *lines, "}", ""]


def _describe_node(program: Program, node: Node) -> str:
    def shape(tensor: int) -> str:
        return "x".join(map(str, program.graph.tensor(tensor).shape)) or "scalar"

    inputs = ", ".join(shape(t) for t in node.op.activation_inputs(program.graph))
    outputs = ", ".join(shape(t) for t in node.op.outputs)
    text = f"{node.op.index} {node.op.name} {inputs} -> {outputs}"
    return f"/* {text}{'' if node.calls else ': the same bytes'} */"


def _call(program: Program, instance: _Instance, position: int, number: int, tables: Tables) -> str:
    call = program.nodes[position].calls[number]
    places = [_place(program, tensor, tables) for tensor in call.inputs]
    offsets = [*(call.input_offsets or (0,) * len(call.inputs))]
    if call.output is not None:
        places.append(program.place(call.output))
        offsets.append(call.output_offset)
    places += [program.place(tensor) for tensor in call.states]
    first = sum(len(c.scratch) for c in program.nodes[position].calls[:number])
    places += [
        (arena_at(program.plan.scratch[position, first + i]), "int8_t")
        for i in range(len(call.scratch))
    ]
    offsets += [0] * (len(places) - len(offsets))
    arguments = [f"&{_arguments_name(program, position, number)}"] if instance.varying else []
    for (place, found), offset, (_, kind, const) in zip(
        places, offsets, _parameters(program, call), strict=True
    ):
        moved = f" + {offset}" if offset else ""
        arguments.append(pointer(place, found, kind, const) + moved)
    return f"{instance.name}({', '.join(arguments)});"


def _place(program: Program, tensor: int, tables: Tables) -> tuple[str, str]:
    described = program.graph.tensor(tensor)
    if described.is_constant:
        return tables.name_of(described.value, ""), c_type_of(described.value)
    return program.place(tensor)


def _hooks(program: Program, node: Node) -> list[str]:
    """Returns the macros that tell what a node has written."""
    written = node.op.outputs or node.op.states(program.graph)
    lines = []
    for number, tensor in enumerate(written):
        place, found = program.place(tensor)
        data = pointer(place, found, "int8_t", const=True)
        size = program.graph.tensor(tensor).bytes
        if number == 0:
            lines.append(f"    EK_AFTER_NODE({node.op.index}, {data}, {size});")
        else:
            lines.append(f"    EK_AFTER_OUTPUT({node.op.index}, {number}, {data}, {size});")
    return lines
