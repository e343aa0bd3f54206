"""The board pico: its image, its boot, its clocks, and rp2040js in its place."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serial
from elftools.elf.elffile import ELFFile

from edgekiln.bench.compiled import CompiledRunner
from edgekiln.bench.device import run_on_board
from edgekiln.bench.protocol import Device
from edgekiln.errors import BadInputError, BoardError, ToolMissingError
from edgekiln.export.interpret import run_graph
from edgekiln.export.tflite_reader import read_tflite
from edgekiln.firmware import rp2040js
from edgekiln.firmware.boards import BOARDS, load_board, read_board
from edgekiln.firmware.boot2 import boot2_checksum, seal_boot2
from edgekiln.firmware.counting import InferenceCount
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image, load_image, read_symbols
from edgekiln.firmware.installed import missing_tools, steps_to_install
from edgekiln.firmware.uf2 import decode_uf2, encode_uf2
from edgekiln.train.datasets import load_dataset

WriteToy = Callable[..., Path]
DigitsImage = Callable[[str, str], Image]

FLASH = 0x1000_0000

# Cycles of a Cortex-M0+ (its technical reference manual, 3.3): a move, shift or subtraction 1, a
# branch that is taken 2, one that is not 1, a load 2, BX 2.
#   node 0: 1 + 100 * 3 - 1; node 1: none, and no label of its own address;
#   node 2: 2 + 1 + 50 * 3 - 1, and its label is where node 3's loop begins; node 3: 7 * 3 - 1.
KNOWN = """
__attribute__((naked)) void toy_invoke(int8_t *arena __attribute__((unused)))
{
    __asm__ volatile(".syntax unified\\n"
                     "movs r1, #100\\n"
                     "1: subs r1, #1\\n"
                     "bne 1b\\n"
                     ".globl ek_after_node_0\\nek_after_node_0:\\n"
                     ".globl ek_after_node_1\\nek_after_node_1:\\n"
                     "ldr r2, [r0]\\n"
                     "movs r1, #50\\n"
                     "2: subs r1, #1\\n"
                     "bne 2b\\n"
                     "movs r1, #7\\n"
                     ".globl ek_after_node_2\\nek_after_node_2:\\n"
                     "3: subs r1, #1\\n"
                     "bne 3b\\n"
                     ".globl ek_after_node_3\\nek_after_node_3:\\n"
                     "bx lr\\n");
}
"""
KNOWN_COUNT = InferenceCount(300 + 153 + 20 + 2, (300, 0, 153, 20))


@pytest.fixture(scope="module")
def emulator() -> Path:
    """The emulator's module; without it a test is skipped, in continuous integration it fails."""
    try:
        rp2040js.find_node()
        return rp2040js.find_rp2040js()
    except ToolMissingError as error:
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        return (pytest.fail if in_ci else pytest.skip)(str(error))


@pytest.fixture
def toy_image(write_toy: WriteToy, tmp_path: Path) -> Callable[..., Image]:
    def make(code: str, *, nodes: int = 1) -> Image:
        return build_image(write_toy(code, nodes=nodes), load_board("pico"), tmp_path / "out")

    return make


# ---- the image ----


@pytest.mark.emulator
def test_all_forms_of_the_image_hold_the_same(digits_image: DigitsImage) -> None:
    image = digits_image("mlp", "pico")
    assert image.uf2 is not None and image.bin is not None
    written = decode_uf2(image.uf2.read_bytes())
    plain = image.bin.read_bytes()
    assert (written.address, written.family) == (FLASH, 0xE48BFF56)
    assert written.data == plain.ljust(len(written.data), b"\0")
    assert len(plain) == image.flash_bytes
    with image.elf.open("rb") as stream:
        (segment,) = (s for s in ELFFile(stream).iter_segments("PT_LOAD") if s["p_filesz"])
        assert (segment["p_paddr"], segment.data()) == (FLASH, plain)
    assert load_image(image.elf.parent) == image


@pytest.mark.emulator
def test_the_flash_begins_with_what_the_bootrom_wants(digits_image: DigitsImage) -> None:
    image = digits_image("mlp", "pico")
    assert image.bin is not None
    stage, vectors = image.bin.read_bytes()[:256], image.bin.read_bytes()[256:264]
    assert int.from_bytes(stage[252:], "little") == boot2_checksum(stage[:252]) != 0
    symbols = read_symbols(image.elf)
    assert int.from_bytes(vectors[:4], "little") == symbols["ek_stack_top"]
    assert int.from_bytes(vectors[4:], "little") == symbols["ek_reset"] + 1


