from __future__ import annotations

import dataclasses
import platform
import sys

import pytest

from edgekiln.errors import BoardError
from edgekiln.firmware.linux.facts import Facts, choose_runtime, find_facts, read_facts
from edgekiln.firmware.linux.ssh import Connection

PI4 = """\
model Raspberry Pi 4 Model B Rev 1.1
os Debian GNU/Linux 12 (bookworm)
kernel 6.6.31+rpt-rpi-v8
machine aarch64
bits 64
glibc 2.36
features fp asimd evtstrm crc32 cpuid
part 0xd08
cores 4
memory_kb 3884560
free_memory_kb 3500000
free_disk_kb 20000000
governor ondemand
temperature_mc 48686
throttled 0x50005
rsync /usr/bin/rsync
flock /usr/bin/flock
systemd user
python_path /usr/bin/python3
python 3.11.2
python_bits 64
has numpy
has venv
"""


def pi4(**changes: object) -> Facts:
    return dataclasses.replace(read_facts(PI4, "pi"), **changes)


def test_what_a_pi_says_is_read() -> None:
    facts = pi4()
    assert facts.model == "Raspberry Pi 4 Model B Rev 1.1"
    assert (facts.architecture, facts.glibc, facts.python) == ("aarch64", (2, 36), (3, 11, 2))
    assert (facts.cores, facts.memory_bytes) == (4, 3884560 * 1024)
    assert (facts.free_memory_bytes, facts.free_disk_bytes) == (3500000 * 1024, 20480000000)
    assert facts.temperature_c == 48.686
    assert facts.throttled == (
        "under-voltage",
        "throttled",
        "under-voltage has occurred",
        "throttling has occurred",
    )
    assert (facts.has_neon, facts.has_dot_product) == (True, False)
    assert (facts.has_rsync, facts.has_flock, facts.has_systemd) == (True, True, True)
    assert not facts.has_compiler
    assert facts.modules == {"numpy", "venv"}
    assert facts.governor == "ondemand"


@pytest.mark.parametrize(
    ("machine", "bits", "architecture"),
    [
        ("aarch64", "64", "aarch64"),
        ("aarch64", "32", "armv7l"),
        ("armv7l", "32", "armv7l"),
        ("armv8l", "32", "armv7l"),
        ("armv6l", "32", "armv6l"),
        ("x86_64", "64", "x86_64"),
    ],
)
def test_architecture_is_that_of_programs(machine: str, bits: str, architecture: str) -> None:
    assert read_facts(f"machine {machine}\nbits {bits}\n", "pi").architecture == architecture


def test_little_is_needed_and_nonsense_does_no_harm() -> None:
    text = "machine aarch64\ncores many\ntemperature_mc hot\nthrottled x\npython 3\n\x1b[31m x\n"
    facts = read_facts(text, "pi")
    assert (facts.cores, facts.memory_bytes, facts.temperature_c) == (1, 0, None)
    assert (facts.throttled, facts.python, facts.glibc) == (None, None, None)
    for text in ("", "hello\n", "machine mips\n"):
        with pytest.raises(BoardError, match="pi: "):
            read_facts(text, "pi")


@pytest.mark.parametrize(
    ("architecture", "python", "glibc", "tflite", "onnx", "requirements"),
    [
        # Raspberry Pi OS trixie, bookworm, bullseye; 64 bits
        (
            *("aarch64", (3, 13, 5), (2, 41), "ai-edge-litert", "onnxruntime"),
            ("ai-edge-litert==2.3.0", "onnxruntime==1.31.1", "numpy>=1.23"),
        ),
        (
            *("aarch64", (3, 11, 2), (2, 36), "ai-edge-litert", "onnxruntime"),
            ("ai-edge-litert==2.3.0", "onnxruntime==1.31.1", "numpy>=1.23"),
        ),
        ("aarch64", (3, 9, 2), (2, 31), None, None, ()),
        # the same with 32 bits
        ("armv7l", (3, 13, 5), (2, 41), None, None, ()),
        (
            *("armv7l", (3, 11, 2), (2, 36), "tflite-runtime", None),
            ("tflite-runtime==2.14.0", "numpy<2"),
        ),
        ("armv7l", (3, 9, 2), (2, 31), None, None, ()),
        # Ubuntu 22.04, and one with an older Python beside a new C library
        (
            *("aarch64", (3, 10, 12), (2, 35), "ai-edge-litert", "onnxruntime"),
            ("ai-edge-litert==2.3.0", "onnxruntime==1.23.2", "numpy>=1.23"),
        ),
        (
            *("aarch64", (3, 9, 18), (2, 36), "tflite-runtime", None),
            ("tflite-runtime==2.14.0", "numpy<2"),
        ),
        # Pi Zero; a musl system; a Python of tomorrow; none at all
        ("armv6l", (3, 11, 2), (2, 36), None, None, ()),
        ("aarch64", (3, 12, 3), None, None, None, ()),
        ("aarch64", (3, 15, 0), (2, 43), None, None, ()),
        ("aarch64", None, (2, 36), None, None, ()),
    ],
)
def test_runtime_is_what_has_a_wheel(
    architecture: str,
    python: tuple[int, int, int] | None,
    glibc: tuple[int, int] | None,
    tflite: str | None,
    onnx: str | None,
    requirements: tuple[str, ...],
) -> None:
    choice = choose_runtime(pi4(architecture=architecture, python=python, glibc=glibc))
    assert (choice.tflite, choice.onnx, choice.requirements) == (tflite, onnx, requirements)
    assert bool(choice.why_not) == (tflite != "ai-edge-litert" or onnx is None)


def test_what_is_missing_is_explained() -> None:
    choice = choose_runtime(pi4(architecture="armv7l"))
    assert choice.why_not == (
        "ai-edge-litert has no wheel for Python 3.11, armv7l, glibc 2.36",
        "onnxruntime has no wheel for Python 3.11, armv7l, glibc 2.36",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the server of the tests must be a Linux")
def test_facts_of_this_machine_are_found(connection: Connection) -> None:
    facts = find_facts(connection, "/tmp/not/there yet; $(false)")
    assert facts.machine == platform.machine()
    assert facts.cores >= 1
    assert facts.free_disk_bytes > 0
    assert facts.memory_bytes > facts.free_memory_bytes > 0
    assert facts.python is not None
    assert facts.has_rsync
