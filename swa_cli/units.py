"""Numbers, lists and commands as text: counts, sizes, short times, the first few of many, what is pasted."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence


class Command(str):
    """A command to be pasted into a shell: it is printed as one line, however long."""


def command(words: Iterable[object]) -> Command:
    """Return the words of a command as a shell takes them."""
    return Command(shlex.join(map(str, words)))


def count_text(number: float, noun: str, *, plural: str = "") -> str:
    """Return a count with its noun: `1 weight`, `1,200 weights`; the plural is in `s` if none is given."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def some_of(words: Sequence[object], *, most: int = 3) -> str:
    """Return the first few of many words: `conv1, conv2, conv3, ...`."""
    return ", ".join([*map(str, words[:most]), *["..."] * (len(words) > most)])


def size_text(num_bytes: int) -> str:
    """Return a number of bytes with its unit: `9.2 MB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {name}"
    return f"{num_bytes / 1e3:.1f} kB"


def short_time(seconds: float) -> str:
    """Return the seconds of a small piece of work in three digits: `0.225 ms`, `21 ms`, `1.5 s`."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
