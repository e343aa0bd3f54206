"""The host's side of the line, against a double of the board and against the application itself."""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import threading
import time
import tty
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.bench.protocol import About, Counters, Device, Profile, stuff_bytes
from edgekiln.errors import BadInputError, BoardError
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.emulators import start_emulator
from edgekiln.firmware.image import Image, build_image

Spoil = Callable[[bytes], bytes]


def model(data: bytes) -> bytes:
    """What the double computes: enough for a wrong input to show."""
    return bytes([sum(data) & 255, data[0] ^ data[-1], 128])


class Double:
    """A board on a pseudo-terminal, which loses, changes or delays what a test tells it to.

    Attributes:
        port: The port's path.
        spoil_in: What becomes of the bytes that the board receives.
        spoil_out: What becomes of an answer.
        restart_at: Commands (by name) at which the board restarts instead of answering.
        commands: The names of the commands that it has understood so far.
        extra_runs: How many inferences too many it says that it has run.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._theirs)
        self.port = os.ttyname(self._theirs)
        self.spoil_in: Spoil = lambda data: data
        self.spoil_out: Spoil = lambda data: data
        self.restart_at: list[str] = []
        self.commands: list[str] = []
        self.extra_runs = 0
        self._ended = False
        self._buffer = b""
        self._reset()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _reset(self) -> None:
        self.size = self.runs = 0
        self.input = b""
        self.output: bytes | None = None

    def close(self) -> None:
        self._ended = True
        self._thread.join(5)
        os.close(self._ours)
        os.close(self._theirs)

    def _serve(self) -> None:
        while not self._ended:
            if not select.select([self._ours], [], [], 0.02)[0]:
                continue
            self._buffer += self.spoil_in(os.read(self._ours, 65536))
            while b"%" in self._buffer:
                command, _, self._buffer = self._buffer.partition(b"%")
                os.write(self._ours, self.spoil_out(self._answer(command)))

    def _answer(self, command: bytes) -> bytes:
        name, _, rest = command.partition(b" ")
        text = name.decode("latin-1")
        self.commands.append(text)
        if text in self.restart_at:
            self.restart_at.remove(text)
            self._reset()
            return b"m-warm\r\nm-init-done\r\nm-ready\r\n"
        lines = self._obey(text, rest)
        return "".join(f"{line}\r\n" for line in [*lines, "m-ready"]).encode("latin-1")

    def _obey(self, name: str, rest: bytes) -> list[str]:
        match name:
            case "":
                return []
            case "name":
                return ["m-name-dut-[double]"]
            case "profile":
                return ["m-profile-[ULPMark for tinyML Firmware V0.0.1]", "m-model-[pets]"]
            case "timestamp":
                return ["m-lap-us-123456789012"]
            case "about":
                text = f"model=pets,sha256={'ab' * 32},input_bytes=300,output_bytes=3"
                return [checked("about", text)]
            case "counters":
                return [checked("counters", "stack_bytes=148,arena_bytes=512")]
            case "selftest":
                return [checked("selftest", "mismatched_bytes=0")]
            case "db":
                return self._load(rest)
            case "data":
                return self._store(rest)
            case "infer":
                return self._infer(rest)
            case "results":
                return ["m-results-[0.500,-1.250]"] if self.output else ["e-[No result]"]
            case "run":
                return self._run()
            case "output":
                return self._tell()
            case _:
                return [f"e-[Unknown command: {name[:10]}]"]

    def _load(self, rest: bytes) -> list[str]:
        self._reset()
        if rest != b"load 300":
            return ["e-[The model takes 300 bytes]"]
        self.size = 300
        return ["m-[Expecting 300 bytes]"]

    def _store(self, rest: bytes) -> list[str]:
        if not self.size or len(self.input) == self.size:
            return ["e-[db load comes first]"]
        plain = re.sub(rb"}(.)", lambda m: bytes([m[1][0] ^ 0x20]), rest, flags=re.DOTALL)
        self.input = (self.input + plain)[: self.size]
        return ["m-load-done"] if len(self.input) == self.size else []

    def _infer(self, rest: bytes) -> list[str]:
        iterations, warmups = (int(number) for number in rest.split())
        if not self.size or len(self.input) != self.size:
            return ["e-[No complete input is loaded]"]
        self.output = model(self.input)
        self.runs += iterations + warmups
        begin = [f"m-warmup-start-{warmups}", "m-warmup-done", f"m-infer-start-{iterations}"]
        laps = ["m-lap-us-1000", "m-lap-us-1250"]
        return [*begin, *laps, "m-infer-done", "m-results-[0.500,-1.250]"]

    def _run(self) -> list[str]:
        error = [line for line in self._infer(b"1 0") if line.startswith("e-")]
        return error or self._tell()

    def _tell(self) -> list[str]:
        if self.output is None:
            return ["e-[No result]"]
        crc, data = zlib.crc32(self.input), self.output.hex()
        fields = f"input_crc={crc:08x},runs={self.runs + self.extra_runs},us=250,data={data}"
        return [checked("output", fields)]


def checked(kind: str, fields: str) -> str:
    text = f"m-{kind}-[{fields}]"
    return f"{text}*{zlib.crc32(text.encode()):08x}"


@pytest.fixture
def double() -> Iterator[Double]:
    board = Double()
    try:
        yield board
    finally:
        board.close()


@pytest.fixture
def device(double: Double) -> Iterator[Device]:
    with Device(double.port, timeout_s=0.3, infer_timeout_s=0.3) as opened:
        yield opened


DATA = random.Random(1).randbytes(299) + b"%"


def once(spoil: Spoil, pattern: bytes) -> Spoil:
    """Spoils the first transfer in which a pattern occurs."""
    left = [True]

    def maybe(data: bytes) -> bytes:
        if left[0] and pattern in data:
            left[0] = False
            return spoil(data)
        return data

    return maybe


# ---- a board that works ----


def test_every_command(device: Device) -> None:
    assert device.hello() == "double"
    assert device.name() == "double"
    assert device.profile() == Profile("ULPMark for tinyML Firmware V0.0.1", "pets")
    assert device.timestamp() == 123456789012
    assert device.about() == About("pets", "ab" * 32, 300, 3)
    assert device.counters() == Counters(148, 512)
    assert device.selftest() == 0
    assert device.run(DATA) == model(DATA)
    assert device.run_timed(DATA) == (model(DATA), 250)
    timing = device.infer(5)
    assert (timing.iterations, timing.elapsed_us) == (5, 250)
    assert timing.results == device.results() == (0.5, -1.25)
    assert device.retries == 0


@given(st.binary())
def test_stuffed_bytes_hold_no_terminator_and_come_back(data: bytes) -> None:
    stuffed = stuff_bytes(data)
    assert b"%" not in stuffed
    back = re.sub(rb"}(.)", lambda m: bytes([m[1][0] ^ 0x20]), stuffed, flags=re.DOTALL)
    assert back == data


def test_an_input_of_the_wrong_size_is_the_users_mistake(device: Device) -> None:
    with pytest.raises(BadInputError, match="wrong size; got 10 bytes; allowed: 300 bytes"):
        device.run(bytes(10))
    assert device.retries == 0


def test_a_command_that_the_board_lacks_is_quoted(device: Device, double: Double) -> None:
    with pytest.raises(BoardError, match=r"results failed 4 times; got the board says: No result"):
        device.results()


# ---- a line that is not ----

SPOILED_OUT: dict[str, Spoil] = {
    "a flipped bit": lambda data: data.replace(b"data=", b"dat!=", 1),
    "another digit": lambda data: re.sub(rb"data=.", b"data=x", data),
    "a digit lost": lambda data: re.sub(rb"data=.", b"data=", data),
    "garbage before": lambda data: b"\xff\x00\xfe" + data,
    "half of it": lambda data: data[: len(data) // 2],
    "nothing": lambda data: b"",
    "twice": lambda data: data + data,
}


@pytest.mark.parametrize("fault", SPOILED_OUT)
def test_a_spoiled_output_is_asked_for_again(device: Device, double: Double, fault: str) -> None:
    device.hello()
    double.spoil_out = once(SPOILED_OUT[fault], b"m-output")
    assert device.run(DATA) == model(DATA)
    assert device.run(DATA[::-1]) == model(DATA[::-1])
    assert fault == "twice" or device.retries == 1


SPOILED_IN: dict[str, Spoil] = {
    "a flipped bit": lambda data: data.replace(DATA[100:104], DATA[100:103] + b"\x00"),
    "a byte lost": lambda data: data.replace(DATA[100:104], DATA[101:104]),
    "a byte doubled": lambda data: data.replace(DATA[100:104], DATA[100:104] + DATA[103:104]),
    "the terminator lost": lambda data: data.replace(b"%", b""),
    "a terminator too many": lambda data: data.replace(DATA[100:104], DATA[100:102] + b"%"),
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("fault", SPOILED_IN)
def test_a_spoiled_input_is_sent_again(device: Device, double: Double, fault: str) -> None:
    device.hello()
    double.spoil_in = once(SPOILED_IN[fault], b"data ")
    assert device.run(DATA) == model(DATA)
    assert device.retries == 1


def test_a_spoiled_size_is_not_the_users_mistake(device: Device, double: Double) -> None:
    device.hello()
    double.spoil_in = once(lambda data: data.replace(b"300", b"30"), b"load 300")
    assert device.run(DATA) == model(DATA)
    assert device.retries == 1


@pytest.mark.parametrize("command", ["db", "data", "run"])
def test_a_board_that_restarts_in_the_middle(device: Device, double: Double, command: str) -> None:
    device.hello()
    double.restart_at = [command]
    assert device.run(DATA) == model(DATA)
    assert device.incidents["the board restarted"] == 1
    assert device.retries == (2 if command == "run" else 1)  # its output is asked for in vain


def test_what_stays_broken_is_reported(device: Device, double: Double) -> None:
    device.hello()
    double.spoil_out = lambda data: data.replace(b"input_crc=", b"input_crc=0")
    with pytest.raises(BoardError) as caught:
        device.run(DATA)
    message = (
        f"{double.port}: an inference failed 4 times; got output was answered with a wrong CRC"
    )
    assert str(caught.value) == message
    assert device.retries == 7  # and each time the output is asked for once more


def test_what_is_tried_again_is_told(double: Double) -> None:
    told: list[str] = []
    with Device(double.port, timeout_s=0.3, infer_timeout_s=0.3, on_retry=told.append) as device:
        device.hello()
        double.spoil_out = once(lambda data: data[:20], b"m-output")
        assert device.run(DATA) == model(DATA)
        double.spoil_in = once(lambda data: data.replace(b"load", b"laod"), b"load")
        assert device.run(DATA) == model(DATA)
    assert told == [
        f"{double.port}: no answer to run; the output is asked for again",
        f"{double.port}: the board says: The model takes 300 bytes; "
        "an inference is tried again (2 of 4)",
    ]
    assert device.incidents.total() == device.retries == 2
    assert double.commands.count("run") == 2  # an answer that is lost costs no inference


def test_an_inference_too_many_is_noticed(device: Device, double: Double) -> None:
    device.hello()
    double.extra_runs = 1
    with pytest.raises(BoardError, match="got another inference was answered than the one asked"):
        device.run(DATA)


@pytest.mark.parametrize(
    ("spoiled", "by"),
    [(b"lap-us-1250", b"lap-us-1350"), (b"start-5", b"start-4"), (b"[0.500", b"[0.510")],
)
def test_times_and_results_without_a_crc_are_held_against_others(
    device: Device, double: Double, spoiled: bytes, by: bytes
) -> None:
    device.hello()
    device.load(DATA)
    double.spoil_out = once(lambda data: data.replace(spoiled, by), spoiled)
    with pytest.raises(
        BoardError, match="infer failed; got infer was answered with something else"
    ):
        device.infer(5)


def test_a_wrong_input_that_the_board_is_sure_of(device: Device, double: Double) -> None:
    device.hello()
    double.spoil_in = lambda data: data.replace(DATA[100:104], bytes(4))
    with pytest.raises(BoardError, match="got the input arrived damaged"):
        device.run(DATA)


def test_a_silent_board(device: Device, double: Double) -> None:
    double.spoil_out = lambda data: b""
    started = time.monotonic()
    with pytest.raises(BoardError, match=r"no answer within 0\.3 s; got no answer to name"):
        device.hello(within_s=0.3)
    assert time.monotonic() - started < 20
    with pytest.raises(BoardError, match="name failed 4 times"):
        device.name()


def test_a_board_that_never_stops_talking(device: Device, double: Double) -> None:
    double.spoil_out = lambda data: b"blah " * 1000
    with pytest.raises(BoardError, match="no answer"):
        device.hello(within_s=0.2)


def test_a_board_that_wakes_up_late(double: Double, device: Device) -> None:
    asleep = time.monotonic() + 0.5
    double.spoil_out = lambda data: data if time.monotonic() > asleep else b""
    assert device.hello(within_s=20) == "double"


def test_hello_in_the_middle_of_a_command(device: Device, double: Double) -> None:
    device._send(b"db load 300%data " + DATA[:20])
    assert device.hello() == "double"
    assert device.run(DATA) == model(DATA)


@pytest.mark.parametrize("what", ["Fault", "Stack overflow"])
def test_a_fault_is_not_tried_again(device: Device, double: Double, what: str) -> None:
    device.hello()
    report = f"\r\ne-[{what} pc=00001234 status=00008200]\r\n".encode()
    double.spoil_out = lambda data: report if b"m-output" in data else data
    with pytest.raises(BoardError, match=rf"the board stopped: {what} pc=00001234.*reset it"):
        device.run(DATA)
    assert device.retries == 0


def test_answers_of_another_firmware(device: Device, double: Double) -> None:
    line = checked("counters", "stack=148")
    double.spoil_out = lambda data: f"{line}\r\nm-ready\r\n".encode()
    with pytest.raises(BoardError, match="an answer of another version of the firmware"):
        device.counters()


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        BoardError, match=r"the port cannot be opened: .*; check the cable"
    ) as caught:
        Device(str(tmp_path / "ttyNONE"))
    assert caught.value.exit_code == 3


# ---- the application itself, behind a line that loses and changes bytes ----


@pytest.fixture(scope="module")
def host_image(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    directory = tmp_path_factory.mktemp("host")
    data = (root / "tests/golden/digits_mlp_int8.tflite").read_bytes()
    write_bundle(compile_model(data, name="digits", target="host"), directory / "c")
    flags = ["-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return build_image(directory / "c", load_board("host"), directory, extra_flags=flags)


@contextlib.contextmanager
def noisy_line(port: str, spoil: Callable[[bytes], bytes]) -> Iterator[str]:
    """A second port, whose traffic passes through ``spoil`` in both directions."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    far = os.open(port, os.O_RDWR | os.O_NOCTTY)
    ended = threading.Event()

    def relay() -> None:
        while not ended.is_set():
            for source in select.select([ours, far], [], [], 0.02)[0]:
                data = spoil(os.read(source, 4096))
                if data:
                    os.write(far if source == ours else ours, data)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        ended.set()
        thread.join(5)
        for handle in (ours, theirs, far):
            os.close(handle)


