"""Faults on the line, thousands of them: no wrong output is reported, and nothing hangs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fault_injection import (
    HOST_GONE,
    KINDS,
    RESET,
    Injector,
    Report,
    Subject,
    inject,
    make_subjects,
)

from edgekiln.bench import protocol
from edgekiln.bench.protocol import Device


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    """The application on this machine, with two models."""
    return make_subjects("host", tmp_path_factory.mktemp("host"))


def check(report: Report, faults: int) -> None:
    assert report.faults.total() >= faults
    assert report.wrong == []
    assert report.hung == []
    assert report.answered > report.given_up
    assert report.incidents.total() > faults / 10


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute where little else runs
def test_ten_thousand_faults(subjects: Sequence[Subject]) -> None:
    report = inject(subjects, 10_000, workers=16, seed=0)
    check(report, 10_000)
    assert report.faults.keys() == {*KINDS, RESET, HOST_GONE}


@pytest.mark.slow
@pytest.mark.emulator
def test_faults_between_the_host_and_an_emulator(tmp_path: Path) -> None:
    check(inject(make_subjects("mps2-an386", tmp_path), 150, workers=3, seed=1), 150)


def believe(lines: Sequence[str]) -> protocol.Answer:
    """Takes any output at its word."""
    try:
        fields = dict(
            pair.split("=") for pair in lines[0].partition("[")[2].partition("]")[0].split(",")
        )
        return protocol.Answer(0, 0, 0, bytes.fromhex(fields["data"]))
    except (IndexError, ValueError, KeyError):
        raise protocol._LineError("no output at all") from None


def run_in_good_faith(device: Device, data: bytes, runs: int = 1) -> tuple[bytes, int]:
    device._load(data)
    return believe(device._command("run")).output, 0


def test_a_host_that_believes_all_is_found_out(
    subjects: Sequence[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its checks the host reports wrong outputs: the faults are such as matter."""
    monkeypatch.setattr(Device, "_run", run_in_good_faith)
    report = inject(subjects, 1000, workers=8, seed=2)
    assert len(report.wrong) > 5
    assert {finding.partition(":")[0] for finding in report.wrong} == {"digits", "stream"}


def test_the_seed_decides_what_happens() -> None:
    data = bytes(range(256)) * 40
    made = []
    for seed in (3, 3, 4):
        injector = Injector(seed, 30)
        assert injector.spoil(data) == data  # not yet
        injector.enabled = True
        made.append((injector.spoil(data), injector.faults))
        assert injector.done
        assert injector.faults.total() == 30
        assert injector.spoil(data) == data  # no longer
    assert made[0] == made[1] != made[2]
