"""Talks to the application on a board over its serial port.

The commands are MLPerf Tiny's (``name%``, ``db load N%``, ``infer N W%``, …; answers end in
``m-ready``) and edgekiln's own, whose answers carry a CRC-32. What went over the line is never
taken on trust: the board returns the CRC-32 of the input that it received and the number of
inferences that it ran, and its output comes in a line with a CRC-32 of its own. What does not
agree is repeated, a few times, and then reported. Every wait has an end, and everything that was
repeated is told. SPEC.md describes the protocol.
"""

from __future__ import annotations

import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import serial

from edgekiln import console
from edgekiln.errors import BadInputError, BoardError

READY = "m-ready"
STARTED = "m-init-done"

# How many bytes of input go into one command. The board has no line buffer, so any number
# would do; shorter commands find a lost byte sooner.
CHUNK_BYTES = 1024

_CHECKED = re.compile(r"(?P<text>m-(?P<kind>[a-z]+)-\[(?P<fields>[^\]]*)\])\*(?P<crc>[0-9a-f]{8})")
_NAME = re.compile(r"m-name-dut-\[(.*)\]")
_PROFILE = re.compile(r"m-profile-\[(.*)\]")
_MODEL = re.compile(r"m-model-\[(.*)\]")
_STREAM = re.compile(r"m-stream-(.*)")
_LAP = re.compile(r"m-lap-us-(\d+)")
_WARMUPS = re.compile(r"m-warmup-start-(\d+)")
_ITERATIONS = re.compile(r"m-infer-start-(\d+)")
_RESULTS = re.compile(r"m-results-\[(.*)\]")
_ERROR = re.compile(r"e-\[(.*)\]")
_FAULT = re.compile(r"e-\[((?:Fault|Stack overflow) .*)\]")

_BITS_PER_BYTE = 10  # one start bit, eight of data, one stop bit
_MAX_ANSWER_BYTES = 1 << 20
_SILENCE_S = 0.05

T = TypeVar("T")


@dataclass(frozen=True)
class Profile:
    """What ``profile`` answers: the protocol's name and the model's."""

    protocol: str
    model: str


@dataclass(frozen=True)
class About:
    """What ``about`` answers.

    Attributes:
        model: The model's name.
        model_sha256: Of the .tflite that it was made from.
        input_bytes: Size of all inputs of one inference.
        output_bytes: Size of all outputs.
    """

    model: str
    model_sha256: str
    input_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class Counters:
    """What ``counters`` answers.

    Attributes:
        stack_bytes: The deepest that the stack has been; None where it is not measured.
        arena_bytes: Size of the arena.
    """

    stack_bytes: int | None
    arena_bytes: int


@dataclass(frozen=True)
class Answer:
    """What ``run`` and ``output`` answer.

    Attributes:
        input_crc: CRC-32 of the input as the board received it.
        runs: Inferences since the load; since it forgot, where a model remembers.
        elapsed_us: How long the last timed inferences took, by the board's clock, modulo 2^32.
        output: All outputs' bytes, those of the first inference after the load.
    """

    input_crc: int
    runs: int
    elapsed_us: int
    output: bytes


@dataclass(frozen=True)
class Timing:
    """What ``infer`` answers.

    Attributes:
        iterations: How many inferences were timed.
        elapsed_us: How long they took together, by the board's clock.
        results: The real values of the first inference's outputs, as printed.
    """

    iterations: int
    elapsed_us: int
    results: tuple[float, ...]


def stuff_bytes(data: bytes) -> bytes:
    """Returns bytes in the form that ``data`` takes: ``%`` and ``}`` escaped by ``}``."""
    return data.replace(b"}", b"}\x5d").replace(b"%", b"}\x05")


class _LineError(Exception):
    """Something on the line went wrong; trying again may help."""


class _RefusedError(_LineError):
    """The board answered with an error; the command may have been damaged."""


