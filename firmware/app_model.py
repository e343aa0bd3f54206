"""ek_app_model.h: what the application's main.c has to know of one model and one board.

`results` prints real values without floating point: a code becomes a decimal number by one
multiplication and one shift, whose constants are worked out here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekiln.errors import BadInputError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.bundle import Bundle, TensorInfo

HEADER_NAME = "ek_app_model.h"

# MLPerf Tiny prints three decimals. More are used where a step of the code is finer than that.
MIN_DECIMALS = 3
MAX_DECIMALS = 9

# 255 steps times the multiplier, plus the rounding term, stay below 2^32.
_MULTIPLIER_BITS = 23


@dataclass(frozen=True)
class DecimalScale:
    """How a step of an output's code is printed.

    ``value = round(steps * multiplier / 2**shift) / 10**decimals``, for steps in [0, 255].
    """

    multiplier: int
    shift: int
    decimals: int


def decimal_scale(scale: float) -> DecimalScale:
    """Returns constants that print multiples of ``scale`` with 23 bits of precision.

    Raises:
        BadInputError: The scale is not a number or too large to be printed.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise BadInputError("an output's scale has to be positive", got=scale)
    decimals = min(MAX_DECIMALS, max(MIN_DECIMALS, math.ceil(-math.log10(scale))))
    while decimals > 0 and scale * 10**decimals >= 2**_MULTIPLIER_BITS - 1:
        decimals -= 1
    step = scale * 10**decimals
    if step >= 2**_MULTIPLIER_BITS - 1:
        raise BadInputError("an output's scale is too large to be printed", got=scale)
    _, exponent = math.frexp(step)  # step < 2**exponent
    shift = max(0, min(31, _MULTIPLIER_BITS - exponent))
    multiplier = round(step * 2**shift)
    if multiplier == 2**_MULTIPLIER_BITS:  # rounded up to the next power of two
        multiplier, shift = multiplier // 2, shift - 1
    return DecimalScale(multiplier, shift, decimals)


def emit_app_model(bundle: Bundle, board: Board, *, selftest: bool) -> str:
    """Returns the text of ek_app_model.h."""
    upper = bundle.name.upper()
    inputs = ", ".join(f"{{{t.offset}u, {t.bytes}u}}" for t in bundle.inputs)
    outputs = ", ".join(_emit_output(t) for t in bundle.outputs)
    digest = ", ".join(f"0x{byte:02x}" for byte in bytes.fromhex(bundle.model_sha256))
    lines = [
        "/* Made by edgekiln for the application's main.c; do not edit. */",
        "#ifndef EK_APP_MODEL_H",
        "#define EK_APP_MODEL_H",
        "",
        '#include "ek_board.h"',
        f'#include "{bundle.name}.h"',
        "",
        f'#define EK_MODEL_NAME "{bundle.name}"',
        f"#define EK_MODEL_SHA256 {{{digest}}}",
        f"#define EK_MODEL_ARENA_BYTES {bundle.arena_bytes}u",
        f"#define EK_MODEL_INPUT_BYTES {sum(t.bytes for t in bundle.inputs)}u",
        f"#define EK_MODEL_OUTPUT_BYTES {sum(t.bytes for t in bundle.outputs)}u",
        "/* offset in the arena, bytes */",
        f"#define EK_MODEL_INPUTS {{{inputs}}}",
        "/* the same, zero point, and how a step is printed: multiplier, shift, decimals */",
        f"#define EK_MODEL_OUTPUTS {{{outputs}}}",
        f"#define EK_MODEL_INVOKE(arena) {bundle.name}_invoke(arena)",
        f"#define EK_APP_SELFTEST {int(selftest)}",
        f"#define EK_MODEL_GOLDEN_INPUTS {{{_emit_golden(bundle, 'input', bundle.inputs)}}}",
        f"#define EK_MODEL_GOLDEN_OUTPUTS {{{_emit_golden(bundle, 'output', bundle.outputs)}}}",
        "",
        "/* The header and this file were made from the same model. */",
        f"typedef char ek_check_arena[{upper}_ARENA_BYTES == {bundle.arena_bytes} ? 1 : -1];",
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)


def emit_board(board: Board) -> str:
    """Returns the text of ek_board.h: the board's numbers for its port."""
    lines = [f"/* Made by edgekiln from {board.slug}.toml; do not edit. */"]
    lines += ["#ifndef EK_BOARD_H", "#define EK_BOARD_H", ""]
    lines += [f"#define {name} {value}" for name, value in board.c_macros().items()]
    lines += ["", "#endif", ""]
    return "\n".join(lines)


def _emit_output(tensor: TensorInfo) -> str:
    how = decimal_scale(tensor.scale)
    return (
        f"{{{{{tensor.offset}u, {tensor.bytes}u}}, {tensor.zero_point}, "
        f"{how.multiplier}, {how.shift}u, {how.decimals}u}}"
    )


def _emit_golden(bundle: Bundle, kind: str, tensors: tuple[TensorInfo, ...]) -> str:
    if len(tensors) == 1:
        return f"{bundle.name}_golden_{kind}"
    return ", ".join(f"{bundle.name}_golden_{kind}_{i}" for i in range(len(tensors)))
