"""How commands end: what goes to stdout, what to stderr, and with which exit code."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from edgekiln import errors, terminal


def run(action: Callable[[], object]) -> int:
    @click.command()
    @click.option("--number", type=int)
    def command(number: int | None) -> object:
        return action()

    return terminal.run(command, [])


def raiser(error: BaseException) -> Callable[[], object]:
    def action() -> object:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.CheckFailedError("bytes differ", where="m"), 1),
        (errors.BadModelError("truncated", where="m"), 2),
        (errors.ToolMissingError("no gcc", where="m"), 3),
        (errors.BoardError("no answer", where="m"), 3),
    ],
)
def test_an_expected_error_is_one_line(
    error: errors.EdgekilnError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raiser(error)) == code
    assert capsys.readouterr() == ("", f"edgekiln: error: {error}\n")


def test_a_bug_is_one_line_that_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKILN_DEBUG", raising=False)
    assert run(raiser(KeyError("a\nb"))) == 70
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "bug" in err
    assert "KeyError" in err
    assert "EDGEKILN_DEBUG=1" in err


def test_debugging_adds_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_DEBUG", "1")
    assert run(raiser(KeyError("a"))) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_full_disk_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")
    assert run(raiser(error)) == 3
    assert capsys.readouterr().err == "edgekiln: error: there: No space left on device\n"


def test_an_interrupt_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raiser(KeyboardInterrupt())) == 130
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [["--nope"], ["--number", "x"], ["too", "many"]])
def test_a_wrong_option_is_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.option("--number", type=int)
    def command(number: int | None) -> None: ...

    assert terminal.run(command, arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("edgekiln: error: ")


def test_columns(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_columns(("name", "bytes", "note"), [("a", None, "x"), ("longer", 12345, "")])
    assert capsys.readouterr().out == "name     bytes  note\na            -  x\nlonger  12,345\n"


def test_facts(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_facts(("name", "x"), ("instructions", 12345), ("cycles", None))
    out = capsys.readouterr().out
    assert out == "name          x\ninstructions  12,345\ncycles        -\n"


def test_columns_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_columns(("name", "bytes"), [])
    assert capsys.readouterr().out == "name  bytes\n"


def test_only_the_result_reaches_stdout() -> None:
    program = (
        "import ctypes, os, sys\n"
        "from edgekiln.terminal import print_json, stdout_for_results\n"
        "with stdout_for_results():\n"
        "    print('from Python')\n"
        "    ctypes.CDLL(None).puts(b'from C')\n"
        "    os.system('echo from a child')\n"
        "print_json({'a': 1})\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert json.loads(result.stdout) == {"a": 1}
    assert sorted(result.stderr.split("\n")) == ["", "from C", "from Python", "from a child"]


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = (
        "import sys, click\n"
        "from edgekiln import terminal\n"
        "def callback():\n"
        "    while True:\n"
        "        click.echo('y' * 10000)\n"
        "sys.exit(terminal.run(click.Command('x', callback=callback), []))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""
