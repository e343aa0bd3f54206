"""What runs behind the guard ends with whoever holds its standard input, and leaves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekiln.firmware.virtual_pi.rootfs import guard_command

NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "sleep 300; :")
COMMANDS = [("sleep", "300")] + ([NAMESPACE] if os.geteuid() == 0 else [])

pytestmark = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")


def run_guarded(scratch: Path, command: tuple[str, ...], ending: bytes | None) -> int:
    """Returns the exit code; the input is left open for an ending of None."""
    scratch.mkdir()
    with subprocess.Popen(
        [*guard_command(scratch), *command], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        if ending is not None:
            process.stdin.write(ending)
            process.stdin.flush()
            if not ending:
                process.stdin.close()
        code = process.wait(60)
    # As soon as the guard has ended, not a while later.
    for other in Path("/proc").glob("[0-9]*"):
        try:
            assert bytes(scratch) not in (other / "cmdline").read_bytes(), other
        except OSError:  # it has just ended
            continue
    return code


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
@pytest.mark.parametrize("ending", [b"", b"cut\n"])
def test_all_has_ended_when_the_guard_has(
    command: tuple[str, ...], ending: bytes, tmp_path: Path
) -> None:
    for attempt in range(10):
        scratch = tmp_path / str(attempt)
        assert run_guarded(scratch, command, ending) == 137
        assert scratch.exists() == bool(ending)


def test_an_end_of_its_own_is_told(tmp_path: Path) -> None:
    assert run_guarded(tmp_path / "scratch", ("sh", "-c", "exit 7"), None) == 7
    assert (tmp_path / "scratch").exists()
