"""The table of operators, from the same classes that the compiler uses."""

from __future__ import annotations

from typing import Any

from edgekiln.export.ops.registry import OPS
from edgekiln.export.targets import TARGETS


def supported_ops() -> list[dict[str, Any]]:
    """Returns for each operator its name, what of it is supported, and its kernels by target."""
    return [
        {
            "op": op.name,
            "variants": op.variants,
            "kernels": {
                target.name: [k.name for k in op.kernels if k.features <= target.features]
                for target in TARGETS.values()
            },
        }
        for _, op in sorted(OPS.items())
    ]
