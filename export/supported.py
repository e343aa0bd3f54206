"""The table of operators, from the same classes that the compiler uses."""

from __future__ import annotations

from typing import Any

from edgekiln.export.ops.base import Op
from edgekiln.export.ops.registry import OPS
from edgekiln.export.targets import TARGETS

_HEAD = """\
# Supported operators

Written by `edgekiln supported-ops --markdown`, from the classes that the compiler itself uses; do
not edit. `edgekiln supported-ops --json` gives the same to programs. A model with anything else is
refused before any code is written, and the message names the node.

Every integer result equals the oracle's on every byte; where a node computes in float32, the last
column says how far its values may lie from the oracle's. The oracle is {oracle}, built
with its reference kernels; where it lacks an operator, the table names another.

Batches, shapes and constants are as in the model file; shapes have to be known when the model is
compiled. A kernel of a target is chosen for a node when it can run it at a lower estimated cost
than the generic one. Operators without a kernel cost nothing: the output is the input's memory.
"""


def supported_ops() -> list[dict[str, Any]]:
    """Returns what is known of each operator.

    Returns:
        Its name, what of it is supported, its kernels by target, the oracle that defines its
        bytes, and the tolerance of float32 outputs (None where all bytes are equal).
    """
    return [
        {
            "op": op.name,
            "variants": op.variants,
            "kernels": {
                target.name: [k.name for k in op.kernels if k.features <= target.features]
                for target in TARGETS.values()
            },
            "oracle": op.oracle,
            "float32_tolerance": _tolerance(op),
        }
        for _, op in sorted(OPS.items())
    ]


def _tolerance(op: type[Op]) -> dict[str, float] | None:
    found = op.tolerance
    if "float32" not in op.variants or op.aliases_input or not (found.relative or found.absolute):
        return None
    return {"relative": found.relative, "absolute": found.absolute}


def supported_ops_markdown() -> str:
    """Returns the table as the page docs/supported-ops.md."""
    lines = [
        _HEAD.format(oracle=Op.oracle),
        "## Targets",
        "",
        "| target | what it is |",
        "|---|---|",
        *(f"| `{target.name}` | {target.description} |" for target in TARGETS.values()),
        "",
        "## Operators",
        "",
        "| operator | what of it | kernels everywhere | more kernels | oracle | float32 |",
        "|---|---|---|---|---|---|",
        *(_markdown_row(each) for each in supported_ops()),
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(each: dict[str, Any]) -> str:
    generic = each["kernels"]["generic"]
    more: dict[str, list[str]] = {}  # what is added, to the targets that add just this
    for target, kernels in each["kernels"].items():
        added = ", ".join(f"`{name}`" for name in kernels if name not in generic)
        if added:
            more.setdefault(added, []).append(target)
    tolerance = each["float32_tolerance"]
    cells = (
        each["op"],
        each["variants"],
        ", ".join(f"`{name}`" for name in generic),
        "; ".join(f"{', '.join(targets)}: {added}" for added, targets in more.items()),
        "" if each["oracle"] == Op.oracle else each["oracle"],
        f"{tolerance['relative']:g} of it + {tolerance['absolute']:g}" if tolerance else "",
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
