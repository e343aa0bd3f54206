"""Measuring on a virtual Raspberry Pi, with the runtimes' own wheels for it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

import pytest
from linux_bench import NAME, make_bench

from edgekiln.bench.linux import Place
from edgekiln.bench.report import render_report
from edgekiln.bench.results import Results, from_json, to_json
from edgekiln.errors import ToolMissingError
from edgekiln.firmware.linux.facts import choose_runtime, find_facts
from edgekiln.firmware.linux.install import prepare_environment
from edgekiln.firmware.linux.ssh import Connection, parse_host
from edgekiln.firmware.virtual_pi import VirtualPi, start_virtual_pi

pytestmark = [pytest.mark.emulator, pytest.mark.slow, pytest.mark.timeout(900)]


@contextlib.contextmanager
def skipping() -> Iterator[None]:
    """Skips the test, or fails it in CI, where a program is missing."""
    try:
        yield
    except ToolMissingError as error:
        in_ci = os.environ.get("CI", "").lower() in ("1", "true")
        (pytest.fail if in_ci else pytest.skip)(str(error))


@pytest.fixture(scope="module")
def pi() -> Iterator[VirtualPi]:
    with skipping():
        running = start_virtual_pi("arm64", "chroot")
    with running:
        yield running


@pytest.fixture(scope="module")
def results(pi: VirtualPi, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A measurement with every runtime; made once."""
    work = tmp_path_factory.mktemp("pi")
    with skipping(), Connection(parse_host(pi.alias), ssh_config=pi.ssh_config) as connection:
        facts = find_facts(connection)
        choice = choose_runtime(facts)
        made = prepare_environment(connection, choice.requirements, facts=facts)
        place = Place(facts, "edgekiln", "edgekiln/release", NAME, choice, made.python)
        bench = make_bench(connection, place, work, target="aarch64", architecture="aarch64")
        if not bench.cases:
            pytest.skip("LiteRT or ONNX Runtime are not installed here")
        connection.push(work / "release", place.release)
        return bench.results()


def test_every_runtime_of_a_pi_answers(results: Results) -> None:
    assert [(run.name, run.model, run.error) for run in results.runtimes] == [
        ("generated C", "int8", None),
        ("LiteRT (XNNPACK)", "float", None),
        ("LiteRT (XNNPACK)", "int8", None),
        ("LiteRT (BUILTIN_REF)", "int8", None),
        ("ONNX Runtime", "float", None),
        ("ONNX Runtime", "int8", None),
    ]
    assert all(run.samples == 32 for run in results.runtimes)
    assert all((run.accuracy or 0) >= 30 / 32 for run in results.runtimes)


def test_bytes_are_the_host_s(results: Results) -> None:
    assert results.all_equal and results.accuracy.device_equals_host_bytes
    own, reference = results.runtimes[0], results.runtimes[3]
    assert (own.reference, own.equal_bytes) == ("generated C on host", own.bytes)
    assert reference.reference == "LiteRT (BUILTIN_REF) on host"
    assert reference.equal_bytes == reference.bytes == 320


def test_nothing_is_told_of_a_pi_s_speed(results: Results) -> None:
    assert results.emulated and results.latency_us is None and results.cycles is None
    times = [time for run in results.runtimes for time in run.latency_us_by_threads]
    assert len(times) > 5 and all(time.emulated for time in times)
    page = render_report(results)
    assert "An emulator stood for the board" in page and "time, emulated" in page
    assert results.board_facts.emulator == "QEMU"


def test_it_is_written_and_read(results: Results) -> None:
    assert results.system is not None and results.system.architecture == "aarch64"
    assert from_json(Results, json.loads(json.dumps(to_json(results))), "x") == results
