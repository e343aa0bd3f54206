"""Jobs in a process of their own: results, refusals, failures and crashes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekiln.errors import BadInputError, BadModelError, CheckFailedError, EdgekilnError
from edgekiln.quantize import process
from edgekiln.quantize.process import run_worker

WORKER = """
import ctypes, os, signal, sys, time
from edgekiln.errors import BadInputError, CheckFailedError
from edgekiln.quantize.process import serve

def echo(job, report):
    report("first stage")
    print("chatter on stdout")
    print("chatter on stderr", file=sys.stderr)
    os.write(1, b"chatter from C\\n")
    report("second stage")
    return {"echo": job["value"]}

def refuse(job, report):
    raise BadInputError("is bad", where="x.keras", got="1", allowed="2", hint="do better")

def check(job, report):
    raise CheckFailedError("does not hold")

def fail(job, report):
    print("last words")
    raise ValueError("first line\\nsecond line")

def die(job, report):
    os.write(2, b"last words\\n")
    os.kill(os.getpid(), job["signal"])

def leave(job, report):
    os._exit(7)

def half(job, report):
    report("fine")
    os.write(answers, b'{"result": {"tr')
    os._exit(0)

def sleep(job, report):
    report(str(os.getpid()))
    time.sleep(600)

answers = os.dup(1)
serve({f.__name__: f for f in (echo, refuse, check, fail, die, leave, half, sleep)})
"""


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_worker.py").write_text(WORKER)
    (tmp_path / "logs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "logs"))


def run(task: str, **job: object) -> process.Job:
    return run_worker(
        "some_worker", {"task": task, **job}, where=Path("m.keras"), description="doing things"
    )


def logs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "logs").iterdir())


def failure(caught: pytest.ExceptionInfo[BadModelError], tmp_path: Path) -> str:
    """Checks that the one log is named in the message, and returns the message without it."""
    (log,) = logs(tmp_path)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(f"; all that it printed is in {log}")
    return message.partition("; all that")[0]


def test_a_result_comes_back_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    value = {"text": 'ü\n"', "number": 1.5, "none": None, "list": [1, 2] * 50_000}
    assert run("echo", value=value) == {"echo": value}
    out, err = capfd.readouterr()
    assert out == "" and "chatter" not in err and "Doing things" in err
    assert logs(tmp_path) == []


def test_stages_are_reported(tmp_path: Path) -> None:
    stages: list[str] = []
    with (tmp_path / "log").open("wb") as log:
        job = {"task": "echo", "value": 1}
        answer, status = process._run("some_worker", job, log.fileno(), stages.append)
    assert (answer, status) == ({"result": {"echo": 1}}, 0)
    assert stages == ["first stage", "second stage"]
    chatter = (tmp_path / "log").read_text()
    assert "chatter on stdout" in chatter and "chatter on stderr" in chatter
    assert "chatter from C" in chatter


def test_a_refusal_is_raised_again(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        run("refuse")
    assert type(caught.value) is BadInputError
    assert str(caught.value) == "x.keras: is bad; got 1; allowed: 2; do better"
    with pytest.raises(CheckFailedError) as failed:
        run("check")
    assert failed.value.exit_code == 1 and str(failed.value) == "does not hold"
    assert logs(tmp_path) == []


def test_an_exception_is_one_line_and_a_log(tmp_path: Path) -> None:
    with pytest.raises(BadModelError) as caught:
        run("fail")
    assert failure(caught, tmp_path) == (
        "m.keras: doing things failed: ValueError: first line second line"
    )
    log = logs(tmp_path)[0].read_text()
    assert "last words" in log and "Traceback" in log


@pytest.mark.parametrize(
    ("number", "name"), [(11, "SIGSEGV"), (6, "SIGABRT"), (9, r"SIGKILL (out of memory?)")]
)
def test_a_crash_is_one_line_and_a_log(number: int, name: str, tmp_path: Path) -> None:
    with pytest.raises(BadModelError) as caught:
        run("die", signal=number)
    assert failure(caught, tmp_path) == (
        f"m.keras: doing things failed: its process died by {name}"
    )
    assert "last words" in logs(tmp_path)[0].read_text()


@pytest.mark.parametrize(("task", "status"), [("leave", 7), ("half", 0)])
def test_a_worker_without_an_answer(task: str, status: int, tmp_path: Path) -> None:
    with pytest.raises(BadModelError) as caught:
        run(task)
    assert failure(caught, tmp_path) == (
        f"m.keras: doing things failed: its process ended with exit status {status}"
    )


def test_a_worker_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match="ended with exit status 1"):
        run_worker("no_such_module", {}, where=Path("m"), description="doing things")
    assert "No module named" in logs(tmp_path)[0].read_text()


def test_an_interrupt_ends_the_worker(tmp_path: Path) -> None:
    pids: list[int] = []

    def interrupt(text: str) -> None:
        pids.append(int(text))
        raise KeyboardInterrupt

    with (tmp_path / "log").open("wb") as log, pytest.raises(KeyboardInterrupt):
        process._run("some_worker", {"task": "sleep"}, log.fileno(), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_an_interrupt_leaves_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("echo", value=1)
    assert logs(tmp_path) == []


def test_the_working_directory_is_not_searched_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "random.py").write_text("raise SystemExit('a file of the user, by chance')")
    monkeypatch.chdir(here)
    assert run("echo", value=1) == {"echo": 1}


def test_every_kind_of_error_can_cross() -> None:
    kinds = [EdgekilnError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    for kind in (kind for kind in kinds if kind.__module__ == "edgekiln.errors"):
        texts = {"what": "w", "where": "x", "got": "g", "allowed": "a", "hint": "h"}
        error = process._rebuild({"kind": kind.__name__, **texts})
        assert type(error) is kind and str(error) == "x: w; got g; allowed: a; h"
