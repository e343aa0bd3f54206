"""Damages .tflite files, the same way for the same seed.

Most bytes of a model are weights, which no reader can stumble over. Positions are therefore
drawn from the file's structure, all but the inside of long constants, and more often from its
values: shapes, scales, options, numbers of tensors. A file with wrong values gets further into
the compiler than one with wrong offsets.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flatbuffers.number_types import Int32Flags, Uint16Flags

_LONG_CONSTANT_BYTES = 64
_LONG_VECTOR = 8
_MOST_CHANGES = 3
_WEIGHT = 6  # of shapes and options among the values

# fmt: off
_INTEGERS = (
    0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 127, 128, 255, 256, 1000, 4096, 32767, 32768,
    65535, 65536, 1 << 20, 1 << 24, 1 << 26, 1 << 28, 1 << 30, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
    0xFFFFFFFE, 0xFFFFFF80, 0xFFFF0000,
)
_FLOATS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 1e-20, 1e-6, 1e6, 1e20, 3.4e38,
    float("inf"), float("-inf"), float("nan"),
)
# fmt: on


@dataclass(frozen=True)
class Seed:
    """A sound file to damage.

    Attributes:
        name: For reports.
        data: The file.
        structure: Positions outside of long constants, ascending.
        values: Those of them that hold no offset and no length; the telling ones several times.
    """

    name: str
    data: bytes
    structure: Sequence[int]
    values: Sequence[int]


def make_seed(name: str, data: bytes) -> Seed:
    """Finds a file's structure."""
    import tflite

    inside = np.zeros(len(data), bool)
    base = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    model = tflite.Model.GetRootAs(data, 0)
    for i in range(model.BuffersLength()):
        if model.Buffers(i).DataLength() > _LONG_CONSTANT_BYTES:
            constant = model.Buffers(i).DataAsNumpy()
            start = constant.__array_interface__["data"][0] - base
            inside[start : start + len(constant)] = True
    values = [at for start, size in _values(model) for at in range(start, start + size)]
    return Seed(name, data, np.flatnonzero(~inside).tolist(), values)


def _values(model: Any) -> Iterator[tuple[int, int]]:
    """Yields where the model's numbers stand, and how many bytes they take."""
    for i in range(model.OperatorCodesLength()):
        yield from _scalars(model.OperatorCodes(i), (0, 2, 3), 4)
    for i in range(model.BuffersLength()):
        if 0 < model.Buffers(i).DataLength() <= _LONG_CONSTANT_BYTES:
            yield from _vector(model.Buffers(i), 0, 1)
    graph = model.Subgraphs(0)
    yield from _vector(graph, 1, 4)
    yield from _vector(graph, 2, 4)
    for i in range(graph.OperatorsLength()):
        op = graph.Operators(i)
        yield from _scalars(op, (0, 3), 4)
        yield from _vector(op, 1, 4)
        yield from _vector(op, 2, 4)
        options = op.BuiltinOptions()
        if options is not None:
            vtable = options.Pos - options.Get(Int32Flags, options.Pos)
            for _ in range(_WEIGHT):
                yield options.Pos + 4, options.Get(Uint16Flags, vtable + 2) - 4
    for i in range(graph.TensorsLength()):
        tensor = graph.Tensors(i)
        for _ in range(_WEIGHT):
            yield from _vector(tensor, 0, 4)
        yield from _scalars(tensor, (1, 5), 1)
        yield from _scalars(tensor, (2,), 4)
        quantization = tensor.Quantization()
        if quantization is not None:
            yield from _vector(quantization, 2, 4)
            yield from _vector(quantization, 3, 8)
            yield from _scalars(quantization, (6,), 4)


