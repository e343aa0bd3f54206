"""Every error that edgekiln raises on purpose.

::

    EdgekilnError              exit code
    ├── BadInputError             2   a file, option or value that cannot be used
    │   ├── BadModelError         2   a model file that is damaged or not what it claims to be
    │   ├── UnsupportedOpError    2   a model which holds an op or a variant the compiler lacks
    │   └── DoesNotFitError       2   a model larger than the board's flash or RAM
    ├── ToolMissingError          3   a program, package or board that is not there
    ├── BoardError                3   a board or emulator that does not answer, or answers nonsense
    └── CheckFailedError          1   a comparison which had to hold and did not

A message is one line: where, what, what was got, what is allowed, what to do next.
"""

from __future__ import annotations


class EdgekilnError(Exception):
    """Base class of all errors that edgekiln raises on purpose.

    Args:
        what: What is wrong, as a short clause without a full stop.
        where: The file, node, option or board it is about.
        got: What was found.
        allowed: What would have been right.
        hint: What to do next, as a clause.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = "",
        got: object = "",
        allowed: object = "",
        hint: str = "",
    ) -> None:
        self.what = what
        self.where = str(where)
        self.got = str(got)
        self.allowed = str(allowed)
        self.hint = hint
        super().__init__(self._one_line())

    def _one_line(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.got:
            text += f"; got {self.got}"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.hint:
            text += f"; {self.hint}"
        return " ".join(text.split())


class BadInputError(EdgekilnError):
    """A file, option or value that cannot be used."""


class BadModelError(BadInputError):
    """A model file that is damaged or not what it claims to be."""


class UnsupportedOpError(BadInputError):
    """A model which holds an op, or a variant of one, that the compiler lacks."""


class DoesNotFitError(BadInputError):
    """A model larger than the board's flash or RAM."""


class ToolMissingError(EdgekilnError):
    """A program, a package or a board that is not there."""

    exit_code = 3


class BoardError(EdgekilnError):
    """A board or an emulator that does not answer, or answers nonsense."""

    exit_code = 3


class CheckFailedError(EdgekilnError):
    """A comparison which had to hold and did not."""

    exit_code = 1
