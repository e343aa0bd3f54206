"""The application's own words, and the small C parts that it is made of."""

from __future__ import annotations

import ctypes
import os
import random
import re
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import serial

from edgekiln.firmware.boards import FIRMWARE, load_board
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image

WriteToy = Callable[..., Path]

# Its output: input byte 0, and input byte 3 minus 1. Scale 0.5, zero point -1.
CODE = """
void toy_invoke(int8_t *arena)
{
    arena[8] = arena[0];
    arena[9] = (int8_t)(arena[3] - 1);
    EK_AFTER_NODE(0, arena + 8, 2);
    arena[0] = 55;
}
"""


@pytest.fixture(scope="module")
def toy(write_toy_into: WriteToy, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The toy on the host, under the address and undefined-behaviour sanitizers."""
    directory = tmp_path_factory.mktemp("application")
    flags = ["-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    bundle = write_toy_into(directory, CODE)
    return build_image(bundle, load_board("host"), directory, selftest=True, extra_flags=flags)


@pytest.fixture
def say(toy: Image) -> Iterator[Callable[[bytes], list[str]]]:
    """Sends bytes to the application and returns the lines that it answers."""
    with (
        start_emulator(load_board("host"), toy) as running,
        serial.Serial(running.port, 115_200, timeout=5) as port,
    ):
        port.write(b"name%")  # opening a port drops what came before, perhaps half a line
        assert port.read_until(b"]\r\nm-ready\r\n").endswith(b"m-name-dut-[host]\r\nm-ready\r\n")

        def ask(command: bytes) -> list[str]:
            port.write(command)
            answer = b""
            for _ in range(command.count(b"%")):
                answer += port.read_until(b"m-ready\r\n")
            return answer.decode("ascii").split("\r\n")[:-2]

        yield ask


Say = Callable[[bytes], list[str]]


def checked(text: str) -> str:
    return f"{text}*{zlib.crc32(text.encode()):08x}"


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"name%", ["m-name-dut-[host]"]),
        (b"\r\n name%", ["m-name-dut-[host]"]),
        (b"name ignored words%", ["m-name-dut-[host]"]),
        (b"profile%", ["m-profile-[ULPMark for tinyML Firmware V0.0.1]", "m-model-[toy]"]),
        (b"%", []),
        (b"names%", ["e-[Unknown command: names]"]),
        (b"nam%", ["e-[Unknown command: nam]"]),
        (b"a-very-long-command%", ["e-[Unknown command: a-very-lon]"]),
        (b"db%", ["e-[db what?]"]),
        (b"db load%", ["e-[The model takes 4 bytes]"]),
        (b"db load 5%", ["e-[The model takes 4 bytes]"]),
        (b"db load 4x%", ["e-[The model takes 4 bytes]"]),
        (b"db load 4294967300%", ["e-[The model takes 4 bytes]"]),
        (b"db load 4%", ["m-[Expecting 4 bytes]"]),
        (b"db 00%", ["e-[db load comes first]"]),
        (b"data 00%", ["e-[db load comes first]"]),
        (b"infer%", ["e-[No complete input is loaded]"]),
        (b"infer 0%", ["e-[No inferences]"]),
        (b"infer -1%", ["e-[No inferences]"]),
        (b"results%", ["e-[No result]"]),
        (b"output%", ["e-[No result]"]),
        (b"counters%", [checked("m-counters-[stack_bytes=0,arena_bytes=16]")]),
        (b"selftest%", [checked("m-selftest-[mismatched_bytes=2]")]),
        (
            b"about%",
            [checked(f"m-about-[model=toy,sha256={'ab' * 32},input_bytes=4,output_bytes=2]")],
        ),
    ],
)
def test_one_command(say: Say, command: bytes, answer: list[str]) -> None:
    assert say(command) == answer


def test_it_says_when_it_has_started(digits_image: Callable[[str, str], Image]) -> None:
    with start_emulator(load_board("host"), digits_image("mlp", "host")) as running:
        port = os.open(running.port, os.O_RDWR | os.O_NOCTTY)
        greeting = b"m-timestamp-mode-performance\r\nm-init-done\r\nm-ready\r\n"
        said = b""
        while len(said) < len(greeting):
            said += os.read(port, len(greeting))
        os.close(port)
    assert said == greeting


def test_help_names_every_command(say: Say) -> None:
    words = " ".join(say(b"help%")).split()
    for command in (
        "name",
        "profile",
        "timestamp",
        "db",
        "infer",
        "results",
        "data",
        "run",
        "output",
    ):
        assert command in words


def test_a_whole_run(say: Say) -> None:
    assert say(b"db load 4%") == ["m-[Expecting 4 bytes]"]
    assert say(b"db 01%") == []
    assert say(b"infer 1 0%") == ["e-[No complete input is loaded]"]
    assert say(b"db fF%db 7f81aabbcc%") == ["m-ready", "m-load-done"]
    assert say(b"db 00%") == ["e-[db load comes first]"]
    assert say(b"db print%") == ["m-buffer-01-ff-7f-81"]
    start, done, begin, one, two, end, results = say(b"infer 1 0%")
    assert (start, done) == ("m-warmup-start-0", "m-warmup-done")
    assert (begin, end) == ("m-infer-start-1", "m-infer-done")
    assert re.fullmatch(r"m-lap-us-\d+", one) and re.fullmatch(r"m-lap-us-\d+", two)
    assert results == "m-results-[1.000,-63.500]"  # 0.5 * (1 + 1) and 0.5 * (-127 - 1 + 1)
    assert say(b"results%") == ["m-results-[1.000,-63.500]"]
    assert say(b"db print%") == ["e-[Overwritten]"]
    crc = zlib.crc32(bytes.fromhex("01ff7f81"))
    assert re.fullmatch(answer(crc, runs=1, data="0180"), say(b"output%")[0])


def answer(crc: int, *, runs: int, data: str) -> str:
    return rf"m-output-\[input_crc={crc:08x},runs={runs},us=\d+,data={data}\]\*[0-9a-f]{{8}}"


def test_one_inference_without_numbers(say: Say) -> None:
    assert say(b"run%") == ["e-[No complete input is loaded]"]
    assert say(b"db load 4%db 01ff7f81%")[-1] == "m-load-done"
    crc = zlib.crc32(bytes.fromhex("01ff7f81"))
    (line,) = say(b"run%")
    assert re.fullmatch(answer(crc, runs=1, data="0180"), line)
    assert line == checked(line.partition("*")[0])
    assert say(b"output%") == [line]  # as often as one likes
    assert say(b"run%") == ["e-[Overwritten]"]
    assert say(b"infer 3 2%")[-1] == "m-results-[1.000,-63.500]"
    assert re.fullmatch(answer(crc, runs=6, data="0180"), say(b"output%")[0])


def test_infer_without_numbers_is_one_after_ten(say: Say) -> None:
    say(b"db load 4%db 00000000%")
    lines = say(b"infer%")
    assert "m-warmup-start-10" in lines and "m-infer-start-1" in lines
    assert lines[-1] == "m-results-[0.500,0.000]"


def test_bytes_and_digits_load_the_same(say: Say) -> None:
    assert say(b"db load 4%data }\x05}\x5d \x00%") == [
        "m-[Expecting 4 bytes]",
        "m-ready",
        "m-load-done",
    ]
    assert say(b"db print%") == ["m-buffer-25-7d-20-00"]


def test_a_new_load_ends_the_old_result(say: Say) -> None:
    say(b"db load 4%db 00000000%infer 1 0%")
    assert say(b"db load 4%") == ["m-[Expecting 4 bytes]"]
    assert say(b"output%") == ["e-[No result]"]


@pytest.mark.parametrize("digits", [b"0g", b"0", b"000", b"zz"])
def test_digits_that_are_none_end_the_load(say: Say, digits: bytes) -> None:
    say(b"db load 4%")
    assert say(b"db " + digits + b"%") == ["e-[Not hex]"]
    assert say(b"db 00000000%") == ["e-[db load comes first]"]


def test_a_buffer_is_printed_in_rows_of_eight(digits_image: Callable[[str, str], Image]) -> None:
    board = load_board("host")
    with (
        start_emulator(board, digits_image("mlp", "host")) as running,
        serial.Serial(running.port, 115_200, timeout=5) as port,
    ):
        port.write(b"db load 64%db " + bytes(range(64)).hex().encode() + b"%")
        port.read_until(b"m-load-done\r\nm-ready\r\n")
        port.write(b"db print%")
        lines = port.read_until(b"m-ready\r\n").decode().split("\r\n")
    assert lines[0] == "m-buffer-00-01-02-03-04-05-06-07"
    assert lines[7] == "m-buffer-38-39-3a-3b-3c-3d-3e-3f"
    assert lines[8:] == ["m-ready", ""]


# ---- parts, as shared libraries on the host ----


def build_library(tmp_path: Path, source: str, *flags: str) -> ctypes.CDLL:
    (tmp_path / "part.c").write_text(source)
    library = tmp_path / "part.so"
    command = ["cc", "-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *flags]
    command += [f"-I{FIRMWARE / 'app'}", f"-I{FIRMWARE / 'arm'}", "part.c", "-o", str(library)]
    subprocess.run(command, cwd=tmp_path, check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("unaligned", [True, False])
def test_memory_functions(tmp_path: Path, unaligned: bool) -> None:
    names = ("memcpy", "memmove", "memset", "memcmp")
    renamed = "".join(f"#define {name} ek_{name}\n" for name in names)
    flags = ["-D__ARM_FEATURE_UNALIGNED"] if unaligned else []
    part = build_library(
        tmp_path,
        f"#include <stddef.h>\n#include <stdint.h>\n{renamed}"
        "void *memcpy(void *restrict, const void *restrict, size_t);\n"
        "void *memmove(void *, const void *, size_t);\n"
        "void *memset(void *, int, size_t);\n"
        "int memcmp(const void *, const void *, size_t);\n"
        '#define _STRING_H\n#include "mem.c"\n',
        "-fno-builtin",
        *flags,
    )
    generator = random.Random(1)
    for _ in range(300):
        length, a, b = generator.randrange(40), generator.randrange(8), generator.randrange(8)
        whole = generator.randbytes(64)
        data = ctypes.create_string_buffer(whole, 64)
        other = ctypes.create_string_buffer(64)
        base, there = ctypes.addressof(data), ctypes.addressof(other)
        size = ctypes.c_size_t(length)

        part.ek_memcpy(ctypes.c_void_p(there + b), ctypes.c_void_p(base + a), size)
        assert other.raw == bytes(b) + whole[a : a + length] + bytes(64 - b - length)
        same = part.ek_memcmp(ctypes.c_void_p(there + b), ctypes.c_void_p(base + a), size)
        assert same == 0

        part.ek_memset(ctypes.c_void_p(there + b), generator.randrange(-300, 300), size)
        assert other.raw[:b] == bytes(b) and not any(other.raw[b + length :])

        part.ek_memmove(ctypes.c_void_p(base + b), ctypes.c_void_p(base + a), size)
        assert data.raw == whole[:b] + whole[a : a + length] + whole[b + length :]
    part.ek_memset(ctypes.c_void_p(there), -2, ctypes.c_size_t(7))
    assert other.raw[:7] == b"\xfe" * 7
    assert part.ek_memcmp(b"abd", b"abc", ctypes.c_size_t(3)) > 0
    assert part.ek_memcmp(b"ab\x01", b"ab\xff", ctypes.c_size_t(3)) < 0


def test_time_goes_on_when_the_counter_wraps(tmp_path: Path) -> None:
    part = build_library(
        tmp_path,
        '#include "ek_ticks.h"\n'
        "static struct ek_ticks ticks;\n"
        "void advance(uint32_t now, uint32_t *out);\n"
        "void advance(uint32_t now, uint32_t *out)\n"
        "{ struct ek_time t = ek_ticks_update(&ticks, now, 25u);"
        " out[0] = t.seconds; out[1] = t.microseconds; }\n",
    )
    generator = random.Random(2)
    total_ticks = 0
    out = (ctypes.c_uint32 * 2)()
    for _ in range(500):
        total_ticks += generator.choice([1, 24, 25, 1000, 25_000_000, 2**31, 2**32 - 30])
        part.advance(ctypes.c_uint32(total_ticks & 0xFFFFFFFF), out)
        assert out[0] * 1_000_000 + out[1] == total_ticks // 25
        assert out[1] < 1_000_000
