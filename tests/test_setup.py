"""scripts/setup against recorders that stand for python, apt-get, sudo and the compilers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgekiln.doctor import PROGRAMS

REAL = [
    *("bash", "cat", "chmod", "cut", "dirname", "env", "flock", "grep", "head", "mkdir", "mv"),
    *("printf", "rm", "sed", "sha256sum", "sh", "sort", "tail", "tee"),
]

# Stands for a Python: writes down what it was asked, makes a copy of itself as .venv.
PYTHON = r"""
case "$1 $2" in
    "-c import sys"*) echo VERSION ;;
    "-c import ensurepip"*) HAS_VENV ;;
    "-m venv") mkdir -p "$3/bin"; cat "$0" >"$3/bin/python"; echo "venv VERSION" >>"$RECORD"
        chmod +x "$3/bin/python" ;;
    "-m pip") echo "pip $*" >>"$RECORD"; echo Collecting it; [ ! -e "$RECORD.pip-fails" ] ;;
    "-m edgekiln"*) echo "$*" >>"$RECORD" ;;
esac
"""


@dataclass
class Machine:
    """A checkout and a PATH that holds stand-ins only."""

    checkout: Path
    bin: Path
    record: Path
    environment: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, body: str = "exit 0") -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/bash\n{body}\n")
        (self.bin / name).chmod(0o755)

    def add_python(self, name: str, version: str, *, has_venv: bool = True) -> None:
        body = PYTHON.replace("VERSION", version).replace(
            "HAS_VENV", "true" if has_venv else "false"
        )
        self.add(name, body)

    def add_tools(self, *names: str) -> None:
        for name in names:
            self.add(name)

    def setup(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "scripts" / "setup"],
            env={"PATH": str(self.bin), "RECORD": str(self.record), **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def calls(self) -> list[str]:
        return self.record.read_text().splitlines() if self.record.exists() else []

    def ready(self) -> bool:
        return (self.checkout / ".venv" / "ready").exists()


CROSS = ("aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc")
TOOLS = ("gcc", "g++", "arm-none-eabi-gcc", "qemu-system-arm")


@pytest.fixture
def machine(tmp_path: Path, root: Path) -> Machine:
    """A machine of an ordinary user, without sudo, with Python 3.11 and without compilers."""
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(root / "scripts" / "setup", checkout / "scripts")
    (checkout / "requirements.lock").write_text("one==1\ntwo==2\n")
    (checkout / "pyproject.toml").write_text("")
    (checkout / "firmware" / "rp2040js").mkdir(parents=True)
    (checkout / "firmware" / "rp2040js" / "package-lock.json").write_text("{}")
    made = Machine(checkout, tmp_path / "bin", tmp_path / "record")
    made.bin.mkdir()
    for name in REAL:
        path = shutil.which(name)
        assert path is not None, name
        (made.bin / name).symlink_to(path)
    made.add("id", "echo 1000")
    made.add("sudo", "exit 1")
    made.add("apt-get", 'echo "apt-get $*" >>"$RECORD"')
    made.add_python("python3", "3.11")
    return made


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 3
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("edgekiln setup: error: ")
    return lines[0]


def pip_calls(calls: Sequence[str]) -> int:
    return sum(call.startswith("pip ") for call in calls)


def test_without_root_one_line_says_what_to_install(machine: Machine) -> None:
    line = one_line(machine.setup())
    wanted = " ".join(package for program in PROGRAMS for package in program.packages)
    assert line.endswith(f"sudo apt-get install --no-install-recommends {wanted}")
    assert machine.calls() == []
    assert not (machine.checkout / ".venv").exists()


def test_only_what_is_missing_is_asked_for(machine: Machine) -> None:
    machine.add_tools("gcc", "g++", "qemu-system-arm")
    line = one_line(machine.setup())
    assert line.endswith("recommends gcc-arm-none-eabi libnewlib-arm-none-eabi")


def test_continuous_integration_needs_more(machine: Machine) -> None:
    machine.environment["CI"] = "true"
    machine.add_tools(*TOOLS, "rsync", *CROSS, "riscv64-unknown-elf-gcc", "avr-gcc", "simavr")
    line = one_line(machine.setup())
    flash = "stm32flash openocd stlink-tools dfu-util avrdude gdb-multiarch"
    wanted = "clang cmake qemu-user qemu-system-misc"
    wanted += f" {flash}"
    if not Path("/usr/share/arduino/hardware/arduino/avr/bootloaders").exists():
        wanted += " arduino-core-avr"
    wanted += " nodejs npm"
    if not Path("/usr/sbin/sshd").exists():  # which lies outside of an ordinary user's PATH
        wanted += " openssh-server"
    wanted += " openssh-client qemu-user-static mmdebstrap"
    assert line.endswith(f"recommends {wanted}")
    machine.add_tools("clang", "cmake", "mmdebstrap", "qemu-aarch64", "qemu-aarch64-static", "ssh")
    machine.add_tools(*flash.replace("stlink-tools", "st-flash").split())
    machine.add_tools("qemu-system-riscv32", "node", "npm")
    assert machine.setup().returncode == 0
    assert machine.calls()[-1] == "-m edgekiln.firmware.rp2040js"


def test_a_raspberry_pi_needs_more_even_when_all_else_is_ready(machine: Machine) -> None:
    machine.add_tools(*TOOLS)
    assert machine.setup().returncode == 0
    machine.environment["EDGEKILN_BOARD"] = "rpi"
    line = one_line(machine.setup())
    packages = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross openssh-client rsync"
    assert line.endswith(f"recommends {packages}")
    assert machine.ready()
    machine.add_tools(CROSS[0], "ssh", "rsync")
    assert machine.setup().returncode == 0
    machine.environment["EDGEKILN_HOST"] = "virtual virtual:armhf"
    line = one_line(machine.setup())
    packages = "qemu-user-static mmdebstrap gcc-arm-linux-gnueabihf libc6-dev-armhf-cross"
    assert line.endswith(f"recommends {packages}")
    machine.environment["SKIP_SYSTEM"] = "1"
    assert machine.setup().returncode == 0
    del machine.environment["SKIP_SYSTEM"]
    machine.environment["EDGEKILN_HOST"] = "pi@raspberrypi.local"
    machine.environment["EDGEKILN_BOARD"] = "rpi; touch pwned"
    assert machine.setup().returncode == 0
    assert not (machine.checkout / "pwned").exists()


def test_without_apt_the_line_names_the_packages(machine: Machine) -> None:
    machine.add_tools("gcc", "g++", "arm-none-eabi-gcc")
    (machine.bin / "apt-get").unlink()
    assert "missing: qemu-system-arm " in one_line(machine.setup())


def test_the_system_packages_can_be_left_alone(machine: Machine) -> None:
    machine.environment["SKIP_SYSTEM"] = "1"
    assert machine.setup().returncode == 0
    assert machine.ready()
    del machine.environment["SKIP_SYSTEM"]
    assert "arm-none-eabi" in one_line(machine.setup())


@pytest.mark.parametrize("way", ["root", "sudo"])
def test_with_root_or_sudo_they_are_installed(machine: Machine, way: str) -> None:
    if way == "root":
        machine.add("id", "echo 0")
    else:
        machine.add("sudo", 'shift; exec "$@"')
        machine.add("true")
    result = machine.setup()
    assert result.returncode == 0, result.stderr
    update, install = machine.calls()[:2]
    assert update == "apt-get update"
    assert install.endswith(
        "install -y --no-install-recommends gcc libc6-dev g++ gcc-arm-none-eabi "
        "libnewlib-arm-none-eabi qemu-system-arm"
    )


def test_a_second_run_does_nothing(machine: Machine) -> None:
    machine.add_tools(*TOOLS)
    first = machine.setup()
    assert first.returncode == 0, first.stderr
    calls = machine.calls()
    assert calls[0] == "venv 3.11"
    assert "--require-hashes --only-binary :all: -r requirements.lock" in calls[1]
    assert calls[2].endswith("--no-deps --no-build-isolation -e .")
    second = machine.setup()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert machine.calls() == calls


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_change_updates_in_place(machine: Machine, name: str) -> None:
    machine.add_tools(*TOOLS)
    machine.setup()
    with (machine.checkout / name).open("a") as stream:
        stream.write("three==3\n")
    assert machine.setup().returncode == 0
    assert machine.calls().count("venv 3.11") == 1
    assert pip_calls(machine.calls()) == 4
    assert machine.ready()


def test_a_broken_off_set_up_is_not_taken_for_complete(machine: Machine) -> None:
    machine.add_tools(*TOOLS)
    failing = Path(f"{machine.record}.pip-fails")
    failing.touch()
    result = machine.setup()
    assert result.returncode == 3
    assert "pip failed" in result.stderr
    assert not machine.ready()
    left_over = machine.checkout / ".venv" / "left-over"
    left_over.touch()
    failing.unlink()
    assert machine.setup().returncode == 0
    assert machine.ready()
    assert not left_over.exists()


def test_a_broken_off_update_is_made_anew(machine: Machine) -> None:
    machine.add_tools(*TOOLS)
    machine.setup()
    failing = Path(f"{machine.record}.pip-fails")
    failing.touch()
    (machine.checkout / "requirements.lock").write_text("one==2\n")
    assert machine.setup().returncode == 3
    assert not machine.ready()
    failing.unlink()
    assert machine.setup().returncode == 0
    assert machine.calls().count("venv 3.11") == 2


def test_a_moved_checkout_is_set_up_anew(machine: Machine) -> None:
    machine.add_tools(*TOOLS)
    machine.setup()
    machine.checkout = machine.checkout.rename(machine.checkout.with_name("elsewhere"))
    assert machine.setup().returncode == 0
    assert machine.calls().count("venv 3.11") == 2


def test_a_virtual_environment_of_the_users_own_is_left_alone(machine: Machine) -> None:
    machine.add_tools(*TOOLS)
    mine = machine.checkout / ".venv" / "mine"
    mine.mkdir(parents=True)
    assert "move it away" in one_line(machine.setup())
    assert mine.exists()
    assert machine.calls() == []


@pytest.mark.parametrize(
    ("pythons", "chosen"),
    [
        ({"python3": "3.12", "python3.11": "3.11"}, "3.12"),
        ({"python3": "3.10", "python3.11": "3.11"}, "3.11"),
        ({"python3": "3.13", "python3.12": "3.12"}, "3.12"),
        ({"python3": "3.13"}, "3.13"),
        ({"python3": "3.14", "python3.13": "3.13"}, "3.13"),
    ],
)
def test_the_python_that_suits_best_is_taken(
    machine: Machine, pythons: dict[str, str], chosen: str
) -> None:
    machine.add_tools(*TOOLS)
    machine.add("python3.12", "exit 127")  # what a version manager leaves for a missing version
    for name, version in pythons.items():
        machine.add_python(name, version)
    assert machine.setup().returncode == 0
    assert machine.calls()[0] == f"venv {chosen}"


def test_a_python_can_be_named_and_named_anew(machine: Machine) -> None:
    machine.add_tools(*TOOLS)
    machine.add_python("python3.13", "3.13")
    machine.environment["PYTHON"] = "python3.13"
    machine.setup()
    assert machine.calls()[0] == "venv 3.13"
    del machine.environment["PYTHON"]
    calls = machine.calls()
    machine.setup()
    assert machine.calls() == calls
    machine.environment["PYTHON"] = "python3"
    machine.setup()
    assert "venv 3.11" in machine.calls()


def test_no_python_that_is_new_enough(machine: Machine) -> None:
    machine.add_tools(*TOOLS)
    machine.add_python("python3", "3.10")
    assert "python3 python3-venv" in one_line(machine.setup())
    machine.environment["PYTHON"] = "python3"
    assert "no Python 3.11 to 3.13 found" in one_line(machine.setup())


def test_a_python_without_venv_asks_for_its_package(machine: Machine) -> None:
    machine.add_tools(*TOOLS)
    machine.add_python("python3", "3.11", has_venv=False)
    assert one_line(machine.setup()).endswith(" python3.11-venv")