def _scalars(table: Any, fields: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    for field in fields:
        offset = table._tab.Offset(4 + 2 * field)
        if offset:
            yield table._tab.Pos + offset, size


def _vector(table: Any, field: int, size: int) -> Iterator[tuple[int, int]]:
    offset = table._tab.Offset(4 + 2 * field)
    if offset:
        start, length = table._tab.Vector(offset), table._tab.VectorLen(offset)
        yield start, min(length, _LONG_VECTOR) * size


def mutate(seed: Seed, others: Sequence[Seed], generator: random.Random) -> bytes:
    """Returns a damaged copy of a file.

    Args:
        seed: The file.
        others: Files that pieces may be taken from.
        generator: What all choices are drawn from.
    """
    data = bytearray(seed.data)
    values_alone = generator.random() < 0.7
    where = seed.values if values_alone else seed.structure
    for _ in range(generator.randint(1, _MOST_CHANGES)):
        generator.choice(_VALUE_CHANGES if values_alone else _CHANGES)(data, where, generator)
    if generator.random() < 0.03:
        _splice(data, generator.choice(others), generator)
    return bytes(data)


def _position(data: bytearray, where: Sequence[int], generator: random.Random, size: int) -> int:
    """Draws an aligned position with room for ``size`` bytes."""
    at = generator.choice(where) // size * size
    return max(0, min(at, len(data) - size))


def _write(data: bytearray, at: int, raw: bytes) -> None:
    data[at : at + len(raw)] = raw


def _flip_bit(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    if data:
        data[_position(data, where, generator, 1)] ^= 1 << generator.randrange(8)


def _set_byte(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    _write(data, _position(data, where, generator, 1), bytes([generator.randrange(256)]))


def _set_integer(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    value = generator.choice(_INTEGERS)
    _write(data, _position(data, where, generator, 4), struct.pack("<I", value))


def _set_short(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    value = generator.choice(_INTEGERS) & 0xFFFF
    _write(data, _position(data, where, generator, 2), struct.pack("<H", value))


def _set_float(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    value = generator.choice(_FLOATS)
    _write(data, _position(data, where, generator, 4), struct.pack("<f", value))


def _add(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    at = _position(data, where, generator, 4)
    if len(data) >= 4:
        old = struct.unpack_from("<I", data, at)[0]
        new = (old + generator.choice((-4, -2, -1, 1, 2, 4, 8, 64))) & 0xFFFFFFFF
        _write(data, at, struct.pack("<I", new))


def _replace_everywhere(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    """Writes one integer wherever another one stands, so that shapes go on to agree."""
    if len(data) < 4:
        return
    old = bytes(data[(at := _position(data, where, generator, 4)) : at + 4])
    new = struct.pack("<I", generator.choice(_INTEGERS))
    for at in sorted(set(where)):
        if at % 4 == 0 and data[at : at + 4] == old:
            _write(data, at, new)


def _truncate(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    if generator.random() < 0.2:
        del data[generator.randrange(len(data) + 1) :]


def _copy_block(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    size = generator.choice((4, 8, 16, 32, 64))
    source, target = (_position(data, where, generator, 4) for _ in range(2))
    _write(data, target, bytes(data[source : source + size]))


def _insert_block(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    at, size = _position(data, where, generator, 4), generator.choice((1, 2, 4, 16, 64))
    data[at:at] = data[at : at + size]


def _remove_block(data: bytearray, where: Sequence[int], generator: random.Random) -> None:
    at = _position(data, where, generator, 4)
    del data[at : at + generator.choice((1, 2, 4, 16, 64))]


def _splice(data: bytearray, other: Seed, generator: random.Random) -> None:
    """Replaces a stretch by what stands in another file."""
    if len(data) < 8:
        return
    size = generator.randrange(4, 1024)
    at = generator.randrange(len(data)) // 4 * 4
    source = generator.choice(other.structure) // 4 * 4
    _write(data, at, other.data[source : source + size])


_Change = Callable[[bytearray, Sequence[int], random.Random], None]

_VALUE_CHANGES: tuple[_Change, ...] = (
    *(_flip_bit, _set_byte, _set_short, _set_float, _set_float, _copy_block),
    *(_set_integer, _set_integer, _add, _add, _replace_everywhere, _replace_everywhere),
)
_CHANGES: tuple[_Change, ...] = (*_VALUE_CHANGES, _truncate, _insert_block, _remove_block)
