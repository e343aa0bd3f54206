"""How the command line ends: results on stdout, one line for an error, an exit code.

Exit codes: 0, and those of `edgekiln.errors`; 2 for a wrong option; 70 for a bug of edgekiln
itself; 130 when interrupted; 141 when the reader of stdout went away.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from edgekiln.errors import EdgekilnError

EXIT_NO_SPACE = 3
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

#: What the operating system refuses and no program can help.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE}


def run(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Runs a click command and turns whatever it raises into one line and an exit code.

    With EDGEKILN_DEBUG=1 in the environment a bug's whole traceback is printed too.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if "_EDGEKILN_COMPLETE" in os.environ:  # the shell asks how to complete a word
        command.main(arguments, prog_name="edgekiln")
    try:
        # Not command.main(): that ends with 1 when stdout's reader goes away.
        with command.make_context("edgekiln", arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
    except EdgekilnError as error:
        return _fail(str(error), error.exit_code)
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "edgekiln"
        return _fail(f"{error.format_message()} Try '{path} --help'.", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        return _fail_unexpectedly(error)
    return 0


def _fail(message: str, exit_code: int) -> int:
    print(f"edgekiln: error: {' '.join(message.split())}", file=sys.stderr)
    return exit_code


def _fail_unexpectedly(error: Exception) -> int:
    if os.environ.get("EDGEKILN_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}", EXIT_NO_SPACE)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return _fail(
        f"this is a bug in edgekiln: {type(error).__name__} at {place}: {error}; please report it "
        "with the output of the same command under EDGEKILN_DEBUG=1 (see CONTRIBUTING.md)",
        EXIT_BUG,
    )


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
    """Sends to stderr whatever is written to file descriptor 1 inside the block.

    Libraries and child processes print there without being asked.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)


def print_json(value: object) -> None:
    """Prints a result to stdout as one JSON object."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str | int | None]]) -> None:
    """Prints a result to stdout as plain columns, for people and for grep.

    Columns of numbers are aligned to the right. None, for what is not known, becomes a dash.
    """
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    aligned = [_align(title, cells) for title, cells in zip(header, columns, strict=True)]
    for line in zip(*aligned, strict=True):
        click.echo("  ".join(line).rstrip())


def _align(title: str, cells: Sequence[str | int | None]) -> list[str]:
    texts = [title, *(_text(cell) for cell in cells)]
    width = max(map(len, texts))
    if cells and not any(isinstance(cell, str) for cell in cells):
        return [text.rjust(width) for text in texts]
    return [text.ljust(width) for text in texts]


def _text(cell: str | int | None) -> str:
    return "-" if cell is None else cell if isinstance(cell, str) else f"{cell:,}"


def print_facts(*facts: tuple[str, str | int | None]) -> None:
    """Prints a result to stdout as lines of a name and what is known of it."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        click.echo(f"{name.ljust(width)}  {_text(value)}")
