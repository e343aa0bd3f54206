"""Finds out what a board has, and decides which runtimes it can use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekiln.errors import BoardError
from edgekiln.firmware.linux.ssh import Connection, check_remote_path

FACTS_SCRIPT = Path(__file__).parent / "facts.sh"

# Bits of `vcgencmd get_throttled`, Raspberry Pi documentation, "vcgencmd".
_THROTTLED_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
    16: "under-voltage has occurred",
    17: "frequency capping has occurred",
    18: "throttling has occurred",
    19: "soft temperature limit has occurred",
}


@dataclass(frozen=True)
class Facts:
    """What a board has.

    Attributes:
        model: What the device tree calls it, such as "Raspberry Pi 4 Model B Rev 1.1".
        os: The name of the operating system; may be empty.
        kernel: The kernel's release.
        machine: What ``uname -m`` says: the kernel's architecture.
        architecture: That of programs: "aarch64", "armv7l", "armv6l" or "x86_64". A 64-bit kernel
            with 32-bit programs, as Raspberry Pi OS has had, counts as "armv7l".
        glibc: Version of the C library as (major, minor), or None where it is another one.
        features: What the processor can do, in the kernel's words.
        cores: How many processors there are.
        memory_bytes: Main memory.
        free_memory_bytes: Main memory that is available.
        free_disk_bytes: Room on the disk that releases go to.
        python: Version of ``python3`` as (major, minor, patch), or None where there is none.
        modules: Which of the modules that edgekiln can use its Python has.
        governor: The frequency governor, or empty where the kernel has none.
        temperature_c: Temperature of the processor in degrees Celsius, or None.
        throttled: What `vcgencmd get_throttled` reports in words, or None where it is not there.
        has_rsync: Whether rsync is installed.
        has_flock: Whether flock is installed.
        has_systemd: Whether services of the user can be started.
        has_compiler: Whether a C compiler is installed.
        is_emulated: Whether it says that it is no real board: a virtual Pi of edgekiln's, or a
            machine of QEMU's.
    """

    model: str
    os: str
    kernel: str
    machine: str
    architecture: str
    glibc: tuple[int, int] | None
    features: frozenset[str]
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    python: tuple[int, int, int] | None
    modules: frozenset[str]
    governor: str
    temperature_c: float | None
    throttled: tuple[str, ...] | None
    has_rsync: bool
    has_flock: bool
    has_systemd: bool
    has_compiler: bool
    is_emulated: bool

    @property
    def has_neon(self) -> bool:
        """Whether it has Advanced SIMD; on 32 bits the kernel calls it neon."""
        return bool(self.features & {"asimd", "neon"})

    @property
    def has_dot_product(self) -> bool:
        """Whether it has the SDOT and UDOT instructions (Raspberry Pi 5)."""
        return "asimddp" in self.features


@dataclass(frozen=True)
class RuntimeChoice:
    """What runs models on a board.

    Attributes:
        tflite: The package that runs .tflite files, "ai-edge-litert" or "tflite-runtime", or None.
        onnx: "onnxruntime", or None.
        requirements: What pip is asked for, in order; empty where neither has a wheel.
        why_not: For what is missing, one clause each: what has no wheel for what.
    """

    tflite: str | None
    onnx: str | None
    requirements: tuple[str, ...]
    why_not: tuple[str, ...]


@dataclass(frozen=True)
class _Wheel:
    """A wheel on PyPI: for which minor versions of Python 3, and from which C library on."""

    package: str
    version: str
    architecture: str
    minors: tuple[int, ...]
    glibc: tuple[int, int]

    def fits(self, facts: Facts) -> bool:
        return (
            facts.python is not None
            and facts.python[0] == 3
            and facts.python[1] in self.minors
            and facts.architecture == self.architecture
            and facts.glibc is not None
            and facts.glibc >= self.glibc
        )


# As published in November 2026; what is better comes first.
_WHEELS = (
    _Wheel("ai-edge-litert", "2.3.0", "aarch64", (10, 11, 12, 13, 14), (2, 27)),
    _Wheel("ai-edge-litert", "2.3.0", "x86_64", (10, 11, 12, 13, 14), (2, 27)),
    _Wheel("tflite-runtime", "2.14.0", "aarch64", (8, 9, 10, 11), (2, 34)),
    _Wheel("tflite-runtime", "2.14.0", "armv7l", (8, 9, 10, 11), (2, 34)),
    _Wheel("onnxruntime", "1.31.1", "aarch64", (11, 12, 13, 14), (2, 28)),
    _Wheel("onnxruntime", "1.31.1", "x86_64", (11, 12, 13, 14), (2, 28)),
    _Wheel("onnxruntime", "1.23.2", "aarch64", (10,), (2, 28)),
)

# tflite-runtime 2.14 was built against numpy 1; with numpy 2 its interpreter dies.
_NUMPY = {"tflite-runtime": "numpy<2"}
_ANY_NUMPY = "numpy>=1.23"


def find_facts(connection: Connection, base: str = "edgekiln") -> Facts:
    """Finds out what a board has.

    Args:
        connection: The board.
        base: Where releases go on it.

    Raises:
        BoardError: It cannot be reached, or it is no Linux that edgekiln knows.
    """
    script = FACTS_SCRIPT.read_text(encoding="utf-8")
    done = connection.run(script, check_remote_path(base))
    return read_facts(done.text, str(connection.host))


def read_facts(text: str, where: str) -> Facts:
    """Reads what facts.sh printed.

    Args:
        text: Its output.
        where: The board, for messages.

    Raises:
        BoardError: What is essential is missing or not of a kind that edgekiln knows.
    """
    values: dict[str, str] = {}
    modules: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "has":
            modules.add(value.strip())
        else:
            values.setdefault(key, _printable(value))
    if "machine" not in values:
        raise BoardError("it does not say what it is; is it a Linux?", where=where)
    python = _version(values.get("python", ""), 3)
    glibc = _version(values.get("glibc", ""), 2)
    temperature = values.get("temperature_mc", "")
    return Facts(
        model=values.get("model", ""),
        os=values.get("os", ""),
        kernel=values.get("kernel", ""),
        machine=values["machine"],
        architecture=_architecture(values, where),
        glibc=(glibc[0], glibc[1]) if glibc else None,
        features=frozenset(values.get("features", "").split()),
        cores=_number(values, "cores") or 1,
        memory_bytes=_number(values, "memory_kb") * 1024,
        free_memory_bytes=_number(values, "free_memory_kb") * 1024,
        free_disk_bytes=_number(values, "free_disk_kb") * 1024,
        python=(python[0], python[1], python[2]) if python else None,
        modules=frozenset(modules),
        governor=values.get("governor", ""),
        temperature_c=int(temperature) / 1000 if re.fullmatch(r"-?\d+", temperature) else None,
        throttled=read_throttled(values.get("throttled", "")),
        has_rsync="rsync" in values,
        has_flock="flock" in values,
        has_systemd="systemd" in values,
        has_compiler="compiler" in values,
        is_emulated="emulated" in values,
    )


def choose_runtime(facts: Facts) -> RuntimeChoice:
    """Decides what runs models beside the generated C, which runs everywhere.

    LiteRT where it has a wheel for this Python, architecture and C library, else tflite-runtime
    2.14; onnxruntime where it has one. The two want different versions of numpy, so each is
    chosen together with one.
    """
    if facts.python is None:
        return RuntimeChoice(None, None, (), ("python3 is not installed",))
    litert = _find_wheel("ai-edge-litert", facts)
    tflite = litert or _find_wheel("tflite-runtime", facts)
    onnx = _find_wheel("onnxruntime", facts)
    wanted = {"ai-edge-litert": litert, "onnxruntime": onnx}
    if litert is None:
        wanted["tflite-runtime"] = tflite
    chosen = [wheel for wheel in (tflite, onnx) if wheel]
    requirements = [f"{wheel.package}=={wheel.version}" for wheel in chosen]
    if chosen:
        requirements.append(_NUMPY.get(chosen[0].package, _ANY_NUMPY))
    return RuntimeChoice(
        tflite=tflite.package if tflite else None,
        onnx=onnx.package if onnx else None,
        requirements=tuple(requirements),
        why_not=tuple(_no_wheel(name, facts) for name, wheel in wanted.items() if wheel is None),
    )


def _find_wheel(package: str, facts: Facts) -> _Wheel | None:
    return next(
        (wheel for wheel in _WHEELS if wheel.package == package and wheel.fits(facts)), None
    )


def _no_wheel(package: str, facts: Facts) -> str:
    python = ".".join(map(str, facts.python[:2])) if facts.python else "none"
    glibc = ".".join(map(str, facts.glibc)) if facts.glibc else "none"
    return f"{package} has no wheel for Python {python}, {facts.architecture}, glibc {glibc}"


def _architecture(values: dict[str, str], where: str) -> str:
    machine, bits = values["machine"], values.get("bits") or values.get("python_bits")
    if machine in ("aarch64", "arm64"):
        return "armv7l" if bits == "32" else "aarch64"
    if machine.startswith(("armv7", "armv8")):
        return "armv7l"
    if machine in ("armv6l", "x86_64"):
        return machine
    raise BoardError(
        "edgekiln knows no such architecture",
        where=where,
        got=machine,
        allowed="aarch64, armv7l, armv6l, x86_64",
    )


def read_throttled(text: str) -> tuple[str, ...] | None:
    """Returns in words what `vcgencmd get_throttled` says, or None where it is not there."""
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text):
        return None
    value = int(text, 16)
    return tuple(what for bit, what in _THROTTLED_BITS.items() if value >> bit & 1)


def _number(values: dict[str, str], key: str) -> int:
    text = values.get(key, "")
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else 0


def _version(text: str, parts: int) -> tuple[int, ...] | None:
    match = re.match(r"\.".join([r"(\d+)"] * parts), text)
    return tuple(int(part) for part in match.groups()) if match else None


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text.strip())[:200]
