"""What stands beside weights in other people's files and runs no code: numbers of numpy, options, paths.

The one idea: no class that a file names is made. Each name is read as one of the stand-ins below, which are plain
values or hold nothing: a number, a text, a dict. `STAND_INS` is the whole list; every other name is refused.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

Number = bool | int | float | complex

# Letters of `struct` for the kinds and sizes of numpy's numbers.
_LETTERS: Mapping[str, str] = {
    "b1": "?",
    **{f"i{size}": letter for size, letter in ((1, "b"), (2, "h"), (4, "i"), (8, "q"))},
    **{f"u{size}": letter for size, letter in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))},
    **{f"f{size}": letter for size, letter in ((2, "e"), (4, "f"), (8, "d"))},
    "c8": "2f",
    "c16": "2d",
}
_TEXT = re.compile(r"[US]\d+")


class NumberType:
    """A `numpy.dtype` of numbers or of text."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if code not in _LETTERS and not _TEXT.fullmatch(code):
            raise ValueError(f"a numpy.dtype {code!r}")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


class Array:
    """A `numpy.ndarray`, of which nothing is kept: no weights stand in one."""

    def __setstate__(self, state: object) -> None:
        """Drop the numbers."""


class Options(dict[Any, Any]):
    """An `argparse.Namespace`, as a dict."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state)


class Name:
    """A class that is named and not made, such as the one that a `defaultdict` makes values of."""


def number(kind: NumberType, data: bytes) -> Number | str:
    """A `numpy.generic`, such as `numpy.float64(93.1)`, as a number of Python.

    Raises:
        ValueError: It is of another kind or size than its type says.
    """
    if not isinstance(kind, NumberType) or not isinstance(data, bytes):
        raise ValueError("a numpy number without its type")
    if kind.code not in _LETTERS:
        return data.decode("utf-32" if kind.code[0] == "U" else "utf-8", errors="replace")
    try:
        values: tuple[Any, ...] = struct.unpack(kind.order + _LETTERS[kind.code], data)
    except struct.error as error:
        raise ValueError(f"a numpy number of {len(data)} bytes and type {kind.code}") from error
    return complex(*values) if kind.code[0] == "c" else values[0]


def path(*parts: str) -> str:
    """A `pathlib` path, as text."""
    return "/".join(map(str, parts)).replace("//", "/")


def array(*_: object) -> Array:
    """What `numpy` rebuilds an array with."""
    return Array()


def mapping(*_: object) -> dict[Any, Any]:
    """A `collections.defaultdict`, as a dict."""
    return {}


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
_PATHS = [
    f"{module}.{name}"
    for module in ("pathlib", "pathlib._local")
    for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
]
# (stand-in, name in the file), as `torch.serialization.safe_globals` takes them
STAND_INS: list[tuple[Callable[..., Any], str]] = [
    *((number, f"{module}.scalar") for module in _MULTIARRAY),
    *((array, f"{module}._reconstruct") for module in _MULTIARRAY),
    (NumberType, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    (Options, "argparse.Namespace"),
    (mapping, "collections.defaultdict"),
    *((Name, f"builtins.{name}") for name in ("list", "dict", "int", "float", "str")),
    *((path, name) for name in _PATHS),
]