@pytest.mark.emulator
def test_only_an_image_with_a_second_stage_is_sealed(
    digits_image: DigitsImage, tmp_path: Path
) -> None:
    for slug in ("mps2-an385", "pico"):
        image = digits_image("mlp", slug)
        copy = shutil.copy(image.elf, tmp_path / "image.elf")
        seal_boot2(Path(copy))  # once more changes nothing
        assert Path(copy).read_bytes() == image.elf.read_bytes()
    (tmp_path / "x").write_bytes(b"MZ")
    with pytest.raises(BadInputError, match="not an ELF file"):
        seal_boot2(tmp_path / "x")


@pytest.mark.emulator
def test_a_second_stage_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text('__attribute__((section(".boot2"))) const char stage[255] = {1};')
    command = ["arm-none-eabi-gcc", "-c", tmp_path / "a.c", "-o", tmp_path / "a.elf"]
    subprocess.run(command, check=True)
    with pytest.raises(BadInputError, match="wrong size; got 255 bytes; allowed: 256 bytes"):
        seal_boot2(tmp_path / "a.elf")


@pytest.mark.emulator
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_image_needs_no_library_but_the_compilers(
    digits_image: DigitsImage, model: str
) -> None:
    own = r"ek_\w+|digits_\w+|n\d+_\w+|main|mem(cpy|move|set|cmp)"
    integers = r"__(u?div[sd]i3|muldi3|clzsi2|aeabi_(u?idiv(mod)?|[il]div0|lmul|l[al]s[lr]))"
    allowed = re.compile(f"{own}|{integers}")
    image = digits_image(model, "pico")
    command = ["arm-none-eabi-nm", "--defined-only", "--extern-only", "--format=just-symbols"]
    listing = subprocess.run([*command, image.elf], capture_output=True, text=True, check=True)
    names = listing.stdout.split()
    assert "ek_boot2" in names
    assert [name for name in names if not allowed.fullmatch(name)] == []


def test_a_board_file_names_its_family_of_chips(tmp_path: Path) -> None:
    text = (BOARDS / "pico.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("0xE48B_FF56", "0xADA5_2840"))
    assert read_board(tmp_path / "mine.toml").uf2_family == 0xADA52840
    assert load_board("mps2-an385").uf2_family is None
    (tmp_path / "mine.toml").write_text(text.replace("0xE48B_FF56", '"rp2040"'))
    with pytest.raises(BadInputError, match=r"uf2\.family: must be an integer"):
        read_board(tmp_path / "mine.toml")


# ---- boot and clocks, with doubles in place of parts of the chip ----


@pytest.fixture(scope="module")
def probe(emulator: Path, digits_image: DigitsImage) -> Callable[..., Any]:
    def boot(flash: str = "enabled", fault: str = "none") -> Any:
        image = digits_image("mlp", "pico")
        script = Path(__file__).with_name("pico_probe.mjs")
        command = [rp2040js.find_node(), script, rp2040js.SCRIPT, emulator, image.uf2, flash, fault]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    return boot


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("flash", "reads", "transactions"),
    [
        ("enabled", "quad, clock / 2", ["35 2", "eb a0"]),
        ("volatile", "quad, clock / 2", ["35 2", "50", "31 2", "35 2", "eb a0"]),
        ("fixed", "serial, clock / 4", ["35 2", "50", "31 2", "35 2"]),
    ],
)
def test_the_second_stage_makes_any_flash_readable(
    probe: Callable[..., Any], flash: str, reads: str, transactions: list[str]
) -> None:
    booted = probe(flash)
    assert (booted["reads"], booted["transactions"]) == (reads, transactions)
    assert booted["vectors"] == FLASH + 256
    assert booted["said"].endswith("m-init-done\r\nm-ready\r\n")


@pytest.mark.emulator
def test_the_chip_is_set_up_for_full_speed(probe: Callable[..., Any]) -> None:
    booted = probe()
    assert booted["clkSys"] == load_board("pico").clock_hz == 125_000_000
    assert abs(booted["baud"] - 115_200) < 115_200 * 0.001
    assert booted["functions"] == [2, 2]  # GP0 and GP1 are the UART's
    assert booted["pads"][1] & 0b1100 == 0b1000  # what is received is pulled up
    assert booted["unknown"] == []
    assert booted["cycles"] < 20_000


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("fault", "clock_hz", "baud"),
    [("pll", 12_000_000, 115_200), ("xosc", 6_500_000, 115_200 * 6.5 / 12)],
)
def test_a_clock_that_does_not_start_hangs_nothing(
    probe: Callable[..., Any], fault: str, clock_hz: int, baud: float
) -> None:
    booted = probe(fault=fault)
    assert booted["clkSys"] == clock_hz
    assert abs(booted["baud"] - baud) < baud * 0.001
    assert booted["said"].endswith("m-ready\r\n")
    assert booted["cycles"] < 2_000_000


# ---- the emulator ----


