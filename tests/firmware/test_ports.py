"""Every board: what its image holds, and that it answers with the host's bytes where it can run."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from numpy.typing import NDArray

from edgekiln.bench.device import run_on_board
from edgekiln.bench.protocol import Device
from edgekiln.bench.runners import CompiledRunner
from edgekiln.errors import BoardError
from edgekiln.firmware.boards import FIRMWARE, Board, Emulator, board_slugs, load_board
from edgekiln.firmware.bundle import read_bundle
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image
from edgekiln.quantize.affine import quantize_array
from edgekiln.train.datasets import load_dataset

DigitsBundle = Callable[[str, str], Path]
DigitsImage = Callable[[str, str], Image]
WriteToy = Callable[..., Path]

BOARDS = [load_board(slug) for slug in board_slugs()]
# AVR, which has too little memory for this model, has tests of its own: test_avr.py.
MICROCONTROLLERS = [b.slug for b in BOARDS if b.memory is not None and b.target != "avr"]
#: The other emulators count cycles and take their time; test_pico.py and the like run them.
EMULATED = [board.slug for board in BOARDS if board.emulator and board.emulator.kind == "qemu"]

#: Boards that no emulator knows, and one whose emulator runs their code: it has the same UART
#: and timer at the same places, and at least their memory. Its clock tree is not modelled.
RELATIVES = {
    "blackpill-f411": ("stm32f405", ()),
    "nucleo-f401re": ("stm32f405", ("-serial", "null")),  # its UART is the second
    "nucleo-f446re": ("stm32f405", ("-serial", "null")),
}

#: What libgcc may add: integer arithmetic that a core has no instructions for. No other library
#: is linked.
LIBGCC = {
    *("__aeabi_idiv0", "__aeabi_ldiv0", "__aeabi_lmul", "__aeabi_uidiv", "__aeabi_uidivmod"),
    *("__aeabi_idiv", "__aeabi_idivmod", "__clz_tab", "__clzsi2", "__muldi3", "__udivsi3"),
    ".udivsi3_skip_div0_test",
}
ASSEMBLER_LABEL = re.compile(r"^(\w+):", re.MULTILINE)
OWN_FUNCTION = re.compile(r"(\w+)\((?:[^;{}()]|\([^()]*\))*\)\n\{")


def need_tools(board: Board, *, emulator: bool = False) -> None:
    """Skips where a board's compiler or emulator is missing; in CI that is a failure."""
    programs = [f"{board.toolchain.prefix}gcc"]
    if emulator and board.emulator:
        programs.append(board.emulator.program)
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        reason = f"not installed: {', '.join(missing)} (CI=true make setup installs them)"
        (pytest.fail if in_ci else pytest.skip)(reason)


def functions_of(elf: Path) -> set[str]:
    """The names of all code in an ELF, without the compiler's endings for clones."""
    with elf.open("rb") as stream:
        symbols = ELFFile(stream).get_section_by_name(".symtab").iter_symbols()
        code = {s.name for s in symbols if s["st_info"]["type"] in ("STT_FUNC", "STT_NOTYPE")}
    names = {re.sub(r"\.(isra|constprop|part)\.\d+", "", name) for name in code}
    return {name for name in names if name and not name.startswith("$")}


# ---- what is in an image ----


@pytest.mark.parametrize("slug", MICROCONTROLLERS)
@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_no_heap_no_stdio_no_floating_point(
    digits_image: DigitsImage, digits_bundle: DigitsBundle, slug: str, model: str
) -> None:
    board = load_board(slug)
    need_tools(board)
    image = digits_image(model, slug)
    bundle = read_bundle(digits_bundle(model, board.target))
    sources = [FIRMWARE / name for name in ("app/main.c", *board.sources)]
    sources += [bundle.directory / name for name in bundle.sources]
    headers = [*FIRMWARE.glob("*/*.h"), *bundle.directory.glob("*.h")]
    text = "\n\n".join(path.read_text() for path in (*sources, *headers))
    ours = set(OWN_FUNCTION.findall(text)) | set(ASSEMBLER_LABEL.findall(text))
    found = functions_of(image.elf)
    labels = {
        name for name in found if re.match(r"ek_(after_node_\d+|\w+_(start|end|top|bottom))$", name)
    }
    assert {"main", "ek_reset", f"digits_{model}_invoke"} <= found & ours
    assert found - ours - labels - LIBGCC <= {"ek_data_image"}


