"""A systemd of the user's own, in namespaces of its own, for tests of services; needs root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_SYSTEMD = "/usr/lib/systemd/systemd"
_HIERARCHIES = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
# It insists on a system that was booted with systemd. $0: its path, $1...: its control groups.
_SCRIPT = """
for group; do
    mkdir -p "$group"
    echo $$ >"$group/cgroup.procs"
done
exec unshare --mount sh -euc '
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 run /run
    mkdir -p /run/systemd/system
    exec "$0" --user
' "$0"
"""


@contextlib.contextmanager
def run_user_systemd(home: Path) -> Iterator[Path]:
    """Runs a systemd of the user with this home; yields its XDG_RUNTIME_DIR."""
    programs = (_SYSTEMD, "systemctl", "unshare", "mount")
    if os.geteuid() != 0 or any(shutil.which(program) is None for program in programs):
        pytest.skip("a systemd of its own needs root and systemd")
    groups = [
        Path(hierarchy) / f"edgekiln-test-{os.getpid()}"
        for hierarchy in _HIERARCHIES
        if Path(hierarchy, "cgroup.procs").exists()
    ]
    # Not in the test's directory: a socket's name is at most 107 bytes long.
    with tempfile.TemporaryDirectory(prefix="ek-", dir="/tmp") as name:
        runtime = Path(name)
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": name}
        environment["SYSTEMD_IGNORE_CHROOT"] = "1"  # this side has not been booted with systemd
        command = ["sh", "-c", _SCRIPT, _SYSTEMD, *map(str, groups)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                if not _answers(process, environment):
                    pytest.skip("no systemd of its own can be run here")
                yield runtime
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                _remove(groups)


def _answers(process: subprocess.Popen[bytes], environment: dict[str, str]) -> bool:
    command = ["systemctl", "--user", "show", "--property=SystemState"]
    for _ in range(200):
        if process.poll() is not None:
            return False
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
        if done.returncode == 0:
            return True
        time.sleep(0.1)
    return False


def _remove(groups: list[Path]) -> None:
    """Kills what is left in control groups, and removes them."""
    for _ in range(100):
        for group in groups:
            for procs in group.rglob("cgroup.procs"):
                for number in procs.read_text(encoding="ascii").split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(number), signal.SIGKILL)
            for path in sorted(group.rglob("*/"), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
        if not any(group.exists() for group in groups):
            return
        time.sleep(0.1)
