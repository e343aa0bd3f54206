from __future__ import annotations

from pathlib import Path

import pytest

from edgekiln.errors import BadInputError
from edgekiln.export.targets import TARGETS
from edgekiln.firmware.boards import (
    BOARDS,
    board_slugs,
    load_board,
    read_board,
    refuse_linux,
)

VALID = (BOARDS / "mps2-an386.toml").read_text()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_boards_of_this_release_are_there() -> None:
    assert {
        "host",
        "mega",
        "mps2-an385",
        "mps2-an386",
        "stm32f405",
        "microbit",
        "hifive1",
        "pico",
        "rpi",
        "uno",
    } <= {*board_slugs()}


@pytest.mark.parametrize("slug", board_slugs())
def test_every_board_is_valid_and_names_a_target_of_the_compiler(slug: str) -> None:
    board = load_board(slug)
    assert board.slug == slug
    assert board.target in TARGETS
    assert board.is_host == (slug == "host")


def test_an_mps2_board_is_as_arm_describes_it() -> None:
    board = load_board("mps2-an386")
    assert board.target == "cortex-m4"
    assert "-mcpu=cortex-m4" in board.cpu_flags
    assert (board.flash_bytes, board.ram_bytes) == (4 << 20, 4 << 20)
    assert board.memory is not None
    assert (board.memory.flash_origin, board.memory.ram_origin) == (0, 0x2000_0000)
    assert board.is_emulated
    assert load_board("mps2-an385").target == "generic"


def test_the_host_has_no_memories_of_its_own() -> None:
    board = load_board("host")
    assert (board.flash_bytes, board.ram_bytes) == (None, None)
    assert not board.is_emulated
    assert board.c_macros() == {"EK_BOARD_NAME": '"host"'}


def test_ports_see_the_board_as_macros(tmp_path: Path) -> None:
    board = read_board(write(tmp_path, VALID + "\n[defines]\nEK_UART_TX_PIN = 24\n"))
    macros = board.c_macros()
    assert macros["EK_BOARD_NAME"] == '"mine"'
    assert macros["EK_CORE_CLOCK_HZ"] == "25000000u"
    assert macros["EK_UART_ADDRESS"] == "0x40004000u"
    assert macros["EK_UART_BAUD"] == "115200u"
    assert macros["EK_TIMER_CLOCK_HZ"] == "25000000u"
    assert macros["EK_UART_TX_PIN"] == "24u"


@pytest.mark.parametrize(
    ("slug", "near"),
    [
        ("mps2-an368", "mps2-an386"),
        ("MPS2-AN385", "mps2-an385"),
        ("zx81", ""),
        ("mps2an385", "mps2-an385"),
        ("hots", "host"),
    ],
)
def test_an_unknown_board_is_refused_with_the_nearest_name(slug: str, near: str) -> None:
    with pytest.raises(BadInputError) as caught:
        load_board(slug)
    message = str(caught.value)
    assert slug in message and ", ".join(board_slugs()) in message
    assert ("did you mean" in message) == bool(near)
    assert not near or message.endswith(f"did you mean {near}?")


