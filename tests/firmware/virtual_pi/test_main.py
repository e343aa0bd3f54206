"""``python -m edgekiln.firmware.virtual_pi``."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekiln.firmware.virtual_pi import VirtualPi

COMMAND = [sys.executable, "-m", "edgekiln.firmware.virtual_pi"]


@pytest.mark.emulator
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_how_to_log_in_and_ends_when_told(
    start: Callable[..., VirtualPi], number: signal.Signals
) -> None:
    start("arm64", "chroot").stop()  # or skip
    with subprocess.Popen(
        [*COMMAND, "--kind", "chroot"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        ssh = subprocess.run(
            ["sh", "-c", f"{line} uname -m"], capture_output=True, text=True, timeout=120
        )
        assert ssh.stdout == "aarch64\n"
        process.send_signal(number)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "runs until Ctrl-C" in messages
    assert "Traceback" not in messages
    assert not Path(line.split()[2]).parent.exists()


def test_an_error_is_one_line() -> None:
    result = subprocess.run(
        [*COMMAND, "--architecture", "armhf", "--kind", "raspi3b"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "edgekiln: error: no raspi3b of this architecture; got armhf; allowed: arm64\n"
    )
