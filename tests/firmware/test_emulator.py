from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekiln.bench.protocol import Device
from edgekiln.errors import BadInputError, BoardError, ToolMissingError
from edgekiln.export.interpret import run_graph
from edgekiln.export.tflite_reader import read_tflite
from edgekiln.firmware.boards import Board, Emulator, load_board
from edgekiln.firmware.counting import CountPlan, InferenceCount, build_plugin
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image

WriteToy = Callable[..., Path]
DigitsImage = Callable[[str, str], Image]

# Exactly so many instructions, node by node:
#   node 0: 1 + 2 * 1000; node 1: none, and no label of its own address;
#   node 2: 1 + 2 * 50 + 1, and its label is where node 3's loop begins; node 3: 2 * 7.
# The return is left over.
KNOWN = """
__attribute__((naked)) void toy_invoke(int8_t *arena __attribute__((unused)))
{
    __asm__ volatile(".syntax unified\\n"
                     "movw r1, #1000\\n"
                     "1: subs r1, #1\\n"
                     "bne 1b\\n"
                     ".globl ek_after_node_0\\nek_after_node_0:\\n"
                     ".globl ek_after_node_1\\nek_after_node_1:\\n"
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
KNOWN_COUNT = InferenceCount(2001 + 102 + 14 + 1, (2001, 0, 102, 14))

# What a fault and an overflow look like in C.
FAULT = "void toy_invoke(int8_t *arena) { arena[8] = *(volatile int8_t *)0xF0000000; }"
# A stack pointer that has left RAM: not even the fault's own registers can be stored there.
OVERFLOW = """
__attribute__((naked)) void toy_invoke(int8_t *arena __attribute__((unused)))
{
    __asm__ volatile("ldr r1, =0x38000000\\nmov sp, r1\\npush {r0, lr}\\n.ltorg\\n");
}
"""

# Copies its input, writes over it, and uses more stack when the input asks for it.
CAREFUL = """
static __attribute__((noinline)) int8_t use_stack(int8_t fill)
{
    volatile int8_t here[256];
    for (int i = 0; i < 256; ++i) { here[i] = fill; }
    return here[17];
}
void toy_invoke(int8_t *arena)
{
    arena[8] = arena[0];
    arena[9] = arena[3] > 0 ? use_stack(arena[3]) : arena[3];
    EK_AFTER_NODE(0, arena + 8, 2);
    for (int i = 0; i < 4; ++i) { arena[i] = 99; }
}
"""


@pytest.fixture
def toy_image(write_toy: WriteToy, tmp_path: Path) -> Callable[..., Image]:
    def make(code: str, slug: str = "mps2-an386", *, nodes: int = 1, **options: bool) -> Image:
        bundle = write_toy(code, nodes=nodes)
        return build_image(bundle, load_board(slug), tmp_path / f"out-{slug}", **options)

    return make


def digits(root: Path, model: str) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Inputs, real digits and noise, and what the definition of the ops makes of them."""
    graph = read_tflite((root / f"tests/golden/digits_{model}_int8.tflite").read_bytes(), model)
    real = np.load(root / "tests/golden/digits_inputs.npz")["inputs"][:24]
    shape = tuple(graph.tensor(graph.inputs[0]).shape)
    noise = np.random.default_rng(7).integers(-128, 128, (8, *shape[1:])).astype(np.int8)
    quantization = graph.tensor(graph.inputs[0]).q
    if real.dtype != np.int8:
        steps = np.round(real / quantization.scale) + quantization.zero_point
        real = np.clip(steps, -128, 127).astype(np.int8)
    inputs = np.concatenate([real.reshape(-1, *shape[1:]), noise])
    outputs = [run_graph(graph, [row[None]])[0][0] for row in inputs]
    return inputs, np.stack(outputs)


# ---- the whole way: real models, real protocol, every byte ----


@pytest.mark.emulator
@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("slug", ["mps2-an386", "mps2-an385", "host"])
def test_bytes_equal_the_definition_and_counts_repeat(
    digits_image: DigitsImage, root: Path, model: str, slug: str
) -> None:
    image = digits_image(model, slug)
    board = load_board(slug)
    inputs, wanted = digits(root, model)
    runs = []
    for rows in (inputs, inputs[:4]):
        with start_emulator(board, image) as emulator, Device(emulator.port) as device:
            assert device.hello() == slug
            got = [device.run(row.tobytes()) for row in rows]
            assert got == [row.tobytes() for row in wanted[: len(rows)]]
            assert device.retries == 0
            runs.append(emulator.take_counts())
    if slug == "host":
        assert runs == [(), ()]
        return
    assert len(runs[0]) == len(inputs)
    assert runs[1] == runs[0][:4]
    for count in runs[0]:
        assert sum(count.per_node) + count.overhead == count.total
        assert len(count.per_node) == len(image.nodes)
        assert 0 < count.overhead < 30
        for node, instructions in zip(image.nodes, count.per_node, strict=True):
            # The densest kernel has two channels in one lane: four products to a SMLAD.
            assert instructions >= node.macs / 4
            assert (instructions == 0) == (node.op == "RESHAPE")


