"""uno and mega: images for AVR, and the same bytes as on the host under simavr."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from avr import require_avr
from numpy.typing import NDArray
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench.compiled import CompiledRunner
from edgekiln.bench.device import DeviceRun, run_on_board
from edgekiln.bench.protocol import Device
from edgekiln.errors import BadInputError, BoardError, DoesNotFitError, ToolMissingError
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.export.interpret import run_graph
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image, read_symbols

DigitsImage = Callable[[str, str], Image]
DigitsBundle = Callable[[str, str], Path]
WriteToy = Callable[..., Path]

BOARDS = ("uno", "mega")
HELD_OUT = 360

# What is linked beside the project's own code, from libgcc and avr-libc: integers wider than a
# register, start-up, mem functions; and names of registers and of the linker script.
ALLOWED = re.compile(
    r"__(u|us|mulu?)?mul(hi|si|u?hi|u?si|di)\w*|__u?divmod[hs]i4\w*|__u?mul\w*"
    r"|__(ashl|ashr|lshr)(hi|si|di)3|__clz[hsd]i2|__do_(clear_bss|copy_data)|mem(cpy|move|set)"
    r"|__(SP_[HL]|SREG|RAMPZ|EIND|tmp_reg|zero_reg)__|__(bss|data)_\w+"
)
NEVER = re.compile(r"(m|c|re)alloc|free|.*printf.*|.*puts|exit|abort|__fp_\w+|__\w+[sd]f[23]?")

pytestmark = pytest.mark.emulator


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    require_avr()


@pytest.fixture(scope="module")
def held_out(shared: Path) -> NDArray[np.int8]:
    """The digits that no training has seen, int8 [360, 8, 8, 1] as both models take them."""
    from edgekiln.train.datasets import load_dataset

    x = load_dataset("digits").x_test
    return (np.round(x * 255) - 128).astype(np.int8).reshape(-1, 8, 8, 1)


@pytest.fixture(scope="module")
def run_digits(
    digits_image: DigitsImage, held_out: NDArray[np.int8]
) -> Callable[[str, str, int], DeviceRun]:
    """Runs the first held-out digits on a board, once for each board, model and number."""
    made: dict[tuple[str, str, int], DeviceRun] = {}

    def run(model: str, slug: str, samples: int) -> DeviceRun:
        key = (model, slug, samples)
        if key not in made:
            made[key] = run_on_board(
                digits_image(model, slug), load_board(slug), (held_out[:samples],)
            )
        return made[key]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "slug", "samples"),
    [("mlp", "uno", HELD_OUT), ("mlp", "mega", HELD_OUT), ("cnn", "mega", 4)],
)
def test_every_byte_is_that_of_the_host(
    run_digits: Callable[[str, str, int], DeviceRun],
    digits_bundle: DigitsBundle,
    held_out: NDArray[np.int8],
    model: str,
    slug: str,
    samples: int,
) -> None:
    run = run_digits(model, slug, samples)
    assert len(held_out) == HELD_OUT
    (wanted,) = CompiledRunner(digits_bundle(model, "avr")).run((held_out[:samples],))
    (got,) = run.outputs
    assert got.shape == (samples, 10)
    np.testing.assert_array_equal(got.reshape(wanted.shape), wanted)
    assert run.emulated and run.counted == "cycles" and "simavr" in run.cycles_model
    assert run.instructions is None and run.latency_us is None
    assert run.cycles is not None and run.per_node_cycles is not None
    assert 0 < sum(run.per_node_cycles) < run.cycles
    assert run.stack_bytes is not None
    board = load_board(slug)
    assert board.memory is not None
    assert 0 < run.stack_bytes < board.memory.stack_bytes


def test_the_uno_has_room_for_digits(digits_image: DigitsImage) -> None:
    image = digits_image("mlp", "uno")
    assert image.flash_bytes <= 32768 - 512
    assert image.bin is not None and image.bin.stat().st_size == image.flash_bytes
    assert image.data_bytes == 0  # constants and texts stay in flash
    assert image.bss_bytes <= 80
    assert image.ram_bytes(image.stack_reserve_bytes) <= 2048


@pytest.mark.parametrize("slug", BOARDS)
def test_no_heap_no_stdio_no_floating_point(digits_image: DigitsImage, slug: str) -> None:
    names = read_symbols(digits_image("mlp", slug).elf)
    libraries = {name for name in names if name.startswith(("__", "mem"))}
    assert not [name for name in names if NEVER.fullmatch(name)]
    assert not {name for name in libraries if not ALLOWED.fullmatch(name)}
    assert {"__mulsidi3", "__do_clear_bss"} <= libraries


# Exactly so many cycles, node by node, as the data sheets say: LDI and DEC take 1, BRNE 2 or at
# last 1, LPM 3, RJMP 2. RET takes 4, and 5 where the program counter has 22 bits.
KNOWN = """
__attribute__((naked)) void toy_invoke(int8_t *arena __attribute__((unused)))
{
    __asm__ volatile("ldi r24, 100\\n"
                     "1: dec r24\\n"
                     "brne 1b\\n"
                     ".globl ek_after_node_0\\nek_after_node_0:\\n"
                     ".globl ek_after_node_1\\nek_after_node_1:\\n"
                     "ldi r30, 0\\n"
                     "ldi r31, 0\\n"
                     "lpm r24, Z+\\n"
                     "ldi r24, 7\\n"
                     ".globl ek_after_node_2\\nek_after_node_2:\\n"
                     "3: dec r24\\n"
                     "brne 3b\\n"
                     "rjmp 4f\\n"
                     "4:\\n"
                     ".globl ek_after_node_3\\nek_after_node_3:\\n"
                     "ret\\n");
}
"""


@pytest.mark.parametrize(("slug", "ret_cycles"), [("uno", 4), ("mega", 5)])
def test_cycles_are_those_of_the_data_sheet(
    write_toy: WriteToy, tmp_path: Path, slug: str, ret_cycles: int
) -> None:
    board = load_board(slug)
    image = build_image(write_toy(KNOWN, nodes=4), board, tmp_path / "out")
    with start_emulator(board, image) as emulator, Device(emulator.port) as device:
        assert device.hello() == slug
        for _ in range(3):
            device.run(bytes(4))
            (count,) = emulator.take_counts()
            assert count.per_node == (1 + 100 * 3 - 1, 0, 1 + 1 + 3 + 1, 7 * 3 - 1 + 2)
            assert count.total == sum(count.per_node) + ret_cycles


def test_a_stack_that_meets_the_variables_is_reported(write_toy: WriteToy, tmp_path: Path) -> None:
    code = """
    static __attribute__((noinline)) int8_t deep(volatile int8_t *above, int16_t depth)
    {
        volatile int8_t here[32];
        for (uint8_t i = 0; i < 32; ++i) { here[i] = above[0]; }
        return depth > 0 ? (int8_t)(deep(here, (int16_t)(depth - 1)) + here[0]) : here[0];
    }
    void toy_invoke(int8_t *arena)
    {
        arena[8] = deep(arena, arena[0]);
        EK_AFTER_NODE(0, arena + 8, 2);
    }
    """
    board = load_board("uno")
    image = build_image(write_toy(code), board, tmp_path / "out")
    with start_emulator(board, image) as emulator, Device(emulator.port) as device:
        assert device.hello() == "uno"
        device.run(bytes([3, 0, 0, 0]))
        shallow = device.counters().stack_bytes
        device.run(bytes([6, 0, 0, 0]))
        deeper = device.counters().stack_bytes
        assert shallow is not None and deeper is not None
        assert 3 * 32 < deeper - shallow < 3 * 64
        with pytest.raises(BoardError, match="Stack overflow"):
            device.run(bytes([54, 0, 0, 0]))


@pytest.mark.parametrize("slug", BOARDS)
def test_the_time_passes_as_on_the_clock(
    digits_image: DigitsImage, held_out: NDArray[np.int8], slug: str
) -> None:
    """Time stamps count the cycles that the emulator counts, in steps of 64 microseconds."""
    board, image = load_board(slug), digits_image("mlp", slug)
    with start_emulator(board, image) as emulator, Device(emulator.port) as device:
        device.hello()
        _, elapsed_us = device.run_timed(held_out[0].tobytes())
        (count,) = emulator.take_counts()
        assert board.clock_hz is not None
        assert abs(elapsed_us - count.total * 1e6 / board.clock_hz) <= 128 + 50


def test_a_model_that_is_too_large_is_refused(
    digits_bundle: DigitsBundle, write_toy: WriteToy, tmp_path: Path
) -> None:
    with pytest.raises(DoesNotFitError, match="digits_cnn on uno: RAM is too small by"):
        build_image(digits_bundle("cnn", "avr"), load_board("uno"), tmp_path / "out")
    code = """
    static const __flash int8_t first[20000] = {1}, second[20000] = {2};
    void toy_invoke(int8_t *a) { a[8] = first[a[0] & 127]; a[9] = second[a[0] & 127]; }
    """
    with pytest.raises(DoesNotFitError, match="toy on uno: flash is too small by"):
        build_image(write_toy(code), load_board("uno"), tmp_path / "out")


def test_tables_beyond_64_kb_are_reached(tmp_path: Path) -> None:
    """Three dense layers of 30 kB each: mega reads them by pointers of 24 bits."""
    generator = np.random.default_rng(3)
    size = 175
    tensors = [BuiltTensor((1, size), "INT8", (0.05,), (-4,))]
    ops = []
    for node in range(3):
        codes = generator.integers(-128, 128, (size, size)).astype(np.int8)
        weights = BuiltTensor(codes.shape, "INT8", (0.01,), (0,), 0, codes)
        tensors += [weights, BuiltTensor((1, size), "INT8", (0.4 * 2**node,), (node,))]
        ops.append(
            BuiltOp(
                "FULLY_CONNECTED",
                [2 * node, 2 * node + 1],
                [2 * node + 2],
                "FullyConnectedOptions",
                {},
            )
        )
    compiled = compile_model(build_model(tensors, ops, [0], [6]), name="far", target="avr")
    write_bundle(compiled, tmp_path / "c")
    board = load_board("mega")
    image = build_image(tmp_path / "c", board, tmp_path / "image", extra_flags=["-Werror"])
    assert "-DEK_FLASH=__memx" in image.flags
    assert image.flash_constants_bytes > 3 * size * size > 1 << 16
    x = generator.integers(-128, 128, (2, 1, size)).astype(np.int8)
    (got,) = run_on_board(image, board, (x,)).outputs
    wanted = [run_graph(compiled.graph, [row])[0] for row in x]
    np.testing.assert_array_equal(got.reshape(2, 1, size), np.stack(wanted))
    assert len(np.unique(got)) > 50


def test_a_missing_emulator_is_one_line(
    digits_image: DigitsImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = digits_image("mlp", "uno")
    monkeypatch.setenv("PATH", "/nonexistent")
    with (
        pytest.raises(ToolMissingError, match=r"simavr or its library is not installed.*apt-get"),
        start_emulator(load_board("uno"), image),
    ):
        pass


def test_a_port_that_cannot_reach_its_speed_does_not_compile(
    digits_bundle: DigitsBundle, tmp_path: Path
) -> None:
    board = load_board("uno")
    assert board.uart is not None
    fast = dataclasses.replace(board, uart=dataclasses.replace(board.uart, baud=1_500_000))
    with pytest.raises(BadInputError, match="the baud rate is off"):
        build_image(digits_bundle("mlp", "avr"), fast, tmp_path)
