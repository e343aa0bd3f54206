from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from flash_boards import make_board, settings_of

from edgekiln.firmware.flash.registry import find_runner
from edgekiln.firmware.flash.runner import Job, Runner
from edgekiln.firmware.image import Image


@pytest.fixture(autouse=True)
def programs_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyOCD lies beside Python, which need not be on the PATH."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{Path(sys.executable).parent}")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """An image's files, whose directory has a name that a shell would take apart."""
    directory = tmp_path / "it's $(touch pwned); {a}" / "image"
    directory.mkdir(parents=True)
    data = bytes(range(256)) * 8
    for suffix in ("elf", "bin", "hex", "uf2"):
        (directory / f"image.{suffix}").write_bytes(data)
    return Image(
        name="digits",
        board="demo",
        model_sha256="ab" * 32,
        elf=directory / "image.elf",
        bin=directory / "image.bin",
        hex=directory / "image.hex",
        uf2=directory / "image.uf2",
        inputs=(),
        outputs=(),
        nodes=(),
        macs=0,
        flash_bytes=len(data),
        flash_constants_bytes=0,
        flash_app_bytes=0,
        data_bytes=0,
        bss_bytes=0,
        arena_bytes=0,
        state_bytes=0,
        stack_reserve_bytes=0,
        toolchain="",
        flags="",
    )


Plan = Callable[..., tuple[Runner, Job]]


@pytest.fixture
def plan(image: Image, tmp_path: Path) -> Plan:
    """Returns a runner with its settings, and the job of writing the image with it."""

    def make(
        name: str,
        *,
        port: str | None = None,
        to: str | None = None,
        probe: str = "",
        **changes: str | int,
    ) -> tuple[Runner, Job]:
        board = make_board((name, settings_of(name, **changes)))
        job = Job(board, image, tmp_path / "flash" / "flash.log", port, to, probe)
        return find_runner(board, name), job

    return make


@pytest.fixture
def need() -> Callable[[str], str]:
    """Returns the path of a program; without it the test is skipped, in CI it fails."""

    def find(program: str) -> str:
        path = shutil.which(program)
        if path is None:
            in_ci = os.environ.get("CI", "").lower() in ("1", "true")
            (pytest.fail if in_ci else pytest.skip)(f"not installed: {program}")
        return path

    return find
