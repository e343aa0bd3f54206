"""The table of operators: one source for the compiler, the command and the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.export.ops.registry import OPS
from edgekiln.export.supported import supported_ops, supported_ops_markdown
from edgekiln.export.targets import TARGETS

RESOLVED_WHILE_READING = ("CALL_ONCE", "VAR_HANDLE")


def test_the_page_is_current(root: Path) -> None:
    page = (root / "docs" / "supported-ops.md").read_text(encoding="utf-8")
    assert page == supported_ops_markdown(), (
        "make it anew: edgekiln supported-ops --markdown >docs/supported-ops.md"
    )


def test_the_table_holds_every_operator_once() -> None:
    assert [each["op"] for each in supported_ops()] == sorted(OPS)
    for name in OPS:
        assert supported_ops_markdown().count(f"| {name} |") == 1


@pytest.mark.parametrize("each", supported_ops(), ids=lambda each: each["op"])
def test_each_operator_says_what_it_supports(each: dict[str, object]) -> None:
    assert each["variants"]
    kernels = each["kernels"]
    assert isinstance(kernels, dict) and set(kernels) == set(TARGETS)
    for names in kernels.values():
        assert set(kernels["generic"]) <= set(names)
    free = OPS[str(each["op"])].aliases_input or each["op"] in RESOLVED_WHILE_READING
    assert bool(kernels["generic"]) != free
