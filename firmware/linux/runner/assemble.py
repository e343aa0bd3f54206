"""Puts a model's release together: the program, the runner, and what they have to know."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import edgekiln
from edgekiln.files import write_bytes, write_json
from edgekiln.firmware.linux.releases import Release, make_release
from edgekiln.firmware.linux.runner.program import PROGRAM_NAME, Program

RUNNER = Path(__file__).parent
RUNNER_NAME = "edgekiln-run"
CLIENT_NAME = "example_client.py"


def assemble_release(
    program: Program,
    directory: Path,
    *,
    class_names: Sequence[str] = (),
    tflite: bytes | None = None,
    has_python: bool = True,
) -> Release:
    """Writes all files of a model's release.

    Args:
        program: The model as a program for the board.
        directory: Where the files go; empty or not there.
        class_names: Names of the classes, in order; none where there are none.
        tflite: The model file, for ``edgekiln-run --runtime litert``.
        has_python: Whether the board has Python; without it the C program alone is tested there.

    Returns:
        The release, ready for `edgekiln.firmware.linux.releases.deploy_release`.

    Raises:
        BadInputError: A file cannot be written.
    """
    bundle = program.bundle
    _install(program.path, directory / PROGRAM_NAME)
    _install(RUNNER / "edgekiln_run.py", directory / RUNNER_NAME)
    _install(RUNNER / "example_client.py", directory / CLIENT_NAME)
    write_json(
        directory / "model.json",
        {
            "name": bundle.name,
            "model_sha256": bundle.model_sha256,
            "edgekiln": edgekiln.__version__,
            "architecture": program.architecture,
            "inputs": [asdict(tensor) for tensor in bundle.inputs],
            "outputs": [asdict(tensor) for tensor in bundle.outputs],
            "class_names": list(class_names),
        },
    )
    if tflite is not None:
        write_bytes(directory / "model.tflite", tflite)
    return make_release(
        directory,
        bundle.name,
        architecture=program.architecture,
        selftest=selftest_command(has_python),
    )


def selftest_command(has_python: bool) -> tuple[str, ...]:
    """Returns the command that proves on a board that a release works there."""
    return (f"./{RUNNER_NAME if has_python else PROGRAM_NAME}", "--selftest")


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)
