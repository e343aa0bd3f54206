from __future__ import annotations

import functools
import os
from collections.abc import Callable

import pytest

from edgekiln.errors import ToolMissingError
from edgekiln.firmware.virtual_pi import VirtualPi, start_virtual_pi


@pytest.fixture(autouse=True)
def cache() -> None:
    """A root file system takes a minute to make: these tests share one with the user."""


@pytest.fixture(scope="session")
def start() -> Callable[..., VirtualPi]:
    """`start_virtual_pi`, which skips the test, or fails it in CI, where it cannot work."""

    @functools.wraps(start_virtual_pi)
    def start_or_skip(*arguments: object, **options: object) -> VirtualPi:
        try:
            return start_virtual_pi(*arguments, **options)  # type: ignore[arg-type]
        except ToolMissingError as error:
            in_ci = os.environ.get("CI", "").lower() in ("1", "true")
            (pytest.fail if in_ci else pytest.skip)(str(error))

    return start_or_skip