@pytest.mark.emulator
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_bytes_equal_the_definition_and_cycles_repeat(
    emulator: Path, digits_image: DigitsImage, root: Path, model: str
) -> None:
    image, board = digits_image(model, "pico"), load_board("pico")
    graph = read_tflite((root / f"tests/golden/digits_{model}_int8.tflite").read_bytes(), model)
    samples = np.load(root / "tests/golden/digits_inputs.npz")["inputs"][:6]
    samples = samples.reshape(-1, *graph.tensor(graph.inputs[0]).shape[1:])
    samples[5] = samples[2]
    run = run_on_board(image, board, samples)
    wanted = np.concatenate([run_graph(graph, [row[None]])[0] for row in samples])
    np.testing.assert_array_equal(run.outputs[0], wanted)
    assert run.retries == 0
    assert (run.counted, run.instructions, run.latency_us) == ("cycles", None, None)
    assert "XIP cache is not modelled" in run.cycles_model
    assert run.emulated
    assert run.counts is not None and run.counts[5] == run.counts[2]
    for count in run.counts:
        assert sum(count.per_node) + count.overhead == count.total
        for node, cycles in zip(image.nodes, count.per_node, strict=True):
            assert cycles >= node.macs
    assert run.stack_bytes is not None and 0 < run.stack_bytes < image.stack_reserve_bytes


@pytest.mark.emulator
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_digit_of_the_test_set_equals_the_hosts(
    emulator: Path, digits_image: DigitsImage, digits_bundle: Callable[[str, str], Path]
) -> None:
    image = digits_image("cnn", "pico")
    tensor = image.inputs[0]
    assert tensor.scale is not None
    pictures = load_dataset("digits").x_test
    codes = np.round(pictures / tensor.scale) + tensor.zero_point
    inputs = np.clip(codes, -128, 127).astype(np.int8)
    assert len(inputs) == 360
    run = run_on_board(image, load_board("pico"), inputs, progress=False)
    wanted = CompiledRunner(digits_bundle("cnn", "host")).run((inputs,))
    np.testing.assert_array_equal(run.outputs[0], wanted[0])
    assert run.retries == 0


@pytest.mark.emulator
def test_a_known_program_is_counted_to_the_cycle(
    emulator: Path, toy_image: Callable[..., Image]
) -> None:
    image = toy_image(KNOWN, nodes=4)
    with (
        start_emulator(load_board("pico"), image) as running,
        Device(running.port) as device,
    ):
        assert device.hello() == "pico"
        assert running.take_counts() == ()
        device.load(bytes(4))
        device.infer(2, 1)
        assert running.take_counts() == (KNOWN_COUNT,) * 3
    assert KNOWN_COUNT.overhead == 2


@pytest.mark.emulator
def test_the_boards_time_is_that_of_its_cycles(
    emulator: Path, digits_image: DigitsImage, root: Path
) -> None:
    """125 cycles are a microsecond: the timer and the core's clock agree."""
    row = np.load(root / "tests/golden/digits_inputs.npz")["inputs"][0].tobytes()
    with (
        start_emulator(load_board("pico"), digits_image("cnn", "pico")) as running,
        Device(running.port) as device,
    ):
        device.hello()
        _, elapsed_us = device.run_timed(row)
        (count,) = running.take_counts()
        before, after = device.timestamp(), device.timestamp()
    assert 0 <= elapsed_us - count.total / 125 < 50
    assert before < after


@pytest.mark.emulator
def test_without_counting_there_are_no_counts(emulator: Path, digits_image: DigitsImage) -> None:
    image = digits_image("mlp", "pico")
    with (
        start_emulator(load_board("pico"), image, count=False) as running,
        Device(running.port) as device,
    ):
        device.hello()
        device.run(bytes(image.input_bytes))
        assert (running.counts, running.take_counts()) == (None, ())


