"""Messages, progress bars and tables. All of it goes to stderr; stdout is for results."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.prompt import Prompt
from rich.table import Table

T = TypeVar("T")

stderr = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """Prints one line for a person."""
    stderr.print(message, markup=False, soft_wrap=True)


def progress() -> Progress:
    """Returns a progress display: ``with progress() as bar: task = bar.add_task("…", total=n)``.

    With ``total=None`` the bar pulses, for work whose length is not known. Where stderr is
    not a terminal only the finished line is printed.
    """
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=stderr,
    )


def byte_progress() -> Progress:
    """Returns a display as `progress` does, for totals in bytes."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=15),
        DownloadColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=stderr,
    )


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yields ``items`` while a progress bar named ``description`` counts them."""
    with progress() as bar:
        task = bar.add_task(description, total=total, note="")
        for item in items:
            yield item
            bar.advance(task)


def make_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Returns a table; the first column is left-aligned, the others to the right."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        first = number == 0  # whose names are not cut short
        table.add_column(
            column, justify="left" if first else "right", overflow="fold" if first else "ellipsis"
        )
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def show(table: Table) -> None:
    """Prints a table to stderr."""
    stderr.print(table)


def choose(question: str, answers: Sequence[str]) -> int | None:
    """Asks a person which of several answers is right.

    Returns:
        The answer's number, from 0, or None where nobody is there: stdin or stderr is no terminal.
    """
    if not (sys.stdin is not None and sys.stdin.isatty() and stderr.is_terminal):
        return None
    for number, answer in enumerate(answers, 1):
        say(f"  {number}  {answer}")
    choices = [str(number) for number in range(1, len(answers) + 1)]
    return int(Prompt.ask(question, console=stderr, choices=choices)) - 1