@pytest.mark.parametrize("slug", MICROCONTROLLERS)
def test_the_image_lies_in_the_chips_memories(digits_image: DigitsImage, slug: str) -> None:
    board = load_board(slug)
    need_tools(board)
    assert board.memory is not None
    memory = board.memory
    with digits_image("cnn", slug).elf.open("rb") as stream:
        segments = [s.header for s in ELFFile(stream).iter_segments("PT_LOAD") if s["p_memsz"]]
    flash = range(memory.flash_origin, memory.flash_origin + memory.flash_bytes)
    ram = range(memory.ram_origin, memory.ram_origin + memory.ram_bytes)
    loaded = [s for s in segments if s.p_filesz]
    assert min(s.p_paddr for s in loaded) == memory.flash_origin
    for segment in loaded:
        assert segment.p_paddr in flash and segment.p_paddr + segment.p_filesz - 1 in flash
    for segment in segments:
        where = flash if segment.p_vaddr in flash else ram
        assert segment.p_vaddr in where and segment.p_vaddr + segment.p_memsz - 1 in where


# ---- running ----


@pytest.fixture(scope="module")
def digits_inputs(digits_bundle: DigitsBundle) -> NDArray[np.int8]:
    """The whole test set as the model takes it: int8 [360, 8, 8, 1]."""
    tensor = read_bundle(digits_bundle("cnn", "host")).inputs[0]
    assert tensor.scale is not None
    samples = load_dataset("digits").x_test
    return quantize_array(samples, tensor.scale, tensor.zero_point, np.dtype(np.int8))


@pytest.fixture(scope="module")
def host_outputs(digits_bundle: DigitsBundle, digits_inputs: NDArray[np.int8]) -> NDArray[np.int8]:
    """What the generated C answers on this machine: int8 [360, 10]."""
    (outputs,) = CompiledRunner(digits_bundle("cnn", "host")).run((digits_inputs,))
    return outputs


@pytest.mark.emulator
@pytest.mark.parametrize("slug", EMULATED)
def test_every_byte_of_the_test_set_equals_the_hosts(
    digits_image: DigitsImage,
    digits_inputs: NDArray[np.int8],
    host_outputs: NDArray[np.int8],
    slug: str,
) -> None:
    board = load_board(slug)
    need_tools(board, emulator=True)
    image = digits_image("cnn", slug)
    run = run_on_board(image, board, digits_inputs, progress=False)
    assert len(digits_inputs) == 360
    np.testing.assert_array_equal(run.outputs[0], host_outputs)
    assert run.emulated and run.latency_us is None
    assert run.stack_bytes is not None and 100 < run.stack_bytes < image.stack_reserve_bytes
    assert (run.counted, run.cycles_model) == ("instructions", "")
    assert run.counts is not None and len(run.counts) == 360
    for count in run.counts:
        assert sum(count.per_node) + count.overhead == count.total > image.macs
        for node, cost in zip(image.nodes, count.per_node, strict=True):
            assert (cost == 0) == (node.op == "RESHAPE")


@pytest.mark.emulator
@pytest.mark.parametrize("slug", EMULATED)
def test_counts_repeat(
    digits_image: DigitsImage, digits_inputs: NDArray[np.int8], slug: str
) -> None:
    board = load_board(slug)
    need_tools(board, emulator=True)
    image = digits_image("cnn", slug)
    first, second = (
        run_on_board(image, board, digits_inputs[:3], progress=False).counts for _ in range(2)
    )
    assert first == second


