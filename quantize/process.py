"""Runs a job in a Python process of its own.

TensorFlow's converters print on file descriptors 1 and 2, hold on to most of a gigabyte, and
can die by a signal. In a process of their own none of that reaches the user: what they print
goes to a log, the memory goes back, and a crash becomes one line.

A worker is a module run as ``python -m <module>`` whose main is `serve`. It reads one JSON
object from stdin and answers on its stdout with JSON lines: ``{"stage": text}`` any number of
times, then ``{"result": object}``, or ``{"refusal": object}`` for an `EdgekilnError`, or
``{"failure": text}`` for any other exception.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from edgekiln import console, errors

Report = Callable[[str], None]
Job = dict[str, Any]
Task = Callable[[Job, Report], Job]

#: The same job gives the same bytes: no graphics card, and no random order of sets.
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "PYTHONHASHSEED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def run_worker(module: str, job: Job, *, where: Path, description: str) -> Job:
    """Runs ``job`` in the worker ``module`` behind a pulsing bar that names the stage.

    Args:
        module: Full name of the module to run.
        job: What the worker reads; JSON values, ``job["task"]`` among them.
        where: The file the job is about, for messages.
        description: What is done, for the bar and for messages, as in "converting to int8".

    Returns:
        The worker's result.

    Raises:
        EdgekilnError: What the task raised, if it was one of those.
        BadModelError: The task failed otherwise, or the worker died. The message names a log
            with all that the worker printed. In the other cases there is no log.
    """
    handle, name = tempfile.mkstemp(prefix="edgekiln-", suffix=".log")
    log = Path(name)
    answer: Job = {}
    with os.fdopen(handle, "wb") as stream, console.progress() as bar:
        shown = bar.add_task(description[0].upper() + description[1:], total=None, note="")
        try:
            answer, status = _run(
                module, job, stream.fileno(), lambda text: bar.update(shown, note=text)
            )
        except BaseException:
            log.unlink()
            raise
        bar.update(shown, total=1, completed=int(status == 0), note="")
    if "result" in answer or "refusal" in answer:
        log.unlink()
    if status == 0 and "result" in answer:
        return dict(answer["result"])
    if "refusal" in answer:
        raise _rebuild(answer["refusal"])
    raise errors.BadModelError(
        f"{description} failed: {answer.get('failure') or _cause(status)}",
        where=where,
        hint=f"all that it printed is in {log}",
    )


def _run(module: str, job: Job, log: int, report: Report) -> tuple[Job, int]:
    """Returns the worker's last answer and its exit status (negative: minus the signal)."""
    answer: Job = {}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, **_ENVIRONMENT},
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            _send_job(process, job)
            for message in _read_messages(process):
                if "stage" in message:
                    report(message["stage"])
                else:
                    answer = message
            return answer, process.wait()
        except BaseException:
            process.kill()
            raise


def _send_job(process: subprocess.Popen[str], job: Job) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(job))
        process.stdin.close()
    except BrokenPipeError:
        pass  # It died before it could read; its exit status tells.


def _read_messages(process: subprocess.Popen[str]) -> Iterator[Job]:
    assert process.stdout is not None
    for line in process.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # Half a line, from a worker that died while it wrote.
        if isinstance(message, dict):
            yield message


def _cause(status: int) -> str:
    if status >= 0:
        return f"its process ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"its process died by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


def _rebuild(refusal: Mapping[str, str]) -> errors.EdgekilnError:
    kind: type[errors.EdgekilnError] = getattr(errors, refusal["kind"])
    return kind(
        refusal["what"],
        where=refusal["where"],
        got=refusal["got"],
        allowed=refusal["allowed"],
        hint=refusal["hint"],
    )


def serve(tasks: Mapping[str, Task]) -> None:
    """The main of a worker: runs ``tasks[job["task"]](job, report)`` and exits.

    What is printed meanwhile on stdout or stderr, by Python or by C, goes to the log.
    """
    answers: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: Job) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    job = json.load(sys.stdin)
    try:
        send({"result": tasks[job["task"]](job, lambda text: send({"stage": text}))})
    except errors.EdgekilnError as error:
        texts = {name: getattr(error, name) for name in ("what", "where", "got", "allowed", "hint")}
        send({"refusal": {"kind": type(error).__name__, **texts}})
        sys.exit(error.exit_code)
    except Exception as error:
        traceback.print_exc()
        send({"failure": textwrap.shorten(f"{type(error).__name__}: {error}", 200)})
        sys.exit(1)
