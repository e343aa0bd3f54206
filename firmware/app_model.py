"""ek_app_model.h: what the application's main.c has to know of one model and one board.

`results` prints real values without floating point: a code becomes a decimal number by one
multiplication and one shift, whose constants are worked out here. Code for what a model lacks
(other types than int8, a state) is left out of its image by macros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgekiln.errors import BadInputError
from edgekiln.firmware.boards import Board
from edgekiln.firmware.bundle import DTYPES, Bundle, TensorInfo

HEADER_NAME = "ek_app_model.h"

# MLPerf Tiny's benchmarks whose runner sends what is not yet the model's input: the reference
# firmware (mlcommons/tiny, benchmark/reference_submissions) makes codes of it on the board.
PIXEL_MODELS = ("ic01", "vww01")
RECONSTRUCTING_MODELS = ("ad01",)

# MLPerf Tiny prints three decimals. More are used where a step of the code is finer than that.
MIN_DECIMALS = 3
MAX_DECIMALS = 9

# 255 steps times the multiplier, plus the rounding term, stay below 2^32.
_MULTIPLIER_BITS = 23

# The most steps between a code and the zero point.
_STEPS = {"int8": 255, "uint8": 255, "int16": 65535}

_SIGNED = ("int8", "int16", "int32", "int64")


@dataclass(frozen=True)
class DecimalScale:
    """How a step of an output's code is printed.

    ``value = round(steps * multiplier / 2**shift) / 10**decimals``, below 2**32 / 10**decimals.
    """

    multiplier: int
    shift: int
    decimals: int


def decimal_scale(scale: float, max_steps: int = 255) -> DecimalScale:
    """Returns constants that print multiples of ``scale`` with 23 bits of precision.

    Args:
        scale: Real value of one step.
        max_steps: The largest multiple.

    Raises:
        BadInputError: The scale is not a number or too large to be printed.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise BadInputError("an output's scale has to be positive", got=scale)
    limit = min(2**_MULTIPLIER_BITS, 2**32 // (max_steps + 1)) - 1
    decimals = min(MAX_DECIMALS, max(MIN_DECIMALS, math.ceil(-math.log10(scale))))
    while decimals > 0 and scale * 10**decimals >= limit:
        decimals -= 1
    step = scale * 10**decimals
    if step >= limit:
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
    outputs = ", ".join(_emit_output(t, _is_plain(bundle)) for t in bundle.outputs)
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
        f"/* the same, {_WHAT_OUTPUTS_SAY[_is_plain(bundle)]} */",
        f"#define EK_MODEL_OUTPUTS {{{outputs}}}",
        *_emit_printing(bundle),
        *_emit_calls(bundle),
        *_emit_mlperf(bundle),
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


def _prints_as(tensor: TensorInfo) -> str:
    """Returns what an output's values are to people: "reals", "codes" or "integers"."""
    if tensor.dtype == "float32":
        return "reals"
    return "codes" if tensor.scale is not None and tensor.dtype in _STEPS else "integers"


def _is_plain(bundle: Bundle) -> bool:
    """Whether all outputs are int8 codes, for which main.c has shorter code."""
    return all(t.dtype == "int8" and _prints_as(t) == "codes" for t in bundle.outputs)


_WHAT_OUTPUTS_SAY = {
    True: "zero point, and how a step is printed: multiplier, shift, decimals",
    False: "zero point, how a step is printed, element's bytes, signed, kind",
}


def _emit_output(tensor: TensorInfo, plain: bool) -> str:
    kind = _prints_as(tensor)
    how = DecimalScale(0, 0, 0)
    if kind == "codes" and tensor.scale is not None:
        how = decimal_scale(tensor.scale, _STEPS[tensor.dtype])
    zero_point = tensor.zero_point if kind == "codes" else 0
    fields = [
        f"{{{tensor.offset}u, {tensor.bytes}u}}",
        f"{zero_point}, {how.multiplier}, {how.shift}u, {how.decimals}u",
    ]
    if not plain:
        fields.append(f"{DTYPES[tensor.dtype]}u, {int(tensor.dtype in _SIGNED)}u")
        fields.append(f"EK_PRINT_{kind.upper()}")
    return f"{{{', '.join(fields)}}}"


def _emit_printing(bundle: Bundle) -> list[str]:
    """Says which kinds of values `results` has to print: what is 0 takes no flash."""
    lines = [f"#define EK_OUTPUTS_INT8 {int(_is_plain(bundle))}"]
    if not _is_plain(bundle):
        kinds = {_prints_as(tensor) for tensor in bundle.outputs}
        lines += [
            f"#define EK_HAS_{kind.upper()} {int(kind in kinds)}"
            for kind in ("codes", "integers", "reals")
        ]
    return lines


def _emit_calls(bundle: Bundle) -> list[str]:
    """Says how the model is called, and whether it remembers."""
    name = bundle.name
    if not bundle.state_bytes:
        return [
            "#define EK_MODEL_STATE_BYTES 0",
            f"#define EK_MODEL_INVOKE(arena) {name}_invoke(arena)",
        ]
    return [
        f"#define EK_MODEL_STATE_BYTES {bundle.state_bytes}",
        f"#define EK_MODEL_STATE {name}_state",
        f"#define EK_MODEL_RESET(state) {name}_reset(state)",
        f"#define EK_MODEL_INVOKE(arena, state) {name}_invoke(arena, state)",
    ]


def _emit_mlperf(bundle: Bundle) -> list[str]:
    """Says what `db` takes besides the model's codes: real numbers, or pixels in their place."""
    takes_pixels = bundle.name in PIXEL_MODELS and _is_int8(bundle.inputs)
    takes_reals = (
        bundle.name in RECONSTRUCTING_MODELS
        and _is_int8(bundle.inputs)
        and _is_int8(bundle.outputs)
        and bundle.inputs[0].bytes == bundle.outputs[0].bytes
    )
    lines = [
        f"#define EK_APP_DB_XOR {'0x80u' if takes_pixels else '0u'}",
        f"#define EK_APP_RECONSTRUCTS {int(takes_reals)}",
        f"#define EK_APP_ELEMENT_BYTES {4 if takes_reals else 1}u",
    ]
    if takes_reals:
        x, y = bundle.inputs[0], bundle.outputs[0]
        assert x.scale is not None and y.scale is not None
        # From and to Q20.
        for name, tensor, ratio in (
            ("INPUT", x, 1 / (x.scale * 2**20)),
            ("OUTPUT", y, y.scale * 2**20),
        ):
            multiplier, shift = _binary_scale(ratio)
            lines += [
                f"#define EK_{name}_ZERO_POINT ({tensor.zero_point})",
                f"#define EK_{name}_MULTIPLIER {multiplier}u",
                f"#define EK_{name}_SHIFT {shift}u",
            ]
    return lines


def _is_int8(tensors: tuple[TensorInfo, ...]) -> bool:
    return [t.dtype for t in tensors] == ["int8"] and tensors[0].scale is not None


def _binary_scale(ratio: float) -> tuple[int, int]:
    """Returns a multiplier below 2^31 and a shift: their quotient is ``ratio`` to 30 bits."""
    _, exponent = math.frexp(ratio)  # ratio < 2**exponent
    shift = 31 - exponent
    multiplier = min(round(ratio * 2**shift), 2**31 - 1)
    if not 1 <= shift <= 62:
        raise BadInputError("a scale is too far from 1 for real numbers", got=ratio)
    return multiplier, shift


def _emit_golden(bundle: Bundle, kind: str, tensors: tuple[TensorInfo, ...]) -> str:
    if len(tensors) == 1:
        return f"{bundle.name}_golden_{kind}"
    return ", ".join(f"{bundle.name}_golden_{kind}_{i}" for i in range(len(tensors)))