def stand_in(slug: str) -> Board:
    """A board with the emulator of its relative."""
    name, options = RELATIVES[slug]
    emulator = load_board(name).emulator
    assert isinstance(emulator, Emulator)
    emulator = dataclasses.replace(emulator, options=(*emulator.options, *options))
    return dataclasses.replace(load_board(slug), emulator=emulator)


@pytest.mark.emulator
@pytest.mark.parametrize("slug", RELATIVES)
def test_code_of_a_board_without_an_emulator_runs_on_its_relatives(
    digits_image: DigitsImage,
    digits_inputs: NDArray[np.int8],
    host_outputs: NDArray[np.int8],
    slug: str,
) -> None:
    assert load_board(slug).emulator is None
    board = stand_in(slug)
    run = run_on_board(digits_image("cnn", slug), board, digits_inputs[:20], progress=False)
    np.testing.assert_array_equal(run.outputs[0], host_outputs[:20])


@pytest.mark.emulator
@pytest.mark.parametrize("slug", [*EMULATED, *RELATIVES])
def test_time_goes_on_while_the_board_sleeps(digits_image: DigitsImage, slug: str) -> None:
    board = stand_in(slug) if slug in RELATIVES else load_board(slug)
    need_tools(board, emulator=True)
    with (
        start_emulator(board, digits_image("cnn", slug), count=False) as emulator,
        Device(emulator.port) as device,
    ):
        assert device.hello() == slug
        first = device.timestamp()
        second = device.timestamp()
        assert 0 <= first < second


# A recursion that no compiler takes apart: every level needs more than 64 bytes.
DEEP = """
static __attribute__((noinline)) int8_t dig(volatile const int8_t *from, int8_t depth)
{
    volatile int8_t here[64];
    for (int i = 0; i < 64; ++i) { here[i] = from[0]; }
    return depth > 0 ? (int8_t)(dig(here, (int8_t)(depth - 1)) + here[9]) : here[3];
}
void toy_invoke(int8_t *arena)
{
    arena[8] = dig(arena, arena[3]);
    arena[9] = 0;
    EK_AFTER_NODE(0, arena + 8, 2);
}
"""


@pytest.mark.emulator
@pytest.mark.parametrize("slug", EMULATED)
def test_the_stacks_peak_is_what_was_used(write_toy: WriteToy, tmp_path: Path, slug: str) -> None:
    board = load_board(slug)
    need_tools(board, emulator=True)
    image = build_image(write_toy(DEEP), board, tmp_path / "out")
    with (
        start_emulator(board, image, count=False) as emulator,
        Device(emulator.port) as device,
    ):
        device.hello()
        peaks = []
        for depth in (3, 4, 6):
            device.run(bytes([1, 0, 0, depth]))
            stack_bytes = device.counters().stack_bytes
            assert stack_bytes is not None
            peaks.append(stack_bytes)
        level = peaks[1] - peaks[0]
        assert level > 64
        assert peaks[2] - peaks[1] == 2 * level


@pytest.mark.emulator
@pytest.mark.parametrize("slug", EMULATED)
def test_a_stack_overflow_is_no_result(write_toy: WriteToy, tmp_path: Path, slug: str) -> None:
    board = load_board(slug)
    need_tools(board, emulator=True)
    image = build_image(write_toy(DEEP), board, tmp_path / "out")
    depth = image.stack_reserve_bytes // 64 + 4
    inputs = np.array([[1, 0, 0, 0], [1, 0, 0, depth]], dtype=np.int8)
    run_on_board(image, board, inputs[:1], progress=False)
    with pytest.raises(BoardError, match=r"[Ss]tack overflow|the stack overflowed"):
        run_on_board(image, board, inputs, progress=False)