@pytest.mark.parametrize("seed", range(3))
def test_no_fault_on_the_line_leads_to_a_wrong_output(host_image: Image, seed: int) -> None:
    generator = random.Random(seed)
    inputs = [generator.randbytes(64) for _ in range(12)]
    with start_emulator(load_board("host"), host_image) as running, Device(running.port) as device:
        device.hello()
        wanted = [device.run(data) for data in inputs]
    faults = [0]

    def spoil(data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            chance = generator.random()
            if chance < 0.004:
                faults[0] += 1
                kind = generator.randrange(4)
                out += [b"", bytes([byte, byte]), bytes([byte ^ 4]), b"%\x00" + bytes([byte])][kind]
            else:
                out.append(byte)
        return bytes(out)

    got: list[bytes | None] = []
    with (
        start_emulator(load_board("host"), host_image) as running,
        noisy_line(running.port, spoil) as port,
        Device(port, timeout_s=0.1, infer_timeout_s=0.1, attempts=6) as device,
    ):
        for data in inputs:
            try:
                got.append(device.run(data))
            except BoardError:
                got.append(None)
        retries = device.retries
    assert faults[0] > 5 and retries > 0
    assert got.count(None) < len(inputs) // 2
    assert all(mine in (None, right) for mine, right in zip(got, wanted, strict=True))
