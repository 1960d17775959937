"""Arguments of a dataset (`dataset.args`): declared with their defaults, checked, completed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from swa_cli.data.stream import IGNORED
from swa_cli.errors import UserError

MAX_SIDE = 65_536  # pixels
REQUIRED = object()  # the default of an argument that must be given


@dataclass(frozen=True)
class Argument:
    """A key of `dataset.args`.

    Args:
        default: The value if the key is left out, as `parse` would return it.
        wanted: Completes the message "... is not".
        parse: Returns the value for the reader; raises ValueError for one that is not wanted.
    """

    default: Any
    wanted: str
    parse: Callable[[Any], Any]


def complete(declared: Mapping[str, Argument], given: Mapping[str, Any], *, name: str) -> dict[str, Any]:
    """Check the arguments of the dataset `name` and complete them with their defaults.

    Raises:
        UserError: An argument is unknown, missing or not what is wanted.
    """
    for key in given:
        if key not in declared:
            takes = f"takes {', '.join(declared)}" if declared else "takes no arguments: remove dataset.args"
            raise UserError(f"dataset.args.{key}: unknown argument of {name}", hint=f"{name} {takes}")
    return {key: _value(key, argument, given) for key, argument in declared.items()}


def _value(key: str, argument: Argument, given: Mapping[str, Any]) -> Any:
    hint = f"give {argument.wanted}"
    if key not in given:
        if argument.default is REQUIRED:
            raise UserError(f"dataset.args.{key}: is missing", hint=hint)
        return argument.default
    try:
        return argument.parse(given[key])
    except ValueError as error:
        raise UserError(f"dataset.args.{key}: {given[key]!r} is not {argument.wanted}", hint=hint) from error


def whole(default: int, low: int, high: int) -> Argument:
    """A whole number in a range."""

    def parse(value: Any) -> int:
        _require(_is_whole(value) and low <= value <= high)
        return int(value)

    return Argument(default, f"a whole number from {low:,} to {high:,}", parse)


def choice(default: int, choices: Iterable[int]) -> Argument:
    """One of several whole numbers."""

    def parse(value: Any) -> int:
        _require(_is_whole(value) and value in choices)
        return int(value)

    return Argument(default, f"one of {', '.join(map(str, choices))}", parse)


def square_side() -> Argument:
    """S of square images; None keeps the size of the files."""

    def parse(value: Any) -> int | None:
        _require(value is None or _is_side(value))
        return value

    return Argument(None, f"the side of square images, from 1 to {MAX_SIDE:,} pixels", parse)


def height_and_width(default: tuple[int, int] | None) -> Argument:
    """(H, W) of images, given as S or [H, W]; None keeps the size of the files."""

    def parse(value: Any) -> tuple[int, int]:
        sides = [value, value] if _is_whole(value) else value
        _require(isinstance(sides, list | tuple) and len(sides) == 2 and all(map(_is_side, sides)))
        return sides[0], sides[1]

    return Argument(default, "a size of images, such as 128 or [96, 128]", parse)


def class_names() -> Argument:
    """Class names in order; a number of classes names them 0, 1, ..."""
    most = IGNORED  # class numbers are smaller

    def parse(value: Any) -> tuple[str, ...]:
        names = range(min(value, most + 1)) if _is_whole(value) else value
        _require(isinstance(names, list | tuple | range) and 2 <= len(names) <= most)
        texts = tuple(map(str, names))
        _require(len(set(texts)) == len(texts))
        return texts

    return Argument(REQUIRED, f"2 to {most} different classes, such as 2 or [background, pet]", parse)


def _require(is_wanted: bool) -> None:
    if not is_wanted:
        raise ValueError


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return _is_whole(value) and 0 < value <= MAX_SIDE