# ---- counting ----


@pytest.mark.emulator
@pytest.mark.parametrize("arguments", [(), ("each=on",)])
def test_a_known_program_is_counted_exactly(
    toy_image: Callable[..., Image], arguments: tuple[str, ...]
) -> None:
    image = toy_image(KNOWN, nodes=4)
    board = load_board("mps2-an386")
    with (
        start_emulator(board, image, plugin_arguments=arguments) as emulator,
        Device(emulator.port) as device,
    ):
        device.hello()
        assert emulator.take_counts() == ()
        device.load(bytes(4))
        device.infer(2, 1)
        assert emulator.take_counts() == (KNOWN_COUNT,) * 3
        device.infer(1)
        assert emulator.take_counts() == (KNOWN_COUNT,)
    assert KNOWN_COUNT.overhead == 1


@pytest.mark.emulator
def test_counting_by_callbacks_as_newer_emulators_need_it(
    toy_image: Callable[..., Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekiln.firmware import counting

    defines = counting._plugin_defines("true")  # prints no version, as an old one
    assert defines == ("-DEK_PLUGIN_API=1", "-DEK_PLUGIN_INLINE=1")
    api, _ = counting._plugin_defines("qemu-system-arm")
    changed = (api, "-DEK_PLUGIN_INLINE=0")
    monkeypatch.setattr(counting, "_plugin_defines", lambda qemu: changed)
    with (
        start_emulator(load_board("mps2-an386"), toy_image(KNOWN, nodes=4)) as emulator,
        Device(emulator.port) as device,
    ):
        device.hello()
        device.load(bytes(4))
        device.infer(2)
        assert emulator.take_counts() == (KNOWN_COUNT,) * 2


@pytest.mark.parametrize(
    ("version", "defines"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)", "-DEK_PLUGIN_API=1"),
        ("QEMU emulator version 8.2.2 (Debian)", "-DEK_PLUGIN_API=1"),
        ("QEMU emulator version 9.0.0", "-DEK_PLUGIN_API=2"),
        ("QEMU emulator version 10.0.3 (Debian)", "-DEK_PLUGIN_API=2"),
    ],
)
def test_the_plugin_claims_what_the_emulator_takes(
    tmp_path: Path, version: str, defines: str
) -> None:
    from edgekiln.firmware import counting

    fake = tmp_path / "qemu"
    fake.write_text(f"#!/bin/sh\necho '{version}'\n")
    fake.chmod(0o755)
    assert counting._plugin_defines(str(fake))[0] == defines


@pytest.mark.emulator
def test_counting_by_runs_equals_counting_one_by_one(digits_image: DigitsImage, root: Path) -> None:
    image = digits_image("cnn", "mps2-an386")
    inputs, _ = digits(root, "cnn")
    counts = []
    for arguments in ((), ("each=on",)):
        with (
            start_emulator(load_board("mps2-an386"), image, plugin_arguments=arguments) as emulator,
            Device(emulator.port) as device,
        ):
            device.hello()
            device.run(inputs[0].tobytes())
            counts.append(emulator.take_counts())
    assert counts[0] == counts[1] != ()


@pytest.mark.emulator
def test_invoke_returns_where_counting_ends(digits_image: DigitsImage) -> None:
    """The label follows the call: the instruction before it is a BL (Armv7-M, T1: 4 bytes)."""
    from edgekiln.firmware.image import read_symbols

    image = digits_image("mlp", "mps2-an386")
    assert image.bin is not None
    end = read_symbols(image.elf)["ek_invoke_end"]
    call = image.bin.read_bytes()[end - 4 : end]
    assert call[1] & 0xF8 == 0xF0 and call[3] & 0xD0 == 0xD0


def test_counts_are_read_as_the_plan_says(digits_image: DigitsImage) -> None:
    plan = CountPlan(dataclasses.replace(digits_image("mlp", "host"), nodes=()))
    assert plan.parse("12\n7\n") == (InferenceCount(12, ()), InferenceCount(7, ()))
    with pytest.raises(BoardError, match="did not pass all of its nodes; got 1 nodes; allowed: 0"):
        plan.parse("12 3\n")


@pytest.mark.emulator
def test_the_plugin_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    qemu = shutil.which("qemu-system-arm")
    assert qemu is not None
    monkeypatch.setenv("EDGEKILN_CACHE", str(tmp_path / "cache"))
    first = build_plugin(qemu)
    made = first.stat().st_mtime_ns
    assert build_plugin(qemu) == first
    assert first.stat().st_mtime_ns == made
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.name]


