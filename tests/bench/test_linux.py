"""Measuring on a board that runs Linux: here this machine, reached over SSH."""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from linux_bench import EFFORT, NAME, Bench, make_bench
from ssh_server import Server

from edgekiln.bench import linux, linux_results
from edgekiln.bench.linux import Case, Place
from edgekiln.bench.linux_results import describe_runtimes, refuse_cases
from edgekiln.bench.results import Conditions, Results, from_json, to_json
from edgekiln.bench.tensors import TensorSpec
from edgekiln.errors import BoardError, CheckFailedError
from edgekiln.firmware.linux.facts import RuntimeChoice, find_facts
from edgekiln.firmware.linux.runner.program import PROGRAM_NAME
from edgekiln.firmware.linux.ssh import Completed, Connection

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="programs are built for x86_64 here"
)

CHOICE = RuntimeChoice("ai-edge-litert", "onnxruntime", (), ())
PROGRAM = Path(linux.BOARD / "measure.py")


@pytest.fixture(scope="module")
def bench(connection: Connection, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    work = tmp_path_factory.mktemp("linux")
    facts = dataclasses.replace(find_facts(connection, str(work)), cores=2)
    place = Place(facts, str(work), str(work / "release"), NAME, CHOICE, sys.executable)
    made = make_bench(connection, place, work, target="generic", architecture="x86_64")
    directory = Path(place.directory)  # what the tests that send nothing find there
    directory.mkdir()
    (directory / "codes.bin").write_bytes(linux.pack(made.subject.inputs.tensors))
    return made


@pytest.fixture(scope="module")
def whole(bench: Bench) -> Results:
    """A whole measurement with every runtime; made once."""
    if not bench.cases:
        pytest.skip("LiteRT or ONNX Runtime are not installed")
    return bench.results()


def fake(directory: Path, text: str, name: str = "python") -> str:
    """Writes a program of the test's own that stands for another; returns its path."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_every_runtime_answers(whole: Results) -> None:
    assert [(r.name, r.model, r.format, r.error) for r in whole.runtimes] == [
        ("generated C", "int8", "C", None),
        ("LiteRT (XNNPACK)", "float", "TFLite", None),
        ("LiteRT (XNNPACK)", "int8", "TFLite", None),
        ("LiteRT (BUILTIN_REF)", "int8", "TFLite", None),
        ("ONNX Runtime", "float", "ONNX", None),
        ("ONNX Runtime", "int8", "ONNX", None),
    ]
    own, *others = whole.runtimes
    assert (own.reference, own.bytes, own.equal_bytes) == ("generated C on host", 320, 320)
    assert own.accuracy == whole.accuracy.int8_device
    for run in others:
        assert run.samples == 32 and run.version and run.accuracy is not None
        assert run.accuracy >= 30 / 32 and run.agreement is not None and run.agreement >= 30 / 32
    floating = [run for run in others if run.model == "float"]
    assert all((run.reference, run.bytes) == (None, 0) for run in floating)
    reference = others[2]
    assert reference.reference == "LiteRT (BUILTIN_REF) on host"
    assert reference.bytes == reference.equal_bytes == 320


def test_times_memory_and_sizes_fit_together(whole: Results, bench: Bench) -> None:
    own, *others = whole.runtimes
    for run in whole.runtimes:
        assert run.latency_us is not None and run.latency_us == run.latency_us_by_threads[0]
        for latency in run.latency_us_by_threads:
            assert 0 < latency.median <= latency.p90 <= latency.p99
            assert 20 <= latency.runs <= EFFORT.runs and latency.warmup == EFFORT.warmup
            assert not latency.emulated
        several = not run.name.endswith("(BUILTIN_REF)") and run.format != "C"
        threads = [latency.threads for latency in run.latency_us_by_threads]
        assert threads == ([1, 2] if several else [1])
        assert run.peak_memory_bytes is not None and run.conditions is not None
    assert own.size_bytes == bench.program_bytes and own.model_bytes is not None
    assert own.model_bytes < own.size_bytes
    assert own.peak_memory_bytes and own.peak_memory_bytes > whole.arena_bytes
    for run, case in zip(others, bench.cases, strict=True):
        assert run.model_bytes == case.file.stat().st_size
        assert run.size_bytes is not None and run.size_bytes > run.model_bytes + 1_000_000
        assert run.peak_memory_bytes and run.peak_memory_bytes > 5 * own.peak_memory_bytes


def test_results_are_those_of_any_board_and_more(whole: Results) -> None:
    assert whole.board == "rpi" and not whole.emulated
    assert whole.all_equal and whole.is_exact
    assert whole.latency_us == whole.runtimes[0].latency_us.median  # type: ignore[union-attr]
    assert (whole.instructions, whole.cycles, whole.stack_bytes) == (None, None, None)
    assert whole.flash_bytes == whole.flash_constants_bytes + whole.flash_code_bytes
    assert 0 < whole.flash_app_bytes < whole.flash_code_bytes
    assert whole.ram_bytes > whole.arena_bytes
    assert whole.system is not None and whole.system.cores == 2
    assert whole.system.architecture == "x86_64"
    stored = json.loads(json.dumps(to_json(whole)))
    assert {"runtimes", "system", "accuracy", "flash_bytes", "per_node"} <= stored.keys()
    assert from_json(Results, stored, "results.json") == whole


def test_nothing_is_sent_again(bench: Bench, whole: Results) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(bench.place.directory).iterdir()}
    assert {path.name for path in before} == {
        *("measure.py", "codes.bin", "reals.bin.gz", "real.tflite", "codes.tflite"),
        *("real.onnx", "codes.onnx"),
    }
    linux._send(
        bench.connection, bench.place, bench.subject.inputs.tensors, bench.reals, bench.cases
    )
    after = {path: path.stat().st_mtime_ns for path in Path(bench.place.directory).iterdir()}
    assert after == before


def seconds_for(what: str) -> float:
    """Returns a time that is over at once for what hangs, and long enough for all else."""
    return 1 if what.startswith("sleep") else 60


FAULTS = {
    "kill -SEGV $$": "it crashed (SIGSEGV)",
    "kill -KILL $$": "it crashed (SIGKILL); was the memory full?",
    "kill -ILL $$": "it crashed (SIGILL)",
    "sleep 60": "it did not end within 1 s",
    "exit 255": "it failed with code 1",
    "exit 200": "it failed with code 200",
    "echo oops >&2; exit 3": "oops",
    "printf 'a\\033[31mb' >&2; exit 1": "a?[31mb",
    "exit 0": "its answer is cut short",
    'printf \'\\n{"times_ns": {"1": [1\'': "its answer is cut short",
    "printf '\\n[1]\\n'": "its answer is cut short",
    "printf '\\n{}\\n'": "its answer makes no sense",
    "echo >&2 'cannot write: No space left on device'; exit 1": "the board's disk is full",
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_runtime_that_fails_is_a_row(bench: Bench, tmp_path: Path, what: str) -> None:
    case = Case("litert", bench.subject.host_bundle / f"{NAME}.c", is_real=False)
    place = dataclasses.replace(bench.place, python=fake(tmp_path, what))
    board = linux._Board(
        bench.connection, place, EFFORT, seconds_for(what), bench.subject.inputs.tensors
    )
    measured = board.run_case(case)
    assert (measured.error, measured.outputs, measured.latencies) == (FAULTS[what], (), ())
    assert measured.name == "LiteRT (XNNPACK)"


ANSWER = {
    "package": "ai-edge-litert",
    "version": "1",
    "outputs": [{"shape": [1, 10], "dtype": "int8"}],
    "peak_memory_kib": 1,
    "runtime_bytes": 1,
    "times_ns": {"1": [1000, 3000]},
}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, None),
        ({"times_ns": {"1": []}}, "its times make no sense"),
        ({"times_ns": {"1": ["x"]}}, "its times make no sense"),
        ({"times_ns": {"1": [-1]}}, "its times make no sense"),
        ({"times_ns": {"x": [1]}}, "its answer makes no sense"),
        ({"times_ns": 7}, "its answer makes no sense"),
        ({"outputs": [{"shape": [1, 9], "dtype": "int8"}]}, "its outputs have 320 bytes, not 32"),
        ({"outputs": [{"shape": [1, 10], "dtype": "nonsense"}]}, "its answer makes no sense"),
        ({"outputs": []}, "its outputs have 320 bytes, not 32 times 0"),
        ({"version": "x" * 1000}, None),
    ],
)
def test_answers_are_checked(
    bench: Bench, tmp_path: Path, change: dict[str, Any], error: str | None
) -> None:
    answer = tmp_path / "answer"
    answer.write_bytes(bytes(320) + f"\n{json.dumps(ANSWER | change)}\n".encode())
    place = dataclasses.replace(bench.place, python=fake(tmp_path, f"cat '{answer}'"))
    board = linux._Board(bench.connection, place, EFFORT, 60, bench.subject.inputs.tensors)
    measured = board.run_case(Case("litert", PROGRAM, is_real=False))
    if error is None:
        assert measured.error is None and len(measured.version or "") <= 40
        assert measured.outputs[0].shape == (32, 10) and measured.latencies[0].median == 2
    else:
        assert (measured.error or "").startswith(error)


def test_what_is_not_there_is_told(bench: Bench) -> None:
    if not bench.cases:
        pytest.skip("LiteRT or ONNX Runtime are not installed")
    reason = "onnxruntime has no wheel for Python 3.9, armv7l, glibc 2.31"
    choice = RuntimeChoice("tflite-runtime", None, (), ("ai-edge-litert has no wheel", reason))
    run = bench.measure(choice=choice, python=None, why_no_python="the disk is full")
    assert [measured.error for measured in run.runtimes] == ["the disk is full"] * 3 + [reason] * 2
    assert run.runtimes[0].name == "TensorFlow Lite (XNNPACK)"
    assert run.generated.error is None and len(run.generated.outputs[0]) == 32
    nothing = RuntimeChoice(None, None, (), ("python3 is not installed",))
    run = bench.measure(choice=nothing, python=None)
    assert {measured.error for measured in run.runtimes} == {"python3 is not installed"}


def test_a_row_without_a_result_is_written(bench: Bench) -> None:
    if not bench.cases:
        pytest.skip("LiteRT or ONNX Runtime are not installed")
    place = dataclasses.replace(bench.place, python=None, why_no_python="no room")
    results = dataclasses.replace(bench, place=place).results()
    assert results.all_equal
    for row in results.runtimes[1:]:
        assert (row.error, row.accuracy, row.latency_us, row.bytes) == ("no room", None, None, 0)
        assert row.model_bytes and row.size_bytes is None
    assert from_json(Results, json.loads(json.dumps(to_json(results))), "x") == results


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("kill -SEGV $$", r"generated C: it crashed \(SIGSEGV\)"),
        ("sleep 60", "generated C: it did not end within 1 s"),
        ("head -c 300", "generated C: its answer is cut short"),
        ("head -c 300; printf '\\n{\"times_ns\": [1]}\\n'", "its outputs have 300 bytes, not 32"),
        ("head -c 320; printf '\\n{\"times_ns\": 7}\\n'", "its times make no sense"),
    ],
)
def test_a_failing_program_is_an_error(
    bench: Bench, tmp_path: Path, what: str, message: str
) -> None:
    fake(tmp_path, what, PROGRAM_NAME)
    place = dataclasses.replace(bench.place, release=str(tmp_path))
    board = linux._Board(
        bench.connection, place, EFFORT, seconds_for(what), bench.subject.inputs.tensors
    )
    with pytest.raises(CheckFailedError, match=message):
        board.run_program(bench.subject.image.outputs)


def test_a_full_disk_is_no_fault_of_the_program(bench: Bench, tmp_path: Path) -> None:
    fake(tmp_path, "echo >&2 'cannot write: No space left on device'; exit 2", PROGRAM_NAME)
    place = dataclasses.replace(bench.place, release=str(tmp_path))
    board = linux._Board(bench.connection, place, EFFORT, 60, bench.subject.inputs.tensors)
    with pytest.raises(BoardError, match="generated C: the board's disk is full"):
        board.run_program(bench.subject.image.outputs)


def test_measurements_of_a_board_wait_for_each_other(
    server: Server, bench: Bench, tmp_path: Path
) -> None:
    order: list[str] = []
    begun = threading.Event()

    def measure_first() -> None:
        with server.connect() as own, linux.measure_alone(own, str(tmp_path)):
            begun.set()
            time.sleep(1)
            order.append("first")

    thread = threading.Thread(target=measure_first)
    thread.start()
    assert begun.wait(60)
    with linux.measure_alone(bench.connection, str(tmp_path)):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_one_wrong_byte_fails_the_deploy(bench: Bench, tmp_path: Path) -> None:
    program = f"{bench.place.release}/{PROGRAM_NAME}"
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import subprocess, sys\n"
        f"done = subprocess.run([{program!r}, *sys.argv[1:]], stdin=0, stdout=subprocess.PIPE)\n"
        "out = bytearray(done.stdout)\nout[37] ^= 1\nsys.stdout.buffer.write(out)\n"
    )
    fake(tmp_path, f"exec '{sys.executable}' '{wrong}' \"$@\"", PROGRAM_NAME)
    place = dataclasses.replace(bench.place, release=str(tmp_path))
    with pytest.raises(
        CheckFailedError, match=r"digits_mlp on rpi: board .* 1 of 320 output bytes"
    ):
        dataclasses.replace(bench, place=place, cases=()).results()


def test_a_name_runs_no_command(bench: Bench, tmp_path: Path) -> None:
    base = tmp_path / "base; $(touch pwned) 'x' `touch pwned`"
    run = dataclasses.replace(bench, cases=bench.cases[1:2]).measure(base=str(base))
    assert [measured.error for measured in run.runtimes] == [None] * len(bench.cases[1:2])
    assert (base / f".measure-{NAME}" / "codes.bin").is_file()
    assert not list(tmp_path.glob("**/pwned"))


def test_an_emulator_is_told_of(bench: Bench) -> None:
    facts = dataclasses.replace(bench.place.facts, is_emulated=True)
    place = dataclasses.replace(bench.place, facts=facts)
    results = dataclasses.replace(bench, place=place, cases=()).results()
    assert results.emulated and results.latency_us is None
    (own,) = results.runtimes
    assert own.latency_us is not None and own.latency_us.emulated
    assert results.board_facts.emulator == "QEMU"


def test_the_processor_s_state_is_noted(server: Server, connection: Connection) -> None:
    vcgencmd = Path(fake(server.wrappers, "echo throttled=0x50005", "vcgencmd"))
    try:
        found = linux.read_conditions(connection)
    finally:
        vcgencmd.unlink()
    assert found.throttled == (
        *("under-voltage", "throttled"),
        *("under-voltage has occurred", "throttling has occurred"),
    )
    assert linux.read_conditions(connection).throttled is None


def test_state_of_a_processor_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Board:
        text = ""

        def run(self, script: str) -> Board:
            return self

    board: Any = Board()
    board.text = "governor ondemand\nfrequency_khz 1500000\ntemperature_mc 48312\nthrottled 0x0\n"
    assert linux.read_conditions(board) == Conditions("ondemand", 1500, 48.3, ())
    board.text = "governor \x1b[0m\nfrequency_khz fast\ntemperature_mc --5\nthrottled no\njunk"
    assert linux.read_conditions(board) == Conditions(None, None, None, None)


@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(st.lists(st.integers(1, 3), max_size=3), st.sampled_from("bhif")), min_size=1
    ),
    st.integers(0, 2**32 - 1),
)
def test_tensors_survive_the_way(
    samples: int, kinds: list[tuple[list[int], str]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    specs = [TensorSpec("", (1, *shape), np.dtype(kind)) for shape, kind in kinds]
    arrays = tuple(
        np.frombuffer(random.bytes(samples * spec.bytes), spec.dtype).reshape(
            samples, *spec.batch_shape
        )
        for spec in specs
    )
    back = linux.unpack(linux.pack(arrays), specs, samples)
    assert [(a.shape, a.dtype, a.tobytes()) for a in back] == [
        (a.shape, a.dtype, a.tobytes()) for a in arrays
    ]


@pytest.mark.parametrize(
    ("cores", "threads"),
    [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (6, (1, 2, 3, 4, 6)), (16, (1, 2, 3, 4, 8, 16))],
)
def test_threads_are_one_to_all(bench: Bench, cores: int, threads: tuple[int, ...]) -> None:
    facts = dataclasses.replace(bench.place.facts, cores=cores)
    assert dataclasses.replace(bench.place, facts=facts).threads == threads


def test_percentiles() -> None:
    latency = linux.summarize([n * 1000 for n in range(1, 102)], 3, 7, True)
    assert (latency.median, latency.p90, latency.p99) == (51, 91, 100)
    assert (latency.runs, latency.threads, latency.warmup, latency.emulated) == (101, 3, 7, True)


def test_an_unknown_signal_has_its_number() -> None:
    assert linux.explain(Completed(128 + 60, b"", ""), 1) == "it crashed (signal 60)"


class TestProgram:
    """The program that runs on the board, run here."""

    def run(
        self, *arguments: object, python: str = sys.executable, options: str = "-I"
    ) -> subprocess.CompletedProcess[bytes]:
        command = [python, options, PROGRAM, *arguments]
        return subprocess.run(list(map(str, command)), capture_output=True, timeout=120)

    @pytest.fixture
    def codes(self, bench: Bench, tmp_path: Path) -> Path:
        path = tmp_path / "codes"
        path.write_bytes(linux.pack(bench.subject.inputs.tensors))
        return path

    @pytest.fixture
    def model(self, root: Path) -> Path:
        return root / f"tests/golden/{NAME}_int8.tflite"

    def test_without_its_runtime_it_says_so(self, codes: Path, model: Path, tmp_path: Path) -> None:
        import venv

        venv.create(tmp_path / "bare", symlinks=True)
        python = str(tmp_path / "bare/bin/python")
        for runtime, names in (
            ("litert", "ai-edge-litert or tflite-runtime"),
            ("onnxruntime", "onnxruntime"),
        ):
            done = self.run(runtime, model, codes, "--samples", 32, python=python)
            assert (done.returncode, done.stdout) == (1, b"")
            assert done.stderr.decode().strip() == f"not installed: {names}"

    def test_a_damaged_model_is_one_line(self, codes: Path, tmp_path: Path) -> None:
        pytest.importorskip("ai_edge_litert")
        (tmp_path / "bad.tflite").write_bytes(b"nothing")
        done = self.run("litert", tmp_path / "bad.tflite", codes, "--samples", 32)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"Traceback" not in done.stderr and b"ValueError: " in done.stderr

    @pytest.mark.parametrize(
        ("size", "message"),
        [(0, b"the inputs are 0 of"), (640, b"the inputs are 10 of"), (100, b"not those of this")],
    )
    def test_other_inputs_are_refused(
        self, codes: Path, model: Path, size: int, message: bytes
    ) -> None:
        pytest.importorskip("ai_edge_litert")
        codes.write_bytes(codes.read_bytes()[:size])
        done = self.run("litert", model, codes, "--samples", 32)
        assert done.returncode == 1 and message in done.stderr

    def test_bytes_are_those_of_the_reference_kernels(
        self, bench: Bench, codes: Path, model: Path
    ) -> None:
        pytest.importorskip("ai_edge_litert")
        from edgekiln.bench.runners import LiteRTRunner

        done = self.run("litert-reference", model, codes, "--samples", 32, "--runs", 1)
        raw, about = linux.split_answer(done.stdout)
        (want,) = LiteRTRunner(model.read_bytes()).run(bench.subject.inputs.tensors)
        assert raw == want.tobytes()
        assert about["outputs"] == [{"shape": [1, 10], "dtype": "int8"}]
        assert len(about["times_ns"]["1"]) == 1

    def test_it_needs_python_3_9_alone(self, root: Path) -> None:
        ruff = shutil.which("ruff", path=Path(sys.executable).parent)
        if ruff is None:
            pytest.skip("ruff is not installed")
        command = [
            ruff,
            "check",
            "--isolated",
            "--target-version",
            "py39",
            "--select",
            "E9,F",
            PROGRAM,
        ]
        assert subprocess.run(command, timeout=60).returncode == 0
        compile(PROGRAM.read_text(), "measure.py", "exec", dont_inherit=True)


def test_what_is_measured_and_compared_depends_on_the_model(bench: Bench) -> None:
    """Several inputs or outputs of a float model may be in another order; real numbers differ."""
    if not bench.cases:
        pytest.skip("LiteRT or ONNX Runtime are not installed")
    assert refuse_cases(bench.cases, bench.subject, bench.reals) == bench.cases
    refused = refuse_cases(bench.cases, bench.subject, bench.reals * 2)
    assert [bool(case.why_not) for case in refused] == [case.is_real for case in bench.cases]
    only = dataclasses.replace(bench, cases=tuple(case for case in refused if case.is_real))
    assert {m.error for m in only.measure().runtimes} == {refused[0].why_not}
    run = bench.measure()
    labels, image = bench.subject.inputs.labels, bench.subject.image
    doubled = tuple(dataclasses.replace(m, outputs=m.outputs * 2) for m in run.runtimes)
    rows = describe_runtimes(
        dataclasses.replace(run, runtimes=doubled),
        labels=labels,
        references={"generated C on host": run.generated.outputs * 2},
        image=image,
        program_bytes=1,
    )
    assert [row.accuracy is None for row in rows] == [row.model == "float" for row in rows]
    assert [row.reference is None for row in rows[1:]] == [row.model == "float" for row in rows[1:]]


def test_litert_is_not_run_where_it_destroys_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux_results, "litert_is_safe", lambda graph: False)
    cases = tuple(
        Case(runtime, PROGRAM, is_real)
        for runtime, is_real in (("litert", True), ("litert", False), ("onnxruntime", False))
    )
    refused = refuse_cases(cases, bench.subject, bench.reals)
    assert ["SVDF" in case.why_not for case in refused] == [False, True, False]
