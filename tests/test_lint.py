"""The linters, so that `make test` is all there is to run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "ruff check --quiet .",
        "ruff format --quiet --check --diff .",
        "mypy --no-error-summary",
        "lint-imports --no-cache",
    ],
)
def test_linter_is_content(root: Path, command: str) -> None:
    program, *arguments = command.split()
    result = subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stdout + result.stderr
