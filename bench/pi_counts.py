"""Counts the instructions of one inference on an emulated Raspberry Pi's core.

Two programs are counted under QEMU's user mode, with the same inputs: the generated C from
the entry of invoke to its return (qemu/count.c), and LiteRT from before its invoke to after
it, of which only the instructions of its own library count, neither Python's nor the C
library's (qemu/sections.c). That LiteRT takes XNNPACK, and both the dot product where the core has
it, is looked up in what they execute.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekiln.bench.tensors import Tensor
from edgekiln.errors import BadInputError, BoardError, CheckFailedError, ToolMissingError
from edgekiln.export.compiler import CompiledModel, write_bundle
from edgekiln.files import new_directory, write_text
from edgekiln.firmware.boards import FIRMWARE, Toolchain, load_board
from edgekiln.firmware.counting import build_plugin
from edgekiln.firmware.image import read_symbols
from edgekiln.firmware.linux.runner.program import OPTIMIZATION
from edgekiln.firmware.toolchain import STRICT_FLAGS, find_tool, first_error
from edgekiln.firmware.virtual_pi import build_root
from edgekiln.firmware.virtual_pi.rootfs import cache_directory, find_program, locked

LITERT = "ai-edge-litert==2.3.0"
_NUMPY = "numpy==2.2.6"
_PYTHON = "python3.11"  # of the Debian that a virtual Pi is
_PLATFORMS = ("manylinux_2_27_aarch64", "manylinux2014_aarch64")
_GUEST = Path(__file__).with_name("litert_sections.py")
_MAIN = FIRMWARE / "qemu" / "count_main.c"
_TIMEOUT_S = 600.0

# LiteRT reads what the core is from these files. This machine's would tell of another one.
_PRIVATE_SYSTEM = """
set -eu
mount --make-rprivate /
mount -t tmpfs none /sys
mkdir -p /sys/devices/system/cpu
echo 0 >/sys/devices/system/cpu/possible
echo 0 >/sys/devices/system/cpu/present
mount --bind "$1" /proc/cpuinfo
shift
exec "$@"
"""


@dataclass(frozen=True)
class Core:
    """A core that QEMU emulates.

    Attributes:
        name: QEMU's name.
        board: What has it.
        part: Its number in /proc/cpuinfo.
        features: What it has beyond the others, in the kernel's words.
    """

    name: str
    board: str
    part: str
    features: frozenset[str]

    @property
    def dot_product(self) -> bool:
        """Whether it has instructions for dot products."""
        return "asimddp" in self.features

    @property
    def toolchain(self) -> Toolchain:
        """The C compiler of ``BOARD=rpi``, with its flags for such a core."""
        linux = load_board("rpi").linux
        core = linux.find_core("aarch64", self.features) if linux else None
        assert core is not None
        return core.toolchain


CORES: Mapping[str, Core] = {
    "aarch64": Core("cortex-a72", "Raspberry Pi 4", "0xd08", frozenset()),
    "aarch64-dotprod": Core("cortex-a76", "Raspberry Pi 5", "0xd0b", frozenset({"asimddp"})),
}
"""The core on which the code for each target is counted."""


@dataclass(frozen=True)
class ProcessCount:
    """What one inference takes, in the mean over its inputs.

    Attributes:
        instructions: All of them; of LiteRT those of its library.
        dot_products: SDOT instructions among them.
        outputs: One row an input.
    """

    instructions: int
    dot_products: int
    outputs: Tensor


def count_generated(compiled: CompiledModel, inputs: Tensor) -> ProcessCount:
    """Counts the generated C on the core of its target.

    Args:
        compiled: A model named "m" for a target in `CORES`, with one input and one output.
        inputs: int8 [N, …].

    Raises:
        ToolMissingError: The cross compiler or QEMU is not installed.
        BadInputError: The C does not compile.
        BoardError: The program fails.
    """
    core = CORES[compiled.report["target"]]
    qemu = find_program("qemu-aarch64", "qemu-user")
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as temporary:
        directory = Path(temporary)
        write_bundle(compiled, directory / "c")
        program = _compile(directory, core)
        symbols = read_symbols(program)
        plan = f"begin {symbols['m_invoke']:#x}\nend {symbols['ek_invoke_end']:#x}\n"
        write_text(directory / "plan", plan)
        count, sections = directory / "count.txt", directory / "sections.txt"
        plugins = [
            f"{build_plugin(qemu)},plan={directory / 'plan'},out={count}",
            f"{build_plugin(qemu, 'sections')},out={sections}",
        ]
        command = [qemu, "-cpu", core.name, "-plugin", plugins[0], "-plugin", plugins[1]]
        written = _run([*command, str(program)], np.ascontiguousarray(inputs).tobytes())
        totals = [row[0] for row in _read_rows(count, len(inputs))]
        dot_products = [row[2] for row in _read_rows(sections, len(inputs))]
    outputs = np.frombuffer(written.stdout, np.int8).reshape(len(inputs), -1)
    return ProcessCount(_mean(totals), _mean(dot_products), outputs)


def _compile(directory: Path, core: Core) -> Path:
    toolchain = core.toolchain
    bundle, program = directory / "c", directory / "program"
    flags = (
        *toolchain.cpu_flags,
        OPTIMIZATION,
        "-std=c99",
        "-static",
        *STRICT_FLAGS,
        f"-I{bundle}",
    )
    sources = (_MAIN, bundle / "m.c", bundle / "m_weights.c")
    done = subprocess.run(
        [find_tool(toolchain, "gcc"), *flags, *map(str, sources), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BadInputError(f"does not compile: {first_error(done.stderr)}", where=_MAIN)
    return program


def count_litert(model: bytes, core: Core, inputs: Tensor) -> ProcessCount:
    """Counts LiteRT with XNNPACK and one thread, in a Debian for the Pi.

    The first time Debian's packages and LiteRT's wheel are downloaded into the cache.

    Args:
        model: A ``.tflite`` with one input and one output.
        core: What it runs on.
        inputs: int8 [N, …].

    Raises:
        ToolMissingError: QEMU is not installed, or the packages cannot be had.
        BoardError: LiteRT fails.
        CheckFailedError: It does not use XNNPACK, or dot products on a core without them, or
            none on a core with them.
    """
    qemu = find_program("qemu-aarch64", "qemu-user")
    packages, root = download_litert(), build_root("arm64")
    with tempfile.TemporaryDirectory(prefix="edgekiln-") as temporary:
        directory = Path(temporary)
        (directory / "model.tflite").write_bytes(model)
        np.save(directory / "inputs.npy", inputs)
        counts, outputs = directory / "counts.txt", directory / "outputs.npy"
        files = (directory / "model.tflite", directory / "inputs.npy", outputs)
        plugin = f"{build_plugin(qemu, 'sections')},out={counts}"
        python = [qemu, "-cpu", core.name, "-L", str(root.path), "-plugin", plugin]
        python += [str(root.path / "usr/bin" / _PYTHON), str(_GUEST)]
        command = [*python, str(packages), *map(str, files)]
        done = _run([*_privately(directory, core), *command])
        rows = _read_rows(counts, len(inputs))
        found: Tensor = np.load(outputs)
    if b"XNNPACK delegate" not in done.stderr:
        raise CheckFailedError("LiteRT does not use XNNPACK", got=done.stderr.decode()[-200:])
    counted = ProcessCount(_mean([row[1] for row in rows]), _mean([row[2] for row in rows]), found)
    if (counted.dot_products > 0) != core.dot_product:
        raise CheckFailedError(
            f"LiteRT does not take {core.name} for what it is",
            got=f"{counted.dot_products} dot products",
        )
    return counted


def _privately(directory: Path, core: Core) -> list[str]:
    """Returns the beginning of a command that sees /proc/cpuinfo and /sys of a core."""
    features = " ".join(("fp", "asimd", "evtstrm", "crc32", "cpuid", *sorted(core.features)))
    lines = {
        "processor": "0",
        "Features": features,
        "CPU implementer": "0x41",
        "CPU architecture": "8",
        "CPU variant": "0x0",
        "CPU part": core.part,
        "CPU revision": "3",
    }
    text = "".join(f"{name}\t: {value}\n" for name, value in lines.items())
    write_text(directory / "cpuinfo", text)
    script = directory / "private_system.sh"
    write_text(script, _PRIVATE_SYSTEM)
    unshare = [find_program("unshare", "util-linux"), "--mount"]
    if os.geteuid() != 0:
        unshare.append("--map-root-user")
    return [*unshare, "sh", str(script), str(directory / "cpuinfo")]


def download_litert() -> Path:
    """Returns a directory of the cache with LiteRT and numpy for aarch64, downloaded once.

    Raises:
        ToolMissingError: The wheels cannot be had.
        BadInputError: The cache cannot be written.
    """
    place = cache_directory().absolute() / f"{LITERT}-{_NUMPY}-aarch64".replace("==", "-")
    with locked(place):
        if not place.is_dir():
            with new_directory(place) as directory, tempfile.TemporaryDirectory() as wheels:
                _download_wheels(Path(wheels))
                for wheel in sorted(Path(wheels).glob("*.whl")):
                    with zipfile.ZipFile(wheel) as archive:
                        archive.extractall(directory)
    return place


def _download_wheels(directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary"]
    command += [":all:", "--implementation", "cp", "--python-version", _PYTHON[len("python") :]]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    command += ["--dest", str(directory), LITERT, _NUMPY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolMissingError(
            f"{LITERT} for aarch64 cannot be downloaded",
            got=done.stderr.strip().rpartition("\n")[2][:200],
            hint="can pip reach PyPI?",
        )


def _run(command: Sequence[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }
    try:
        done = subprocess.run(
            command,
            input=data,
            capture_output=True,
            check=False,
            env=environment,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise BoardError("the emulated program does not end", got=f"{_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        raise BoardError(
            "the emulated program failed",
            got=f"status {done.returncode}, {first_error(done.stderr.decode(errors='replace'))}",
        )
    return done


def _read_rows(path: Path, count: int) -> list[list[int]]:
    rows = [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
    if len(rows) != count:
        raise BoardError("not every inference was counted", got=str(len(rows)), allowed=str(count))
    return rows


def _mean(numbers: Sequence[int]) -> int:
    return round(sum(numbers) / len(numbers))