@pytest.mark.emulator
def test_without_counting_there_are_no_counts(toy_image: Callable[..., Image]) -> None:
    image = toy_image(CAREFUL)
    with (
        start_emulator(load_board("mps2-an386"), image, count=False) as emulator,
        Device(emulator.port) as device,
    ):
        device.hello()
        device.run(bytes(4))
        assert emulator.take_counts() == ()
        assert not emulator.counts


# ---- the application ----


@pytest.mark.emulator
@pytest.mark.parametrize("slug", ["mps2-an386", "host"])
def test_only_the_first_inference_after_a_load_counts(
    toy_image: Callable[..., Image], slug: str
) -> None:
    image = toy_image(CAREFUL, slug)
    with (
        start_emulator(load_board(slug), image) as emulator,
        Device(emulator.port) as device,
    ):
        device.hello()
        with pytest.raises(BoardError, match="No complete input is loaded"):
            device.infer()
        with pytest.raises(BoardError, match="No result"):
            device.results()
        device.load(bytes([3, 0, 0, 5]))
        assert device.infer(3, 2).results == (2.0, 3.0)  # 0.5 * (code + 1)
        assert device.infer(2).results == (2.0, 3.0)
        assert device.results() == (2.0, 3.0)
        assert device.run(bytes([250, 0, 0, 129])) == bytes([250, 129])
        assert device.results() == (-2.5, -63.0)
        with pytest.raises(BadInputError, match="got 5 bytes; allowed: 4 bytes"):
            device.load(bytes(5))


@pytest.mark.emulator
def test_the_deepest_stack_is_reported(toy_image: Callable[..., Image]) -> None:
    image = toy_image(CAREFUL)
    with (
        start_emulator(load_board("mps2-an386"), image, count=False) as emulator,
        Device(emulator.port) as device,
    ):
        device.hello()
        device.run(bytes(4))
        flat = device.counters().stack_bytes
        device.run(bytes([0, 0, 0, 1]))
        deep = device.counters().stack_bytes
        device.run(bytes(4))
        assert device.counters().stack_bytes == deep
    assert flat is not None and deep is not None
    assert 0 < flat < 256 < deep < flat + 300


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("code", "message"),
    [(FAULT, r"the board stopped: Fault pc=0000[0-9a-f]{4} status=0*8200"),
     (OVERFLOW, r"the board stopped: Stack overflow pc=00000000 status=")],
)  # fmt: skip
def test_a_fault_is_reported_at_once(
    toy_image: Callable[..., Image], code: str, message: str
) -> None:
    image = toy_image(code)
    with (
        start_emulator(load_board("mps2-an386"), image, count=False) as emulator,
        Device(emulator.port) as device,
    ):
        device.hello()
        device.load(bytes(4))
        started = time.monotonic()
        with pytest.raises(BoardError, match=message):
            device.infer()
        assert time.monotonic() - started < 30  # not a time-out of 60 s


@pytest.mark.emulator
def test_the_golden_pair_is_run_on_the_board(toy_image: Callable[..., Image]) -> None:
    code = "void toy_invoke(int8_t *arena) { arena[8] = (int8_t)(arena[3] + 1); arena[9] = 7; }"
    image = toy_image(code, selftest=True)
    with (
        start_emulator(load_board("mps2-an386"), image, count=False) as emulator,
        Device(emulator.port) as device,
    ):
        device.hello()
        assert device.selftest() == 1  # 5 is right, 7 should be 6
        with pytest.raises(BoardError, match="No complete input"):
            device.infer()


@pytest.mark.emulator
def test_time_runs(digits_image: DigitsImage) -> None:
    for slug in ("mps2-an385", "host"):
        with (
            start_emulator(load_board(slug), digits_image("mlp", slug), count=False) as emulator,
            Device(emulator.port) as device,
        ):
            device.hello()
            before, real_before = device.timestamp(), time.monotonic()
            time.sleep(0.02)
            after, real_after = device.timestamp(), time.monotonic()
            assert 20_000 <= after - before <= (real_after - real_before) * 1e6 + 50_000


