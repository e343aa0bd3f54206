"""Outputs of all types, models that remember, and floating point, in images of their own."""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tflite_builder import BuiltOp, BuiltTensor, build_model

from edgekiln.bench import protocol
from edgekiln.bench.protocol import Device
from edgekiln.errors import BoardError, DoesNotFitError
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.bundle import read_bundle
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image, check_fit, load_image, read_symbols

WriteToy = Callable[..., Path]

SANITIZERS = ["-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# Each output's values, and what `results` answers for them.
PRINTED = [
    ("uint8", 0.5, 255, [0, 254, 255], "-127.500,-0.500,0.000"),
    ("int16", 0.25, 0, [-32768, 32767, -1], "-8192.000,8191.750,-0.250"),
    ("int16", 2**-15, 0, [-32768, 1, 3], "-1.00000,0.00003,0.00009"),
    ("int16", 0.5, -7, [-7, 32767, -32768], "0.000,16387.000,-16380.500"),
    ("int8", None, None, [-128, 0, 127], "-128,0,127"),
    ("int32", 0.5, 3, [-(2**31), 2**31 - 1, 10], "-2147483648,2147483647,10"),
    ("uint32", None, None, [2**32 - 1, 0], "4294967295,0"),
    ("int64", None, None, [-(2**63), 2**63 - 1], "-9223372036854775808,9223372036854775807"),
    ("bool", None, None, [True, False], "1,0"),
    ("float32", None, None, [1, -0.5, 0, 1234567], "1.000000,-0.5000000,0.000,1234567"),
    ("float32", None, None, [math.inf, -math.inf, math.nan], "inf,-inf,nan"),
    ("float32", None, None, [1e-30, -3e38, 2e9], "1.000000e-30,-3.000000e38,2.000000e9"),
]


@contextlib.contextmanager
def running(image: Image) -> Iterator[Device]:
    with start_emulator(load_board(image.board), image) as emulator, Device(emulator.port) as there:
        there.hello()
        yield there


def printer(
    write_toy: WriteToy,
    directory: Path,
    arrays: list[tuple[object, ...]],
    flags: Sequence[str] = ("-Werror",),
) -> Image:
    """Builds a model for the host whose outputs are these arrays, whatever goes in."""
    outputs, data = [], b""
    for dtype, scale, zero_point, values in arrays:
        array = np.array(values, str(dtype))
        offset = 8 + len(data)
        outputs.append(
            {
                "dtype": dtype,
                "scale": scale,
                "zero_point": zero_point,
                "shape": [1, array.size],
                "offset": offset,
                "bytes": array.nbytes,
            }
        )
        data += array.tobytes()
    code = (
        "#include <string.h>\n"
        f"static const uint8_t data[] = {{{','.join(map(str, data))}}};\n"
        f"void toy_invoke(int8_t *arena) {{ memcpy(arena + 8, data, {len(data)}u); }}"
    )
    bundle = write_toy(code, outputs=outputs, arena_bytes=8 + len(data))
    return build_image(bundle, load_board("host"), directory, extra_flags=flags)


def test_values_of_every_type_are_printed(write_toy: WriteToy, tmp_path: Path) -> None:
    image = printer(write_toy, tmp_path, [row[:4] for row in PRINTED], SANITIZERS)
    with running(image) as device:
        answers = device._command("db load 4") + device._command("db 00000000")
        answers += device._command("infer 1 0")
        assert device.results()[:3] == (-127.5, -0.5, 0.0)
    assert answers[-1] == f"m-results-[{','.join(row[4] for row in PRINTED)}]"


def test_an_image_holds_no_code_for_what_its_outputs_are_not(
    write_toy: WriteToy, tmp_path: Path
) -> None:
    names = ("plain", "integers", "all")
    rows = ([("int8", 0.5, 0, [1])], [PRINTED[5][:4]], [PRINTED[n][:4] for n in (1, 5, 9)])
    plain, integers, everything = (
        printer(write_toy, tmp_path / name, list(row)).flash_app_bytes
        for name, row in zip(names, rows, strict=True)
    )
    assert plain < integers < everything


def test_real_numbers_are_printed_to_six_digits(write_toy: WriteToy, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 4000, dtype=np.uint32)
    edges = [1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x3F7FFFFF, 0x4B000000, 0x4B800001]
    values = np.concatenate([bits, np.array(edges, np.uint32)]).view(np.float32)
    values = values[np.isfinite(values)]
    image = printer(write_toy, tmp_path, [("float32", None, None, list(values))], SANITIZERS)
    with running(image) as device:
        device.load(bytes(4))
        found = device.infer().results
    np.testing.assert_allclose(found, values.astype(np.float64), rtol=6e-7)


# ---- models that remember ----

# The output is the sum of all inputs since the reset, which starts at 100.
REMEMBERS = """
void toy_reset(toy_state *state) { state->bytes[0] = 100; }
void toy_invoke(int8_t *arena, toy_state *state)
{
    state->bytes[0] = (uint8_t)(state->bytes[0] + (uint8_t)arena[0]);
    arena[8] = (int8_t)state->bytes[0];
    arena[9] = 0;
    EK_AFTER_NODE(0, arena + 8, 2);
}
"""


@pytest.fixture(params=["host", pytest.param("mps2-an386", marks=pytest.mark.emulator)])
def adder(request: pytest.FixtureRequest, write_toy: WriteToy, tmp_path: Path) -> Image:
    bundle = write_toy(REMEMBERS, state_bytes=3)
    return build_image(bundle, load_board(request.param), tmp_path, extra_flags=["-Werror"])


def test_each_load_starts_anew_unless_it_is_part_of_a_stream(adder: Image) -> None:
    assert adder.state_bytes == 3 <= adder.bss_bytes
    assert load_image(adder.elf.parent) == adder
    rows = [bytes([n, 0, 0, 0]) for n in (1, 2, 4)]
    with running(adder) as device:
        assert [device.run(row)[0] for row in rows] == [101, 102, 104]
        steps: list[int] = []
        for _ in range(2):  # a stream starts anew, too
            answers = device.run_stream(rows, steps.append)
            assert [output[0] for output, _ in answers] == [101, 103, 107]
        assert steps == [1, 2, 3] * 2
        assert device.run(rows[0])[0] == 101
        device._command("stream 1")
        counted = [device._run(row, runs=n + 1)[0][0] for n, row in enumerate(rows)]
        assert counted == [101, 103, 107]
        device.end_stream()
        assert [device.run(row)[0] for row in rows] == [101, 102, 104]
        device.load(rows[0])
        assert device._command("stream") == ["m-stream-1"]
        with pytest.raises(BoardError, match="No complete input is loaded"):
            device.infer()


def test_a_stream_that_the_line_spoils_begins_anew(
    write_toy: WriteToy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_toy(REMEMBERS, state_bytes=1)
    image = build_image(bundle, load_board("host"), tmp_path)
    left = [3]

    def spoil(lines: Sequence[str]) -> tuple[int, bytes]:
        left[0] -= 1
        return read_output(
            [line.replace("data=", "data=f") for line in lines] if not left[0] else lines
        )

    read_output = protocol._read_output
    monkeypatch.setattr(protocol, "_read_output", spoil)
    with running(image) as device:
        answers = device.run_stream([bytes([n, 0, 0, 0]) for n in (1, 2, 4, 8)])
        assert [output[0] for output, _ in answers] == [101, 103, 107, 115]
        assert device.retries == 1


def test_the_golden_pair_begins_with_a_reset(write_toy: WriteToy, tmp_path: Path) -> None:
    bundle = write_toy(REMEMBERS, state_bytes=1)
    image = build_image(bundle, load_board("host"), tmp_path, selftest=True, extra_flags=SANITIZERS)
    with running(image) as device:
        assert {device.selftest() for _ in range(3)} == {2}  # 101 is not 5, 0 is not 6


def test_a_model_that_remembers_nothing_has_no_streams(
    digits_image: Callable[[str, str], Image],
) -> None:
    with (
        running(digits_image("mlp", "host")) as device,
        pytest.raises(BoardError, match="Unknown command: stream"),
    ):
        device.run_stream([bytes(64)])


def test_a_state_counts_where_ram_is_scarce(write_toy: WriteToy) -> None:
    bundle = read_bundle(write_toy(REMEMBERS, state_bytes=5_000_000))
    with pytest.raises(DoesNotFitError, match=r"\(arena 16, state 5000000, stack 2048, variables"):
        check_fit(bundle, load_board("mps2-an386"))


# ---- floating point ----


@pytest.fixture(scope="module")
def float_model() -> bytes:
    generator = np.random.default_rng(1)
    weights = generator.normal(size=(3, 4)).astype(np.float32)
    tensors = [
        BuiltTensor((1, 4), "FLOAT32"),
        BuiltTensor((3, 4), "FLOAT32", data=weights),
        BuiltTensor((3,), "FLOAT32", data=np.zeros(3, np.float32)),
        BuiltTensor((1, 3), "FLOAT32"),
        BuiltTensor((1, 3), "FLOAT32"),
    ]
    matrix = BuiltOp("FULLY_CONNECTED", [0, 1, 2], [3], "FullyConnectedOptions", {})
    softmax = BuiltOp("SOFTMAX", [3], [4], "SoftmaxOptions", {"Beta": 1.0})
    return build_model(tensors, [matrix, softmax], [0], [4])


@pytest.mark.emulator
@pytest.mark.parametrize("slug", ["mps2-an386", "mps2-an385"])
def test_float_models_take_no_heap_no_stdio_no_library_but_the_compilers(
    float_model: bytes, tmp_path: Path, slug: str
) -> None:
    board = load_board(slug)
    write_bundle(compile_model(float_model, name="f", target=board.target), tmp_path / "c")
    image = build_image(tmp_path / "c", board, tmp_path, extra_flags=["-Werror"])
    names = set(read_symbols(image.elf))
    never = re.compile(
        r"(m|c|re)alloc|free|_sbrk|.*printf.*|_?exit|abort|(exp|tanh|sqrt)f?|__aeabi_d.*"
    )
    assert not [name for name in names if never.fullmatch(name)]
    in_software = [name for name in names if name.startswith("__aeabi_f")]
    assert bool(in_software) == (slug == "mps2-an385")
    row = struct.pack("<4f", 1, -2, 3, 0.5)
    with running(image) as device:
        values = np.frombuffer(device.run(row), np.float32)
        assert device.results() == pytest.approx(values.tolist(), rel=1e-6)
        assert (device.counters().stack_bytes or 0) < image.stack_reserve_bytes / 2
    assert values.sum() == pytest.approx(1, abs=1e-6)
