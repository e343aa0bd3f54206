"""The exact command of each runner."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable

import pytest

from edgekiln.errors import BadInputError
from edgekiln.firmware.flash.runner import Job, Runner

Plan = Callable[..., tuple[Runner, Job]]

COMMANDS = {
    "stm32flash": [
        "stm32flash -b 115200 -m 8e1 -w image.bin -v -S 0x08000000 -g 0x08000000 /dev/ttyUSB0"
    ],
    "openocd": [
        "openocd -f interface/stlink.cfg -f target/stm32f4x.cfg "
        "-c 'program image.elf verify reset exit'"
    ],
    "pyocd": [
        "pyocd load --no-wait --target nrf52840 --format bin image.bin@0x08000000",
        "pyocd commander --no-wait --target nrf52840 -c halt -c 'compare 0x08000000 image.bin' "
        "-c reset",
    ],
    "st-flash": ["st-flash --reset write image.bin 0x08000000"],
    "dfu-util": [
        "dfu-util -d ,0483:df11 -a 0 -s 0x08000000 -D image.bin",
        "dfu-util -d ,0483:df11 -a 0 -s 0x08000000:2048:leave -U {readback}",
    ],
    "avrdude": [
        "avrdude -p atmega328p -c arduino -P /dev/ttyUSB0 -b 115200 -D -U flash:w:image.hex:i"
    ],
    "gdb": [
        "gdb-multiarch -nx -q -batch -ex 'set confirm off' -ex 'set tcp connect-timeout 5' "
        "-ex 'target extended-remote localhost:3333' -ex load -ex compare-sections "
        "-ex 'monitor reset' -ex detach image.elf"
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_exact_commands(plan: Plan, name: str) -> None:
    runner, job = plan(name, port="/dev/ttyUSB0" if name in ("stm32flash", "avrdude") else None)
    readback = shlex.quote(str(job.log.with_name("readback.bin")))
    wanted = [line.format(readback=readback) for line in COMMANDS[name]]
    assert [shlex.join(step.argv) for step in runner.steps(job)] == wanted
    inside = shlex.quote(str(job.directory))
    assert runner.commands(job) == [f"(cd {inside} && {line})" for line in wanted]


def test_no_path_gets_into_a_command(plan: Plan) -> None:
    for name in COMMANDS:
        runner, job = plan(name, port="/dev/ttyUSB0")
        for step in runner.steps(job):
            own = str(job.log.with_name("readback.bin"))
            assert not any("pwned" in word for word in step.argv if word != own)


@pytest.mark.parametrize("name", ["stm32flash", "avrdude"])
def test_a_port_that_is_not_known_yet_is_shown_as_such(plan: Plan, name: str) -> None:
    runner, job = plan(name)
    assert "<port>" in runner.steps(job)[0].argv


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("openocd", ("-c", "adapter serial 066EFF3833")),
        ("pyocd", ("--uid", "066EFF3833")),
        ("st-flash", ("--serial", "066EFF3833")),
    ],
)
def test_one_of_several_probes(plan: Plan, name: str, words: tuple[str, str]) -> None:
    runner, job = plan(name, probe="066EFF3833")
    for step in runner.steps(job):
        argv = step.argv
        assert words in itertools.pairwise(argv)
    runner, job = plan(name, probe="1; exec touch pwned")
    with pytest.raises(BadInputError, match="serial number"):
        runner.steps(job)


def test_openocd_with_a_probe_of_several_transports(plan: Plan) -> None:
    changes = {"interface": "interface/cmsis-dap.cfg", "transport": "swd", "speed_khz": 5000}
    runner, job = plan("openocd", **changes, target="target/rp2040.cfg")
    (step,) = runner.steps(job)
    assert shlex.join(step.argv) == (
        "openocd -f interface/cmsis-dap.cfg -c 'transport select swd' -f target/rp2040.cfg "
        "-c 'adapter speed 5000' -c 'program image.elf verify reset exit'"
    )


@pytest.mark.parametrize("server", ["pc:2331", "192.168.0.7:3333", "[::1]:3333", "a-b.local:1"])
def test_gdb_with_another_server(plan: Plan, server: str) -> None:
    runner, job = plan("gdb", to=server)
    assert f"target extended-remote {server}" in runner.steps(job)[0].argv


@pytest.mark.parametrize(
    "server",
    [
        *("", "pc", "pc:", ":3333", "pc:0", "pc:65536", "-pc:1", "/dev/ttyS0", "pc:1 ", "pc:1\n"),
        *("| touch pwned", "pc:1\nshell touch pwned", "$(touch pwned):1", "udp:pc:1"),
    ],
)
def test_gdb_connects_to_a_host_and_a_port_alone(plan: Plan, server: str) -> None:
    runner, job = plan("gdb", to=server)
    with pytest.raises(BadInputError, match="not a GDB server"):
        runner.steps(job)