@pytest.mark.emulator
def test_variables_have_their_initial_values(write_toy: WriteToy, tmp_path: Path) -> None:
    code = """
    static volatile int8_t initialised = 41;
    static volatile int8_t zeroed[5];
    void toy_invoke(int8_t *arena) {
        arena[8] = ++initialised;
        arena[9] = (int8_t)(zeroed[4] = (int8_t)(zeroed[4] + 1));
    }"""
    board = load_board("mps2-an386")
    image = build_image(write_toy(code, arena_bytes=17), board, tmp_path / "out")
    assert image.data_bytes == 4
    assert image.bin is not None and image.flash_bytes == image.bin.stat().st_size
    with (
        start_emulator(board, image, count=False) as emulator,
        Device(emulator.port) as device,
    ):
        device.hello()
        assert device.run(bytes(4)) == bytes([42, 1])
        assert device.run(bytes(4)) == bytes([43, 2])


# ---- starting and ending ----


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.emulator
@pytest.mark.parametrize("slug", ["mps2-an386", "host"])
def test_the_emulator_ends_with_the_block_even_after_an_error(
    digits_image: DigitsImage, slug: str
) -> None:
    image = digits_image("mlp", slug)
    pid = 0
    with (
        pytest.raises(ZeroDivisionError),
        start_emulator(load_board(slug), image, count=False) as emulator,
    ):
        pid = emulator.pid
        assert is_running(pid)
        raise ZeroDivisionError
    assert pid and not is_running(pid)


def emulated(board: Board, **changes: str) -> Board:
    assert isinstance(board.emulator, Emulator)
    return dataclasses.replace(board, emulator=dataclasses.replace(board.emulator, **changes))


@pytest.mark.emulator
def test_an_emulator_that_gives_up_is_quoted(digits_image: DigitsImage) -> None:
    board = emulated(load_board("mps2-an386"), machine="no-such-machine")
    with (
        pytest.raises(BoardError, match=r"ended with code 1; got .*unsupported machine type.*"),
        start_emulator(board, digits_image("mlp", "mps2-an386")),
    ):
        pass


@pytest.mark.emulator
def test_an_application_that_does_not_start(
    toy_image: Callable[..., Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = toy_image(CAREFUL)
    code = image.elf.read_bytes()
    reset = bytes.fromhex("0448 0549 8d46")  # ldr r0, …; ldr r1, …; mov sp, r1
    assert code.count(reset) == 1
    image.elf.write_bytes(code.replace(reset, bytes.fromhex("fee7 0549 8d46")))  # b .
    monkeypatch.setattr("edgekiln.firmware.emulators.base._START_SECONDS", 0.3)
    with (
        pytest.raises(BoardError, match="the application did not start"),
        start_emulator(load_board("mps2-an386"), image, count=False),
    ):
        pass


@pytest.mark.emulator
def test_an_emulator_that_dies_is_noticed(digits_image: DigitsImage) -> None:
    image = digits_image("mlp", "mps2-an386")
    with (
        start_emulator(load_board("mps2-an386"), image) as emulator,
        Device(emulator.port, timeout_s=0.3) as device,
    ):
        device.hello()
        emulator.check_alive()
        os.kill(emulator.pid, 9)
        with pytest.raises(BoardError):
            device.run(bytes(64))
        with pytest.raises(BoardError, match="qemu-system-arm ended with code -9"):
            emulator.check_alive(within_s=5)


@pytest.mark.emulator
def test_an_emulator_that_is_not_installed(digits_image: DigitsImage) -> None:
    board = emulated(load_board("mps2-an386"), program="qemu-system-none")
    with (
        pytest.raises(ToolMissingError, match="apt-get install qemu-system-arm") as caught,
        start_emulator(board, digits_image("mlp", "mps2-an386")),
    ):
        pass
    assert caught.value.exit_code == 3


@pytest.mark.emulator
def test_a_board_without_an_emulator(digits_image: DigitsImage) -> None:
    board = dataclasses.replace(load_board("mps2-an386"), emulator=None)
    with (
        pytest.raises(ToolMissingError, match="no emulator for this board"),
        start_emulator(board, digits_image("mlp", "mps2-an386")),
    ):
        pass


def test_an_image_of_another_board_is_refused(digits_image: DigitsImage) -> None:
    with (
        pytest.raises(BadInputError, match="built for another board; got host"),
        start_emulator(load_board("mps2-an386"), digits_image("mlp", "host")),
    ):
        pass
