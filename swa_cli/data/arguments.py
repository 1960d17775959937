"""Arguments of datasets: the keys of `dataset.args`, the values that they take, and their defaults.

The entries of `datasets.DATASETS` declare theirs with the constructors below, and `complete` checks what is given.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from swa_cli.data.transforms import IGNORED
from swa_cli.errors import Problem, RecipeError, did_you_mean

REQUIRED = object()  # the default of an argument that must be given


@dataclass(frozen=True)
class Argument:
    """A key of `dataset.args`."""

    default: Any  # the value if the key is left out, as `parse` would return it
    wanted: str  # completes the message "... is not"
    parse: Callable[[Any], Any]  # returns the value for the reader; raises ValueError for one that is not wanted


def complete(declared: Mapping[str, Argument], given: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Check the arguments of the dataset `name` and complete them with their defaults.

    Raises:
        RecipeError: Every argument that is unknown, missing or not what is wanted.
    """
    takes = f"takes {', '.join(declared)}" if declared else "takes no arguments: remove dataset.args"
    problems = [
        Problem(f"dataset.args.{key}", f"unknown argument of {name}", f"{did_you_mean(key, declared)}{name} {takes}")
        for key in given
        if key not in declared
    ]
    values = {}
    for key, argument in declared.items():
        message = None
        if key in given:
            try:
                values[key] = argument.parse(given[key])
            except ValueError:
                message = f"{given[key]!r} is not {argument.wanted}"
        elif argument.default is REQUIRED:
            message = "is missing"
        else:
            values[key] = argument.default
        if message is not None:
            problems.append(Problem(f"dataset.args.{key}", message, f"give {argument.wanted}"))
    if problems:
        raise RecipeError(problems)
    return values


def _integer(value: Any, allowed: Container[int]) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        raise ValueError
    return value


def whole(default: int, low: int, high: int) -> Argument:
    """A whole number in a range."""
    wanted = f"a whole number from {low:,} to {high:,}"
    return Argument(default, wanted, lambda value: _integer(value, range(low, high + 1)))


def choice(default: int, choices: Iterable[int]) -> Argument:
    """One of some numbers."""
    allowed = tuple(choices)
    return Argument(default, f"one of {', '.join(map(str, allowed))}", lambda value: _integer(value, allowed))


def text(default: Any, wanted: str) -> Argument:
    """A text that is not empty; a number stands for its digits."""

    def parse(value: Any) -> str:
        if not isinstance(value, str | int) or isinstance(value, bool) or not str(value):
            raise ValueError
        return str(value)

    return Argument(default, wanted, parse)


def several_texts(default: Any, wanted: str, *, least: int = 1) -> Argument:
    """Several different texts in a list, or a single one."""

    def parse(value: Any) -> tuple[str, ...]:
        texts = tuple(map(text(None, "").parse, value if isinstance(value, list | tuple) else [value]))
        if len(texts) < least or len(set(texts)) != len(texts):
            raise ValueError
        return texts

    return Argument(default, wanted, parse)


def delimiter() -> Argument:
    """The character between two cells of a table."""

    def parse(value: Any) -> str:
        if not isinstance(value, str) or len(value) != 1 or value in '"\r\n':
            raise ValueError
        return value

    return Argument(None, "a single character, such as ; (left out: a tab in .tsv files, a comma in others)", parse)


def mask_classes() -> Argument:
    """Class names in order; a number of classes names them 0, 1, ..."""
    allowed = range(2, IGNORED + 1)  # class numbers are smaller than IGNORED

    def parse(value: Any) -> tuple[str, ...]:
        names = value if isinstance(value, list | tuple) else range(_integer(value, allowed))
        texts = tuple(map(str, names))
        if len(texts) not in allowed or len(set(texts)) != len(texts):
            raise ValueError
        return texts

    return Argument(REQUIRED, f"2 to {IGNORED} different classes, such as 2 or [background, pet]", parse)
