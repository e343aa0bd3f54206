"""Virtual Pis as a chroot under qemu-user: what they can do, and that they leave nothing."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekiln.errors import BadInputError, ToolMissingError
from edgekiln.firmware.virtual_pi import VirtualPi, build_root, chroot

pytestmark = [pytest.mark.emulator, pytest.mark.slow]

Start = Callable[..., VirtualPi]
BINFMT = Path("/proc/sys/fs/binfmt_misc")


@pytest.fixture(scope="module")
def pi(start: Start) -> Iterator[VirtualPi]:
    with start("arm64", "chroot") as running:
        yield running


def ssh(pi: VirtualPi, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*pi.ssh_command(*options), command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def traces_of(directory: Path) -> list[str]:
    """Returns processes, mounts and files that have to do with a scratch directory."""
    traces = [str(directory)] if directory.exists() else []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes()
            mounts = (process / "mounts").read_bytes()
        except OSError:  # it has just ended
            continue
        if bytes(directory) in arguments or bytes(directory) in mounts:
            traces.append(f"{process}: {arguments!r}")
    return traces


def wait_until_gone(directory: Path) -> None:
    end = time.monotonic() + 60
    while traces_of(directory) and time.monotonic() < end:
        time.sleep(0.1)
    assert traces_of(directory) == []


def test_it_is_another_architecture_with_python(pi: VirtualPi) -> None:
    program = "import platform, struct; print(platform.machine(), struct.calcsize('P'))"
    result = ssh(pi, f'uname -m; id -un; hostname; python3 -c "{program}"; ls -A /sys')
    assert result.stdout.split("\n") == ["aarch64", "pi", "raspberrypi", "aarch64 8", ""]
    assert result.stderr == ""


def test_it_tells_of_its_own_processor_and_that_it_is_no_pi(pi: VirtualPi) -> None:
    result = ssh(pi, "cat /proc/cpuinfo /etc/edgekiln-virtual-pi")
    assert "CPU part\t: 0xd08\n" in result.stdout
    assert "GenuineIntel" not in result.stdout
    assert "virtual Raspberry Pi" in result.stdout
    assert "no Raspberry Pi" in result.stdout


def test_rsync_copies_files_both_ways(pi: VirtualPi, tmp_path: Path) -> None:
    data = bytes(range(256)) * 999
    (tmp_path / "a file").write_bytes(data)
    shell = f"ssh -F {pi.ssh_config}"
    there, back = f"{pi.alias}:a copy", tmp_path / "back"
    for source, target in ((tmp_path / "a file", there), (there, back)):
        subprocess.run(["rsync", "-s", "-e", shell, source, target], check=True, timeout=120)
    assert back.read_bytes() == data


def test_only_its_key_opens_it(pi: VirtualPi) -> None:
    result = ssh(pi, "true", "-o", "PubkeyAuthentication=no")
    assert result.returncode == 255
    assert "Permission denied (publickey)" in result.stderr
    assert ssh(pi, "true", "-l", "root").returncode == 255


def test_another_host_key_is_refused(pi: VirtualPi, tmp_path: Path) -> None:
    words = pi.known_hosts.read_text().split()
    public = pi.identity_file.with_suffix(".pub").read_text().split()[1]
    (tmp_path / "known_hosts").write_text(f"{words[0]} {words[1]} {public}\n")
    result = ssh(pi, "true", "-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}")
    assert result.returncode == 255
    assert "Host key verification failed" in result.stderr


def test_its_root_file_system_comes_from_the_cache_and_stays_whole(
    pi: VirtualPi, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ssh(pi, "echo changed >~/file; cat ~/file").stdout == "changed\n"
    monkeypatch.setenv("PATH", "/nowhere")  # nothing can be built
    root = build_root("arm64")
    assert root.damaged_files() == []
    assert root.packages["python3.11"].startswith("3.11.")


def test_a_power_cut_keeps_the_disk(start: Start) -> None:
    with start("arm64", "chroot") as pi:
        assert ssh(pi, "echo kept >file; sleep 60 >/dev/null 2>&1 & sync").returncode == 0
        pi.cut_power()
        assert ssh(pi, "true").returncode == 255
        pi.power_on()
        result = ssh(pi, "cat file; ps -C sleep --no-headers")
        assert (result.stdout, result.stderr) == ("kept\n", "")


def test_its_disk_can_outlive_it(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "a disk, it's"
    with start("arm64", "chroot", disk=disk) as pi:
        assert ssh(pi, "echo kept >file; sync").returncode == 0
        with pytest.raises(BadInputError, match="this virtual Pi is in use; wait"):
            start("arm64", "chroot", disk=disk)
    with start("arm64", "chroot", disk=disk) as pi:
        assert ssh(pi, "cat file").stdout == "kept\n"
    with start("arm64", "chroot") as pi:
        assert ssh(pi, "ls").stdout == ""
    (disk / "made-for").write_text("another root file system")
    with start("arm64", "chroot", disk=disk) as pi:
        assert ssh(pi, "ls").stdout == "", "what changed belongs to another system"


def test_it_can_have_the_core_of_a_pi_5(start: Start) -> None:
    with start("arm64", "chroot", cpu="cortex-a76") as pi:
        found = ssh(pi, "cat /proc/cpuinfo").stdout
    assert found.count("asimddp") == 4 and "CPU part\t: 0xd0b\n" in found


def test_its_disk_can_be_small(start: Start) -> None:
    with start("arm64", "chroot", disk_bytes=4 << 20) as pi:
        result = ssh(pi, "head -c 8M /dev/zero >file")
        assert result.returncode != 0
        assert "No space left on device" in result.stderr
        pi.cut_power()
        with pytest.raises(BadInputError, match="lost with its power"):
            pi.power_on()


def test_stop_leaves_nothing(start: Start) -> None:
    table = sorted(BINFMT.iterdir())
    with start("arm64", "chroot") as pi:
        directory = pi.ssh_config.parent
        ssh(pi, "sleep 300 >/dev/null 2>&1 &")
        assert len(traces_of(directory)) > 3
        port = pi.port
    assert traces_of(directory) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert sorted(BINFMT.iterdir()) == table
    pi.stop()  # once more


PARENT = """
import sys, time
from edgekiln.firmware.virtual_pi import start_virtual_pi
pi = start_virtual_pi("arm64", "chroot")
print(pi.ssh_config.parent, flush=True)
sys.stdin.read()
raise RuntimeError("something else failed")
"""


@pytest.mark.parametrize("ending", ["exception", signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_its_parent(start: Start, ending: signal.Signals | str) -> None:
    start("arm64", "chroot").stop()  # or skip
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None and parent.stdin is not None
        directory = Path(parent.stdout.readline().strip())
        assert directory.is_dir() and traces_of(directory)
        if isinstance(ending, signal.Signals):
            parent.send_signal(ending)
        else:
            parent.stdin.close()
        parent.wait(60)
    wait_until_gone(directory)


def test_a_port_in_use_is_one_line(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInputError, match=f"^port {port} is in use or not allowed; "):
            start("arm64", "chroot", port=port)


def test_a_32_bit_pi(start: Start, tmp_path: Path) -> None:
    with start("armhf", "chroot") as pi:
        program = "import platform, struct; print(platform.machine(), struct.calcsize('P'))"
        result = ssh(pi, f'uname -m; python3 -c "{program}"; grep -c NEON -i /proc/cpuinfo')
        assert result.stdout.split("\n") == ["armv7l", "armv7l 4", "4", ""]
        (tmp_path / "file").write_bytes(b"\x00\xff" * 5000)
        shell = f"ssh -F {pi.ssh_config}"
        command = ["rsync", "-e", shell, tmp_path / "file", f"{pi.alias}:"]
        subprocess.run(command, check=True, timeout=120)
        assert ssh(pi, "wc -c <file").stdout == "10000\n"
        directory = pi.ssh_config.parent
    assert traces_of(directory) == []
    assert build_root("armhf").damaged_files() == []


def test_without_root_the_line_names_the_other_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert str(chroot.why_not("arm64")) == (
        "a chroot needs root; run it as root, or take the slower kind 'virt'"
    )


def test_without_the_emulator_the_line_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        chroot.shutil, "which", lambda name, path="": None if "qemu" in name else f"/bin/{name}"
    )
    reason = chroot.why_not("armhf")
    assert isinstance(reason, ToolMissingError)
    assert str(reason) == (
        "qemu-arm is not installed; install it with: apt-get install qemu-user-static"
    )


def test_an_old_kernel_needs_the_emulator_registered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(chroot.shutil, "which", lambda name, path="": f"/bin/{name}")
    monkeypatch.setattr(chroot, "_BINFMT_MISC", tmp_path)
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-28-amd64")
    assert "got Linux 6.1.0-28-amd64; install it with:" in str(chroot.why_not("arm64"))
    (tmp_path / "qemu-aarch64").write_text("enabled\ninterpreter /usr/bin/q\nflags: PF\n")
    assert chroot.why_not("arm64") is None