@pytest.mark.emulator
def test_an_access_to_nothing_ends_the_emulator_with_the_reason(
    emulator: Path, toy_image: Callable[..., Image]
) -> None:
    code = "void toy_invoke(int8_t *arena) { arena[8] = *(volatile int8_t *)0x30000000; }"
    with (
        start_emulator(load_board("pico"), toy_image(code)) as running,
        Device(running.port, timeout_s=0.5, infer_timeout_s=5) as device,
    ):
        device.hello()
        device.load(bytes(4))
        with pytest.raises(BoardError):
            device.infer()
        with pytest.raises(BoardError, match=r"invalid memory address: 30000000 \(pc 0x1000"):
            running.check_alive(within_s=10)


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:32] + b"?" + data[33:], "checksum is wrong"),
        (lambda data: bytes(len(data)), "no block of UF2 is for the RP2040"),
        (lambda data: encode_uf2(bytes(256), 0x2000_0000, 0xE48BFF56), "not for the flash"),
        (lambda data: encode_uf2(bytes(256), FLASH, 0xADA52840), "no block of UF2"),
    ],
)
def test_a_file_that_the_chip_would_not_boot(
    emulator: Path,
    digits_image: DigitsImage,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    image = digits_image("mlp", "pico")
    assert image.uf2 is not None
    directory = shutil.copytree(image.elf.parent, tmp_path / "out")
    (directory / "image.uf2").write_bytes(damage(image.uf2.read_bytes()))
    with (
        pytest.raises(BoardError, match=rf"ended with code 1; got .*{message}"),
        start_emulator(load_board("pico"), load_image(directory)),
    ):
        pass


@pytest.mark.emulator
def test_a_slow_reader_loses_nothing(emulator: Path, write_toy: WriteToy, tmp_path: Path) -> None:
    """An answer larger than all buffers between the UART and the reader, left lying for a while."""
    size = 2500
    output = {"dtype": "int8", "scale": 0.5, "zero_point": 0, "shape": [1, size]}
    code = f"void toy_invoke(int8_t *arena) {{ for (int i = 0; i < {size}; ++i) {{ arena[8 + i] = "
    code += "(int8_t)(i * 7); } }"
    bundle = write_toy(code, outputs=[{**output, "offset": 8, "bytes": size}], arena_bytes=8 + size)
    image = build_image(bundle, load_board("pico"), tmp_path / "out")
    with (
        start_emulator(load_board("pico"), image) as running,
        serial.Serial(running.port, timeout=0.2) as port,
    ):
        port.write(b"db load 4%db 00000000%infer 1 0%output%")
        time.sleep(1)
        said = b""
        deadline = time.monotonic() + 60
        while not re.search(rb"m-output.*m-ready", said, re.DOTALL):
            assert time.monotonic() < deadline
            said += port.read(100)
    (data,) = re.findall(rb"data=([0-9a-f]+)", said)
    assert data == bytes(i * 7 % 256 for i in range(size)).hex().encode()


# ---- getting the emulator ----


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without rp2040js, and a PATH that holds stand-ins only."""
    monkeypatch.setattr("sys.prefix", str(tmp_path / "environment"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def add_npm(environment: Path, version: str, code: int = 0) -> None:
    body = f"""#!/bin/sh
echo "$@" >"{environment}/asked"
/bin/mkdir -p node_modules/rp2040js
echo '{{"version": "{version}"}}' >node_modules/rp2040js/package.json
echo "npm error code EINTEGRITY" >&2
exit {code}
"""
    (environment / "bin" / "npm").write_text(body)
    (environment / "bin" / "npm").chmod(0o755)


def test_without_it_one_line_says_how_to_get_it(environment: Path) -> None:
    with pytest.raises(ToolMissingError, match=r"node is not installed; .* nodejs npm$"):
        rp2040js.find_node()
    with pytest.raises(ToolMissingError, match=r"npm is not installed; .* nodejs npm$"):
        rp2040js.install()
    with pytest.raises(
        ToolMissingError,
        match=r"^rp2040js \d+\.\d+\.\d+ is not installed; "
        r"install it with: \S+ -m edgekiln\.firmware\.rp2040js$",
    ):
        rp2040js.find_rp2040js()


def test_it_is_installed_as_the_lock_says(environment: Path) -> None:
    add_npm(environment, rp2040js.wanted_version())
    directory = rp2040js.install()
    assert rp2040js.find_rp2040js() == directory / "node_modules" / "rp2040js"
    assert (environment / "asked").read_text() == "ci --ignore-scripts --no-audit --no-fund\n"
    lock = json.loads((directory / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/rp2040js"]["integrity"].startswith("sha512-")


def test_another_version_is_not_taken(environment: Path) -> None:
    add_npm(environment, "0.0.1")
    rp2040js.install()
    with pytest.raises(ToolMissingError, match=r"is not installed; got version 0\.0\.1"):
        rp2040js.find_rp2040js()


def test_a_failed_installation_leaves_nothing(environment: Path) -> None:
    add_npm(environment, rp2040js.wanted_version(), code=1)
    with pytest.raises(ToolMissingError, match="could not install rp2040js; got npm error code E"):
        rp2040js.install()
    assert not rp2040js.install_directory().exists()


def test_the_list_of_boards_tells_whether_it_is_there(environment: Path) -> None:
    board = load_board("pico")
    for name in ("node", "arm-none-eabi-gcc"):
        (environment / "bin" / name).touch(mode=0o755)
    assert [tool.program for tool in missing_tools(board)] == ["rp2040js"]
    assert steps_to_install(missing_tools(board)).endswith(" -m edgekiln.firmware.rp2040js")
    add_npm(environment, rp2040js.wanted_version())
    rp2040js.install()
    assert missing_tools(board) == ()
    (environment / "bin" / "node").unlink()
    assert steps_to_install(missing_tools(board)) == "nodejs npm"