def test_a_slug_is_not_a_path() -> None:
    with pytest.raises(BadInputError, match="no such board"):
        load_board("../boards/host")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('core = "Cortex-M4F"', "", "core: missing"),
        ('core = "Cortex-M4F"', "core = 4", "core: must be a text; got 4"),
        ('core = "Cortex-M4F"', 'core = ""', "core: must not be empty"),
        ('core = "Cortex-M4F"', 'core = "M4"\ncolour = "red"', "colour: unknown key"),
        ("baud = 115_200", 'baud = "fast"', "uart.baud: must be an integer; got 'fast'"),
        ("baud = 115_200", "baud = true", "uart.baud: must be an integer; got True"),
        ("baud = 115_200", "baud = 0", "uart.baud: must be at least 1"),
        ("baud = 115_200", "baud = 9_600\nparity = 1", "uart.parity: unknown key"),
        ("ram_bytes = 4_194_304", "ram_bytes = 2048", "memory.stack_bytes: must be less than"),
        ("stack_bytes = 2048", "stack_bytes = 2044", "memory.stack_bytes: must be a multiple of 8"),
        ("ram_origin = 0x2000_0000", "ram_origin = 0x1_0000_0000", "memory.ram_origin: must be"),
        ('"app/mem.c"', '"app/missing.c"', "port.sources: no such file"),
        ('"app/mem.c"', "7", "port.sources: must be a list of texts"),
        ('linker_script = "arm/cortex_m.ld"', "", "memory: [memory] and port.linker_script"),
        ("[clock]\nhz = 25_000_000", "", "clock: [memory] and [clock] are there together"),
        ("hz = 25_000_000\n\n[uart]", "hz = 0\n[uart]", "clock.hz: must be at least 1"),
        ('kind = "qemu"', "", "emulator.kind: missing"),
        ('kind = "qemu"', 'kind = "bochs"', "must be one of qemu, rp2040js, simavr; got 'bochs'"),
        ("[port]", "[ports]", "port: missing"),
        ("[emulator]", "[defines]\nlower = 1\n[emulator]", "defines.lower: must be a macro's name"),
        ("[emulator]", "emulator = 3\n[x]", "timer.emulator: unknown key"),
        ("[uart]", "[uart", "not a board file"),
        ("[uart]", "[usb]\nids = ['2E8A:a']\n[uart]", "usb.ids: must be like 1234:abcd"),
        ("[uart]", "[usb]\nids = []\nprobe = 1\n[uart]", "usb.probe: must be true or false"),
        ('"emulator", "gdb"', '"jtag"', "flash.runners: must be of emulator, uf2,"),
        ('"emulator", "gdb"', '"avrdude"', "flash.avrdude.part: missing"),
        (
            'runners = ["emulator", "gdb"]',
            'runners = ["gdb"]\ngdb = {server = "| sh"}',
            "flash.gdb.server: has signs that no tool needs",
        ),
        (
            'runners = ["emulator", "gdb"]',
            'runners = ["gdb"]\ngdb = {probe = "x"}',
            "flash.gdb.probe: unknown key",
        ),
        ('runners = ["emulator", "gdb"]', "runners = []\nuf2 = {}", "flash.uf2: unknown key"),
    ],
)
def test_a_damaged_board_is_refused_naming_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert VALID.count(old) == 1
    path = write(tmp_path, VALID.replace(old, new))
    with pytest.raises(BadInputError) as caught:
        read_board(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not a board file"):
        read_board(tmp_path / "none.toml")


def test_a_board_with_linux_takes_no_image() -> None:
    board = load_board("rpi")
    assert board.linux is not None and not board.is_host and not board.is_emulated
    assert board.linux.cores[-1].toolchain == board.toolchain
    assert {core.target for core in board.linux.cores} <= TARGETS.keys()
    with pytest.raises(BadInputError, match=r"^rpi: this board runs Linux and takes no image; use"):
        refuse_linux(board)
    refuse_linux(load_board("host"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('architecture = "aarch64" # of', 'architectur = "aarch64" # of', "architecture: missing"),
        ("features = []", "features = 1", r"linux.cores\[2\].features: must be a list of texts"),
        ("[linux]\n", "[linux]\nother = 1\n", "linux.other: unknown key"),
        ('directory = "edgekiln"', "directory = 1", "linux.directory: must be a text"),
    ],
)
def test_what_is_wrong_with_a_board_with_linux_is_named(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (BOARDS / "rpi.toml").read_text()
    assert old in text
    with pytest.raises(BadInputError, match=message):
        read_board(write(tmp_path, text.replace(old, new)))


def test_an_emulator_as_a_runner_has_to_be_there(tmp_path: Path) -> None:
    text = VALID.partition("[emulator]")[0] + "[flash]\nrunners = ['emulator']\n"
    with pytest.raises(BadInputError, match=r"flash\.runners: there is no \[emulator\]"):
        read_board(write(tmp_path, text))
