"""Boards as data: one TOML file each, read strictly.

A board is what the compiler, the linker, the emulator and the application need to know: its
core, the sizes of its memories, where its UART and timer are. What data cannot say is code: the
``sources`` of the port, which see the board's numbers as C macros (`Board.c_macros`).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from edgekiln.errors import BadInputError
from edgekiln.firmware.flash.settings import SETTINGS, RunnerSettings

FIRMWARE = Path(__file__).parent
BOARDS = FIRMWARE / "boards"

#: The emulators that edgekiln can drive: the modules of firmware/emulators.
EMULATOR_KINDS = ("qemu", "rp2040js", "simavr")

_MACRO = re.compile(r"EK_[A-Z][A-Z0-9_]*")
_USB_ID = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
# Settings of runners become arguments of tools, some of which have a language of their own.
_PLAIN = re.compile(r"[A-Za-z0-9_/.][A-Za-z0-9_/.: -]*")

T = TypeVar("T")


@dataclass(frozen=True)
class Toolchain:
    """The C compiler of a board.

    Attributes:
        prefix: What precedes ``gcc`` in the tools' names; empty for the system's own ``cc``.
        cpu_flags: Flags that choose the core.
        packages: Debian packages that hold it.
        standard: The flag that chooses the language: GNU C where constants lie in a memory
            of their own, which ISO C cannot say.
        link_flags: Flags of the linker, libraries last.
        far_flags: What makes a model's code read tables that short pointers do not reach.
    """

    prefix: str
    cpu_flags: tuple[str, ...]
    packages: tuple[str, ...]
    standard: str = "-std=c99"
    link_flags: tuple[str, ...] = ("-Wl,--no-warn-rwx-segments", "-lgcc")
    far_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """Memory of the real chip, whatever an emulator may have.

    Attributes:
        flash_origin: Address of the memory that code and constants are in.
        flash_bytes: Its size.
        ram_origin: Address of the RAM.
        ram_bytes: Its size.
        stack_bytes: What is kept for the stack, at the bottom of RAM.
        near_table_bytes: How large a model's tables may be together without
            `Toolchain.far_flags`, or None for any size.
    """

    flash_origin: int
    flash_bytes: int
    ram_origin: int
    ram_bytes: int
    stack_bytes: int
    near_table_bytes: int | None = None


@dataclass(frozen=True)
class Uart:
    """The serial port: address, interrupt number, input clock and speed."""

    address: int
    interrupt: int
    clock_hz: int
    baud: int


@dataclass(frozen=True)
class Timer:
    """The timer that timestamps come from: address, interrupt number and clock."""

    address: int
    interrupt: int
    clock_hz: int


@dataclass(frozen=True)
class Emulator:
    """A program that stands for the board.

    Attributes:
        kind: How it is driven, one of `EMULATOR_KINDS`.
        program: Its name.
        machine: What it calls the board.
        options: Further arguments that it needs for it.
        packages: Debian packages that hold it.
    """

    kind: str
    program: str
    machine: str
    options: tuple[str, ...]
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Usb:
    """How the board's serial port shows up on USB.

    Attributes:
        ids: Vendor and product, ``1234:abcd``, of what it may be behind.
        is_probe: Whether it belongs to the board's debug probe, and has its serial number.
        interface: The number of its interface where the device has several ports, or None.
    """

    ids: tuple[str, ...]
    is_probe: bool
    interface: int | None = None


@dataclass(frozen=True)
class Flash:
    """How images get into the board.

    Attributes:
        runners: Names of the runners, in order of preference.
        settings: What they need to know, in the same order.
    """

    runners: tuple[str, ...]
    settings: tuple[RunnerSettings, ...]


@dataclass(frozen=True)
class LinuxCore:
    """A processor under Linux, and what is compiled for it.

    Attributes:
        architecture: That of programs, as in `edgekiln.firmware.linux.facts.Facts`.
        features: What it has to have, in the kernel's words.
        target: The compiler's target.
        toolchain: The C compiler.
    """

    architecture: str
    features: frozenset[str]
    target: str
    toolchain: Toolchain


@dataclass(frozen=True)
class Linux:
    """A board that runs Linux and is reached over SSH.

    Attributes:
        hosts: Where to deploy when nothing else is said; usually empty.
        directory: Where releases go there.
        cores: The processors that such boards have; the first that fits is taken.
    """

    hosts: tuple[str, ...]
    directory: str
    cores: tuple[LinuxCore, ...]

    def find_core(self, architecture: str, features: frozenset[str]) -> LinuxCore | None:
        """Returns the processor that a board has, or None where nothing can be compiled for it."""
        for core in self.cores:
            if core.architecture == architecture and core.features <= features:
                return core
        return None


@dataclass(frozen=True)
class Board:
    """A board, as its TOML file describes it.

    Attributes:
        slug: The file's name, and what ``--board`` takes.
        display_name: The name for people.
        core: The processor core, for people.
        target: The compiler's target.
        toolchain: The C compiler.
        sources: The port's C files, relative to the firmware folder.
        linker_script: Template of the linker script, or None on the host.
        memory: Memory of the chip, or None on the host.
        clock_hz: The core's clock once the port has set it up, or None on the host.
        uart: The serial port, or None on the host.
        timer: The timer, or None on the host.
        defines: Further numbers for the port, as C macros.
        emulator: The emulator, or None where there is none.
        usb: The serial port on USB, or None where nothing is known of it.
        flash: How images get into it, or None on the host.
        uf2_family: Number of the chip's family in UF2 files, or None where its bootloader
            takes none.
        linux: What there is to say of a board that runs Linux; None for all others.
    """

    slug: str
    display_name: str
    core: str
    target: str
    toolchain: Toolchain
    sources: tuple[str, ...]
    linker_script: str | None
    memory: Memory | None
    clock_hz: int | None
    uart: Uart | None
    timer: Timer | None
    defines: tuple[tuple[str, int], ...]
    emulator: Emulator | None
    usb: Usb | None = None
    flash: Flash | None = None
    uf2_family: int | None = None
    linux: Linux | None = None

    @property
    def is_host(self) -> bool:
        """Whether it is the machine that edgekiln runs on."""
        return self.memory is None and self.linux is None

    @property
    def is_emulated(self) -> bool:
        """Whether runs on it go to an emulator."""
        return self.emulator is not None

    @property
    def cpu_flags(self) -> tuple[str, ...]:
        """The C compiler's flags that choose the core."""
        return self.toolchain.cpu_flags

    @property
    def flash_bytes(self) -> int | None:
        """Size of the flash, or None on the host."""
        return self.memory.flash_bytes if self.memory else None

    @property
    def ram_bytes(self) -> int | None:
        """Size of the RAM, or None on the host."""
        return self.memory.ram_bytes if self.memory else None

    def c_macros(self) -> dict[str, str]:
        """Returns what the port's C files may know of the board: macro name to C expression."""
        macros = {"EK_BOARD_NAME": f'"{self.slug}"'}
        if self.clock_hz is not None:
            macros["EK_CORE_CLOCK_HZ"] = f"{self.clock_hz}u"
        if self.uart:
            macros["EK_UART_ADDRESS"] = f"0x{self.uart.address:08X}u"
            macros["EK_UART_INTERRUPT"] = f"{self.uart.interrupt}u"
            macros["EK_UART_CLOCK_HZ"] = f"{self.uart.clock_hz}u"
            macros["EK_UART_BAUD"] = f"{self.uart.baud}u"
        if self.timer:
            macros["EK_TIMER_ADDRESS"] = f"0x{self.timer.address:08X}u"
            macros["EK_TIMER_INTERRUPT"] = f"{self.timer.interrupt}u"
            macros["EK_TIMER_CLOCK_HZ"] = f"{self.timer.clock_hz}u"
        macros.update({name: f"{value}u" for name, value in self.defines})
        return macros


