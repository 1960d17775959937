"""Errors that users can fix, and the exit codes.

`UserError` names what is wrong, with which value, and one action; `RecipeError` carries every problem of a recipe at
once, each with its place. Invariants of our own code are `assert`s. Only `cli.main` turns errors into an exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILED = 1  # the run failed: NaN loss, disk full, a bug
EXIT_USAGE = 2  # wrong usage, recipe, data or checkpoint; nothing was run
EXIT_INTERRUPTED = 130  # Ctrl-C (128 + 2)
EXIT_TERMINATED = 143  # SIGTERM (128 + 15)
OWN_EXIT_CODES = (EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED)

NOTHING_WAS_RUN = "Nothing was run."  # the note on errors that come before any work


class UserError(Exception):
    """A mistake that the user can fix.

    Args:
        message: What is wrong, with which value, where.
        hint: The one action that fixes it.
        exit_code: `EXIT_USAGE` if nothing was run, `EXIT_FAILED` if a run failed.
    """

    def __init__(self, message: str, *, hint: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


@dataclass(frozen=True)
class Place:
    """The place of a problem: a line of a recipe file, or a word of the command line.

    `line` and `column` count from 1 and are 0 where the place is a whole file or an override;
    `length` is the number of characters to underline, `text` the source line.
    """

    source: str  # path of the recipe, or "command line: optimizer.lrr=0.2"
    line: int = 0
    column: int = 0
    length: int = 0
    text: str = ""


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: `key` is dotted (`optimizer.momentun`), `hint` the action.

    Cross-checks (plan, optimizer, data) know the key only; `recipe.load.locate` adds the place.
    """

    key: str
    message: str
    hint: str
    place: Place | None = None


class RecipeError(Exception):
    """All problems of a recipe; nothing was run. `source` is the path of the recipe, as it was given."""

    def __init__(self, problems: Sequence[Problem], *, source: str = "the recipe") -> None:
        super().__init__("; ".join(f"{problem.key}: {problem.message}" for problem in problems))
        self.problems = tuple(problems)
        self.source = source


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the start of a hint with the known name closest to `word`, or an empty text if none is close."""
    spelling = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), spelling, n=1)
    return f"did you mean {spelling[close[0]]}? " if close else ""


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt it passes every `except Exception`."""