class Device:
    """The application at the other end of a serial port. Use it in a ``with`` statement.

    Args:
        port: The port's path.
        baud: Its speed.
        timeout_s: How long the board may be silent in the middle of an answer, and how long
            it may take to begin one to a command that runs no inference.
        infer_timeout_s: How long one inference may take.
        attempts: How often a run is tried.
        chunk_bytes: How many bytes of input go into one command.
        on_retry: Told in a line, before something is tried again, what and why.

    Attributes:
        incidents: How often each kind of trouble made it necessary to try again.

    Raises:
        BoardError: The port cannot be opened.
    """

    def __init__(
        self,
        port: str,
        *,
        baud: int = 115_200,
        timeout_s: float = 2.0,
        infer_timeout_s: float = 60.0,
        attempts: int = 4,
        chunk_bytes: int = CHUNK_BYTES,
        on_retry: Callable[[str], None] = console.say,
    ) -> None:
        self.incidents: Counter[str] = Counter()
        self._where = port
        self._baud = baud
        self._timeout_s = timeout_s
        self._infer_timeout_s = infer_timeout_s
        self._attempts = attempts
        self._chunk_bytes = chunk_bytes
        self._on_retry = on_retry
        self._run_limit_s = infer_timeout_s
        try:
            self._port = serial.Serial(port, baud, timeout=0.05, write_timeout=timeout_s)
        except (serial.SerialException, OSError, ValueError) as error:
            raise BoardError(
                f"the port cannot be opened: {_reason(error)}",
                where=port,
                hint="check the cable, the port's name and who may use it (group dialout)",
            ) from None

    @property
    def retries(self) -> int:
        """How often something had to be repeated."""
        return self.incidents.total()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._port.close()

    def hello(self, *, within_s: float = 10.0) -> str:
        """Waits until the board answers, whatever it was doing; returns its name.

        Raises:
            BoardError: It does not answer within this time, or the port is gone.
        """
        deadline = time.monotonic() + within_s
        while True:
            try:
                self._resynchronize()
                return _match(_NAME, self._command("name"))
            except _LineError as error:
                if time.monotonic() >= deadline:
                    self._give_up(f"no answer within {within_s:g} s", error)

    def name(self) -> str:
        """Returns the board's name.

        Raises:
            BoardError: It does not answer properly.
        """
        return self._ask("name", lambda lines: _match(_NAME, lines))

    def profile(self) -> Profile:
        """Returns the protocol's and the model's name. Raises as `name` does."""
        return self._ask(
            "profile", lambda lines: Profile(_match(_PROFILE, lines), _match(_MODEL, lines))
        )

    def timestamp(self) -> int:
        """Returns microseconds since the board started. Raises as `name` does."""
        return self._ask("timestamp", lambda lines: int(_match(_LAP, lines)))

    def about(self) -> About:
        """Returns what model is on the board. Raises as `name` does."""
        return self._ask("about", _read_about)

    def counters(self) -> Counters:
        """Returns the board's counters. Raises as `name` does."""
        return self._ask("counters", _read_counters)

    def results(self) -> tuple[float, ...]:
        """Returns the real values of the last run's outputs. Raises as `name` does."""
        return self._ask("results", _read_results)

    def selftest(self) -> int:
        """Runs the golden pair in the image; returns how many bytes of its output are wrong.

        Raises:
            BoardError: The image has no golden pair, or the board does not answer properly.
        """
        limit_s = self._infer_timeout_s
        return self._retry(
            "selftest", lambda: _read_selftest(self._command("selftest", first_s=limit_s))
        )

    def load(self, data: bytes) -> None:
        """Sends the input of the next inference: all inputs' bytes in the model's order.

        Raises:
            BadInputError: The model takes another number of bytes.
            BoardError: It did not arrive.
        """
        self._retry("db load", lambda: self._load(data))

    def infer(self, iterations: int = 1, warmups: int = 0) -> Timing:
        """Runs inferences on the input that was loaded, the warm-ups first.

        An inference overwrites its input, so only the first one has a meaning: the results
        are its own. The others are there to be timed. Not repeated when the line fails: the
        numbers are compared with those that come with a CRC, and the results with themselves.

        Raises:
            BoardError: No input is loaded, or the board does not answer properly.
        """
        try:
            return self._infer(iterations, warmups)
        except _LineError as error:
            self._give_up("infer failed", error)

    def run(self, data: bytes) -> bytes:
        """Runs one inference and returns its output's bytes, proved by CRC in both directions.

        Args:
            data: All inputs' bytes, one after the other in the model's order.

        Raises:
            BadInputError: The model takes another number of bytes.
            BoardError: The board does not answer, reports a fault, or the line spoils every
                attempt.
        """
        return self.run_timed(data)[0]

    def run_timed(self, data: bytes) -> tuple[bytes, int]:
        """As `run`; also returns how long the inference took in µs, by the board's clock."""
        return self._retry("an inference", lambda: self._run(data))

    def end_stream(self) -> None:
        """Makes each load of a model that remembers start anew, whatever was before.

        Raises:
            BoardError: The model remembers nothing, or the board does not answer properly.
        """
        self._retry("stream", lambda: self._set_stream(on=False))

    def run_stream(
        self, rows: Sequence[bytes], on_step: Callable[[int], None] = lambda _count: None
    ) -> list[tuple[bytes, int]]:
        """Runs inferences of which each goes on from what the model remembers of those before.

        A step cannot be repeated by itself: when the line spoils one, the stream begins anew.
        Afterwards the board's inferences are independent of each other again.

        Args:
            rows: All inputs' bytes, for one inference after the other.
            on_step: Called after each step with the number of those that are done.

        Returns:
            What `run_timed` returns, for each inference.

        Raises:
            BadInputError: The model takes another number of bytes.
            BoardError: As `run`, and where the model remembers nothing.
        """

        def attempt() -> list[tuple[bytes, int]]:
            self._set_stream(on=True)
            answers: list[tuple[bytes, int]] = []
            for row in rows:
                answers.append(self._run(row, runs=len(answers) + 1))
                on_step(len(answers))
            self._set_stream(on=False)
            return answers

        return self._retry("a stream", attempt)

    # ---- one attempt; what may succeed when repeated raises _LineError ----

    def _run(self, data: bytes, runs: int = 1) -> tuple[bytes, int]:
        """Loads an input and runs it: inference number ``runs`` of what the board counts."""
        self._load(data)
        begin = time.monotonic()
        try:
            answer = _read_output(self._command("run", first_s=self._run_limit_s))
            # One that has been timed shows when to give up on those that follow.
            took_s = time.monotonic() - begin
            self._run_limit_s = min(self._infer_timeout_s, max(10 * took_s, 2 * self._timeout_s))
        except _RefusedError:
            raise
        except _LineError as error:
            answer = self._ask_again(error)
        if answer.input_crc != zlib.crc32(data):
            raise _LineError("the input arrived damaged")
        if answer.runs != runs:
            raise _LineError("another inference was answered than the one asked for")
        return answer.output, answer.elapsed_us

    def _ask_again(self, error: _LineError) -> Answer:
        """Asks once more for an answer that was damaged: the board keeps it."""
        self._tell(error, "the output is asked for again")
        self._resynchronize()
        return _read_output(self._command("output"))

    def _set_stream(self, *, on: bool) -> None:
        if _match(_STREAM, self._command(f"stream {int(on)}")) != str(int(on)):
            raise _LineError("stream was answered with something else")

    def _load(self, data: bytes) -> None:
        try:
            self._command(f"db load {len(data)}")
        except _RefusedError:
            needed = _read_about(self._command("about")).input_bytes
            if needed == len(data):
                raise
            raise BadInputError(
                "the input has the wrong size",
                where=self._where,
                got=f"{len(data)} bytes",
                allowed=f"{needed} bytes",
            ) from None
        answer: Sequence[str] = ()
        for start in range(0, len(data), self._chunk_bytes):
            answer = self._command(b"data " + stuff_bytes(data[start : start + self._chunk_bytes]))
        if "m-load-done" not in answer:
            raise _LineError("the input arrived incomplete")

    def _infer(self, iterations: int, warmups: int) -> Timing:
        limit_s = self._infer_timeout_s * (iterations + warmups)
        lines = self._command(f"infer {iterations} {warmups}", first_s=limit_s)
        laps = [int(match[1]) for match in map(_LAP.fullmatch, lines) if match]
        if len(laps) != 2:
            raise _LineError("infer was answered without two times")
        begun = [_match(_WARMUPS, lines), _match(_ITERATIONS, lines)]
        results = _read_results(lines)
        answer = _read_output(self._command("output"))
        elapsed_us = laps[1] - laps[0]
        if (
            begun != [str(warmups), str(iterations)]
            or elapsed_us % 2**32 != answer.elapsed_us
            or _read_results(self._command("results")) != results
        ):
            raise _LineError("infer was answered with something else")
        return Timing(iterations, elapsed_us, results)

    # ---- asking again ----

    def _ask(self, command: str, read: Callable[[Sequence[str]], T]) -> T:
        return self._retry(command, lambda: read(self._command(command)))

    def _retry(self, what: str, attempt: Callable[[], T]) -> T:
        failure = _LineError("not tried")
        for number in range(self._attempts):
            try:
                if number:
                    self._tell(failure, f"{what} is tried again ({number + 1} of {self._attempts})")
                    self._resynchronize()
                return attempt()
            except _LineError as error:
                failure = error
        self._give_up(f"{what} failed {self._attempts} times", failure)

    def _tell(self, error: _LineError, then: str) -> None:
        self.incidents[str(error)] += 1
        self._on_retry(f"{self._where}: {error}; {then}")

    def _give_up(self, what: str, last: _LineError) -> NoReturn:
        raise BoardError(what, where=self._where, got=str(last)) from None

    # ---- the line ----

    def _command(self, text: str | bytes, *, first_s: float = 0.0) -> list[str]:
        """Sends a command and returns the lines of its answer, without the last, m-ready.

        Args:
            text: The command without its end, the '%'.
            first_s: How long the board may work before it answers, beyond the usual.
        """
        command = text.encode("ascii") if isinstance(text, str) else text
        self._send(command + b"%")
        end = time.monotonic() + first_s + self._timeout_s
        lines: list[str] = []
        for line in self._read_lines(end, longest_pause_s=first_s + self._timeout_s):
            if line == READY:
                _check_answer(lines)
                return lines
            self._check_line(line)
            lines.append(line)
        name = command.partition(b" ")[0].decode("ascii")
        raise _LineError(f"{'half an' if lines else 'no'} answer to {name}")

    def _check_line(self, line: str) -> None:
        fault = _FAULT.fullmatch(line)
        if fault:
            raise BoardError(
                f"the board stopped: {fault[1]}", where=self._where, hint="reset it to go on"
            )
        if line == STARTED:
            raise _LineError("the board restarted")

    def _read_lines(self, end: float, longest_pause_s: float) -> Iterator[str]:
        """Yields lines until none has come for so long, or far too much has come."""
        received = b""
        total_bytes = 0
        last = end + _BITS_PER_BYTE * _MAX_ANSWER_BYTES / self._baud
        while time.monotonic() < min(end, last) and total_bytes < _MAX_ANSWER_BYTES:
            data = self._receive()
            total_bytes += len(data)
            received += data
            *whole, received = received.split(b"\n")
            for line in whole:
                yield _printable(line.strip(b"\r"))
                end = time.monotonic() + longest_pause_s

    def _resynchronize(self) -> None:
        """Ends whatever command the board thinks it is in, and drops what it says to that."""
        self._send(b"%")
        end = time.monotonic() + self._timeout_s
        quiet = time.monotonic() + _SILENCE_S
        while time.monotonic() < min(end, quiet):
            if self._receive():
                quiet = time.monotonic() + _SILENCE_S

    def _send(self, data: bytes) -> None:
        try:
            self._port.write_timeout = self._timeout_s + _BITS_PER_BYTE * len(data) / self._baud
            self._port.write(data)
        except serial.SerialTimeoutException:
            raise _LineError("the board takes no more bytes") from None
        except (serial.SerialException, OSError) as error:
            self._fail_port(error)

    def _receive(self) -> bytes:
        try:
            data: bytes = self._port.read(max(1, self._port.in_waiting))
            return data
        except (serial.SerialException, OSError) as error:
            self._fail_port(error)

    def _fail_port(self, error: Exception) -> NoReturn:
        raise BoardError(f"the port failed: {_reason(error)}", where=self._where) from None