def board_slugs() -> tuple[str, ...]:
    """Returns the slugs of all boards, sorted."""
    return tuple(sorted(path.stem for path in BOARDS.glob("*.toml")))


def load_board(slug: str) -> Board:
    """Reads the board with this slug.

    Raises:
        BadInputError: There is none (with the nearest match), or its file is not valid.
    """
    slugs = board_slugs()
    if slug not in slugs:
        near = difflib.get_close_matches(slug.lower(), slugs, n=1, cutoff=0.5)
        raise BadInputError(
            "no such board",
            got=repr(slug),
            allowed=", ".join(slugs),
            hint=f"did you mean {near[0]}?" if near else "",
        )
    return read_board(BOARDS / f"{slug}.toml")


def read_board(path: Path) -> Board:
    """Reads a board's TOML file; the file's name is the slug.

    Raises:
        BadInputError: The file is missing, not TOML, or has a key that is unknown, missing,
            of the wrong type or out of range.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInputError(f"not a board file: {error}", where=path) from None
    top = _Table(path, "", data)
    board = Board(
        slug=path.stem,
        display_name=top.text("display_name"),
        core=top.text("core"),
        target=top.text("target"),
        toolchain=_read_toolchain(top.required_table("toolchain")),
        **_read_port(top.required_table("port")),
        memory=_read_memory(top.table("memory")),
        clock_hz=_read_clock(top.table("clock")),
        uart=_read_uart(top.table("uart")),
        timer=_read_timer(top.table("timer")),
        defines=_read_defines(top.table("defines")),
        emulator=_read_emulator(top.table("emulator")),
        usb=_read_usb(top.table("usb")),
        flash=_read_flash(top.table("flash")),
        uf2_family=_read_uf2(top.table("uf2")),
        linux=_read_linux(top.table("linux"), data),
    )
    top.end()
    if (board.memory is None) != (board.linker_script is None):
        top.fail("memory", "[memory] and port.linker_script are there together or not at all")
    if (board.memory is None) != (board.clock_hz is None):
        top.fail("clock", "[memory] and [clock] are there together or not at all")
    if board.flash and "emulator" in board.flash.runners and not board.emulator:
        top.fail("flash.runners", "there is no [emulator]")
    return board


def refuse_linux(board: Board) -> None:
    """Refuses a board that runs Linux where an image for a microcontroller is wanted.

    Raises:
        BadInputError: It is one.
    """
    if board.linux is not None:
        raise BadInputError(
            "this board runs Linux and takes no image",
            where=board.slug,
            hint=f"use edgekiln deploy --board {board.slug}, which measures too",
        )


class _Table:
    """A TOML table from which every key is taken once, by type; what is left is an error."""

    def __init__(self, path: Path, name: str, values: dict[str, Any]) -> None:
        self.path = path
        self._name = name
        self._values = dict(values)

    def fail(self, key: str, what: str, got: object = "") -> NoReturn:
        name = f"{self._name}.{key}" if self._name else key
        raise BadInputError(f"{name}: {what}", where=self.path, got=got)

    def _take(self, key: str, kind: type[T], kind_name: str) -> T:
        if key not in self._values:
            self.fail(key, "missing")
        value = self._values.pop(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(key, f"must be {kind_name}", repr(value))
        return value

    def text(self, key: str, *, empty: bool = False) -> str:
        value = self._take(key, str, "a text")
        if not value and not empty:
            self.fail(key, "must not be empty")
        return value

    def number(self, key: str, *, low: int = 0, multiple_of: int = 1) -> int:
        value = self._take(key, int, "an integer")
        if not low <= value < 2**32:
            self.fail(key, f"must be at least {low} and below 2^32", value)
        if value % multiple_of:
            self.fail(key, f"must be a multiple of {multiple_of}", value)
        return value

    def flag(self, key: str) -> bool:
        return self._take(key, bool, "true or false")

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._take(key, list, "a list of texts")
        if not all(isinstance(value, str) and value for value in values):
            self.fail(key, "must be a list of texts", repr(values))
        return tuple(values)

    def table(self, key: str) -> _Table | None:
        if key not in self._values:
            return None
        name = f"{self._name}.{key}" if self._name else key
        return _Table(self.path, name, self._take(key, dict, "a table"))

    def table_or_empty(self, key: str) -> _Table:
        return self.table(key) or _Table(self.path, f"{self._name}.{key}", {})

    def required_table(self, key: str) -> _Table:
        table = self.table(key)
        if table is None:
            self.fail(key, "missing")
        return table

    def tables(self, key: str) -> tuple[_Table, ...]:
        values = self._take(key, list, "a list of tables")
        name = f"{self._name}.{key}" if self._name else key
        if not all(isinstance(value, dict) for value in values):
            self.fail(key, "must be a list of tables", repr(values))
        return tuple(_Table(self.path, f"{name}[{i}]", value) for i, value in enumerate(values))

    def file(self, key: str, name: str) -> str:
        if not (FIRMWARE / name).is_file():
            self.fail(key, "no such file in the firmware folder", repr(name))
        return name

    def has(self, key: str) -> bool:
        return key in self._values

    def rest(self) -> tuple[str, ...]:
        return tuple(self._values)

    def end(self) -> None:
        for key in self._values:
            self.fail(key, "unknown key")


def _read_toolchain(table: _Table) -> Toolchain:
    toolchain = Toolchain(
        prefix=table.text("prefix", empty=True),
        cpu_flags=table.texts("cpu_flags"),
        packages=table.texts("packages"),
    )
    if table.has("standard"):
        toolchain = replace(toolchain, standard=table.text("standard"))
    if table.has("link_flags"):
        toolchain = replace(toolchain, link_flags=table.texts("link_flags"))
    if table.has("far_flags"):
        toolchain = replace(toolchain, far_flags=table.texts("far_flags"))
    table.end()
    return toolchain


def _read_port(table: _Table) -> dict[str, Any]:
    sources = tuple(table.file("sources", name) for name in table.texts("sources"))
    script = None
    if table.has("linker_script"):
        script = table.file("linker_script", table.text("linker_script"))
    table.end()
    return {"sources": sources, "linker_script": script}


def _read_memory(table: _Table | None) -> Memory | None:
    if table is None:
        return None
    memory = Memory(
        flash_origin=table.number("flash_origin", multiple_of=4),
        flash_bytes=table.number("flash_bytes", low=1),
        ram_origin=table.number("ram_origin", multiple_of=8),
        ram_bytes=table.number("ram_bytes", low=1),
        stack_bytes=table.number("stack_bytes", low=64, multiple_of=8),
        near_table_bytes=table.number("near_table_bytes")
        if table.has("near_table_bytes")
        else None,
    )
    if memory.stack_bytes >= memory.ram_bytes:
        table.fail("stack_bytes", "must be less than ram_bytes", memory.stack_bytes)
    table.end()
    return memory


def _read_clock(table: _Table | None) -> int | None:
    if table is None:
        return None
    clock_hz = table.number("hz", low=1)
    table.end()
    return clock_hz


def _read_uart(table: _Table | None) -> Uart | None:
    if table is None:
        return None
    uart = Uart(
        address=table.number("address"),
        interrupt=table.number("interrupt"),
        clock_hz=table.number("clock_hz", low=1),
        baud=table.number("baud", low=1),
    )
    table.end()
    return uart


def _read_timer(table: _Table | None) -> Timer | None:
    if table is None:
        return None
    timer = Timer(
        address=table.number("address"),
        interrupt=table.number("interrupt"),
        clock_hz=table.number("clock_hz", low=1),
    )
    table.end()
    return timer


def _read_uf2(table: _Table | None) -> int | None:
    if table is None:
        return None
    family = table.number("family")
    table.end()
    return family


def _read_defines(table: _Table | None) -> tuple[tuple[str, int], ...]:
    if table is None:
        return ()
    names = table.rest()
    for name in names:
        if not _MACRO.fullmatch(name):
            table.fail(name, "must be a macro's name that begins with EK_")
    return tuple((name, table.number(name)) for name in names)


def _read_usb(table: _Table | None) -> Usb | None:
    if table is None:
        return None
    ids = table.texts("ids")
    if not all(map(_USB_ID.fullmatch, ids)):
        table.fail("ids", "must be like 1234:abcd", repr(list(ids)))
    usb = Usb(
        ids,
        is_probe=table.has("probe") and table.flag("probe"),
        interface=table.number("interface") if table.has("interface") else None,
    )
    table.end()
    return usb


def _read_flash(table: _Table | None) -> Flash | None:
    if table is None:
        return None
    names = table.texts("runners")
    for name in names:
        if name not in SETTINGS:
            table.fail("runners", f"must be of {', '.join(SETTINGS)}", repr(name))
    settings = tuple(_read_settings(SETTINGS[name], table.table_or_empty(name)) for name in names)
    table.end()
    return Flash(names, settings)


def _read_settings(kind: type[RunnerSettings], table: _Table) -> RunnerSettings:
    """Reads the table of a runner: its keys are the fields of a class."""
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.default is MISSING or table.has(field.name):
            read = table.number if field.type == "int" else table.text
            values[field.name] = read(field.name)
            plain = field.name == "enter" or _PLAIN.fullmatch(str(values[field.name]))
            if not plain:
                table.fail(field.name, "has signs that no tool needs", repr(values[field.name]))
    table.end()
    return kind(**values)


def _read_emulator(table: _Table | None) -> Emulator | None:
    if table is None:
        return None
    kind = table.text("kind")
    if kind not in EMULATOR_KINDS:
        table.fail("kind", f"must be one of {', '.join(EMULATOR_KINDS)}", repr(kind))
    emulator = Emulator(
        kind=kind,
        program=table.text("program"),
        machine=table.text("machine"),
        options=table.texts("options") if table.has("options") else (),
        packages=table.texts("packages"),
    )
    table.end()
    return emulator


def _read_linux(table: _Table | None, top: dict[str, Any]) -> Linux | None:
    """Reads [linux]; the board's own target and [toolchain] are those of its last core."""
    if table is None:
        return None
    cores = [_read_linux_core(core) for core in table.tables("cores")]
    own = {**top["toolchain"], "target": top["target"], "features": []}
    own["architecture"] = table.text("architecture")
    cores.append(_read_linux_core(_Table(table.path, "linux", own)))
    linux = Linux(table.texts("hosts"), table.text("directory"), tuple(cores))
    table.end()
    return linux


def _read_linux_core(table: _Table) -> LinuxCore:
    architecture, target = table.text("architecture"), table.text("target")
    features = frozenset(table.texts("features"))
    return LinuxCore(architecture, features, target, _read_toolchain(table))
