"""A release of digits_mlp on a board that runs Linux, and all it takes to measure it."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.bench import linux
from edgekiln.bench.compiled import read_compile_report
from edgekiln.bench.inputs import ModelInputs
from edgekiln.bench.linux import Case, Effort, Place, measure_on_linux
from edgekiln.bench.linux_results import measure_linux
from edgekiln.bench.measure import Background, Subject
from edgekiln.bench.results import Results
from edgekiln.bench.tensors import Tensors
from edgekiln.export.compiler import compile_model, write_bundle
from edgekiln.firmware.boards import load_board
from edgekiln.firmware.linux.runner.program import PROGRAM_NAME, build_program
from edgekiln.firmware.linux.ssh import Connection

NAME = "digits_mlp"
EFFORT = Effort(warmup=1, runs=25, seconds=1)
GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@dataclasses.dataclass(frozen=True)
class Bench:
    """A release, and all it takes to measure it.

    Attributes:
        connection: To the board.
        place: The release there.
        subject: The model, its inputs, and the program as an image.
        program_bytes: The program's size.
        cases: The golden model for every runtime; empty where they are not installed here.
        reals: The inputs as real numbers.
    """

    connection: Connection
    place: Place
    subject: Subject
    program_bytes: int
    cases: tuple[Case, ...]
    reals: Tensors

    def measure(self, **changes: Any) -> linux.LinuxRun:
        place = dataclasses.replace(self.place, **changes)
        return measure_on_linux(
            self.connection,
            place,
            codes=self.subject.inputs.tensors,
            outputs=self.subject.image.outputs,
            reals=self.reals,
            cases=self.cases,
            effort=EFFORT,
            timeout_s=60,
        )

    def results(self) -> Results:
        return measure_linux(
            self.connection,
            self.place,
            self.subject,
            program_bytes=self.program_bytes,
            cases=self.cases,
            reals=self.reals,
            effort=EFFORT,
        )


def make_bench(
    connection: Connection, place: Place, work: Path, *, target: str, architecture: str
) -> Bench:
    """Compiles the golden model for a board, and writes it for every runtime."""
    data = (GOLDEN / f"{NAME}_int8.tflite").read_bytes()
    digits = np.load(GOLDEN / "digits_inputs.npz")
    for kind in (target, "host"):
        compiled = compile_model(data, name=NAME, target=kind, golden_input=(digits["inputs"][:1],))
        write_bundle(compiled, work / kind)
    program = build_program(work / target, architecture, work / "release" / PROGRAM_NAME)
    labels = digits["labels"].astype(np.int64)
    subject = Subject(
        name=NAME,
        tflite=data,
        onnx_int8=None,
        compile_report=read_compile_report(work / target),
        host_bundle=work / "host",
        image=program.as_image("rpi"),
        board=load_board("rpi"),
        inputs=ModelInputs((digits["inputs"],), labels, tuple("0123456789"), "32 digits"),
        background=Background(0.97, None, {}, {}),
        artifacts=(),
    )
    cases: tuple[Case, ...] = ()
    if all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "ai_edge_litert"))):
        from digits_runtimes import write_cases

        cases = write_cases(GOLDEN / f"{NAME}_int8.tflite", work / "models")
    reals = ((digits["inputs"].astype(np.float32) + 128) / np.float32(255),)
    return Bench(connection, place, subject, program.bytes, cases, reals)