def _printable(line: bytes) -> str:
    """Decodes a line; what is no printable character is shown as one that no answer holds."""
    text = line.decode("ascii", errors="replace")
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def _check_answer(lines: Sequence[str]) -> None:
    for match in map(_ERROR.fullmatch, lines):
        if match:
            raise _RefusedError(f"the board says: {match[1]}")


def _match(pattern: re.Pattern[str], lines: Sequence[str]) -> str:
    for match in map(pattern.fullmatch, lines):
        if match:
            return match[1]
    raise _LineError(f"an answer without {pattern.pattern.partition('-[')[0]}")


def _fields(kind: str, lines: Sequence[str], *names: str) -> list[str]:
    """Returns the named fields of a line that ends in its own CRC-32."""
    for match in map(_CHECKED.fullmatch, lines):
        if match and match["kind"] == kind:
            if zlib.crc32(match["text"].encode()) != int(match["crc"], 16):
                raise _LineError(f"{kind} was answered with a wrong CRC")
            pairs = (field.partition("=") for field in match["fields"].split(","))
            fields = {key: value for key, _, value in pairs}
            if not fields.keys() >= set(names):
                raise _LineError("an answer of another version of the firmware")
            return [fields[name] for name in names]
    raise _LineError(f"{kind} was answered with something else")


def _read_about(lines: Sequence[str]) -> About:
    names = ("model", "sha256", "input_bytes", "output_bytes")
    model, sha256, input_bytes, output_bytes = _fields("about", lines, *names)
    return About(model, sha256, int(input_bytes), int(output_bytes))


def _read_counters(lines: Sequence[str]) -> Counters:
    stack_bytes, arena_bytes = _fields("counters", lines, "stack_bytes", "arena_bytes")
    return Counters(int(stack_bytes) or None, int(arena_bytes))


def _read_output(lines: Sequence[str]) -> Answer:
    input_crc, runs, us, data = _fields("output", lines, "input_crc", "runs", "us", "data")
    return Answer(int(input_crc, 16), int(runs), int(us), bytes.fromhex(data))


def _read_selftest(lines: Sequence[str]) -> int:
    return int(_fields("selftest", lines, "mismatched_bytes")[0])


def _read_results(lines: Sequence[str]) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in _match(_RESULTS, lines).split(","))
    except ValueError:
        raise _LineError("results that are no numbers") from None


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.partition("\n")[0]
