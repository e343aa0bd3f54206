"""MLPerf Tiny's side of the line, as mlcommons/tiny's benchmark/runner behaves.

It sends commands that end in ``%``, reads lines up to one that holds ``m-ready``, loads a sample
by ``db load N`` and as many ``db HEX`` as it takes at 31 bytes each, and picks what it needs from
the lines by regular expressions. Accuracy mode runs each sample once without warm-ups;
performance mode runs five samples many times after some warm-ups, and its figure is the median
of the five throughputs.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import serial

READY = "m-ready"
BYTES_PER_COMMAND = 31
WINDOWS = 5


@dataclass(frozen=True)
class Inference:
    """What ``infer`` answered: both times in µs, and the results."""

    start_us: int
    end_us: int
    results: tuple[float, ...]


class Runner:
    """Drives a device under test."""

    def __init__(self, port: str, baud: int = 115_200) -> None:
        self._port = serial.Serial(port, baud, timeout=5.0)
        self.name = self.model = self.profile = ""

    def __enter__(self) -> Self:
        self._port.timeout = 0.3  # what the device says when it starts is over by then
        while self._port.read(4096):
            pass
        self.name = self._find(r"m-name-dut-\[([^]]+)\]", self.send("name"))
        lines = self.send("profile")
        self.model = self._find(r"m-model-\[([^]]+)\]", lines)
        self.profile = self._find(r"m-profile-\[([^]]+)\]", lines)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._port.close()

    def send(self, command: str, timeout_s: float = 5.0) -> list[str]:
        """Sends a command and returns the lines that answer it, m-ready among them."""
        self._port.timeout = timeout_s
        self._port.write(f"{command}%".encode())
        lines = []
        while not lines or READY not in lines[-1]:
            line = self._port.readline()
            if not line.endswith(b"\n"):
                raise RuntimeError(f"no response to command {command}; got {lines}")
            lines.append(line.decode().strip("\r\n\0"))
        return lines

    def load(self, data: bytes) -> None:
        self.send(f"db load {len(data)}")
        lines: list[str] = []
        for start in range(0, len(data), BYTES_PER_COMMAND):
            lines = self.send(f"db {data[start : start + BYTES_PER_COMMAND].hex()}")
        assert "m-load-done" in lines

    def infer(self, iterations: int, warmups: int) -> Inference:
        lines = self.send(f"infer {iterations} {warmups}", timeout_s=30.0)
        start_us, end_us = (
            int(found[1]) for found in (re.match(r"^m-lap-us-([0-9]+)$", x) for x in lines) if found
        )
        results = self._find(r"m-results-\[([^]]+)\]", lines).split(",")
        return Inference(start_us, end_us, tuple(float(x) for x in results if x.strip()))

    def accuracy(self, samples: Iterable[bytes]) -> list[tuple[float, ...]]:
        """Returns the results of each sample."""
        found = []
        for sample in samples:
            self.load(sample)
            found.append(self.infer(1, 0).results)
        return found

    def performance(self, samples: Sequence[bytes], iterations: int, warmups: int) -> float:
        """Returns the median throughput in inferences per second."""
        throughputs = []
        for window in range(WINDOWS):
            self.load(samples[window % len(samples)])
            inference = self.infer(iterations, warmups)
            elapsed_us = inference.end_us - inference.start_us
            throughputs.append(iterations / (elapsed_us / 1_000_000))
        return statistics.median(throughputs)

    def _find(self, pattern: str, lines: Iterable[str]) -> str:
        for line in lines:
            found = re.match(f"^{pattern}$", line)
            if found:
                return found[1]
        raise RuntimeError(f"nothing like {pattern} in {lines}")
