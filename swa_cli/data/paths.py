"""Paths of very many files as one block of bytes, not an object per path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import AnyStr, overload

import numpy as np

_BLOCK = 4096  # paths that are decoded at once while all are read in turn


class Paths(Sequence[str]):
    """An immutable sequence of paths that stores what they begin with once.

    A path takes 8 bytes and the rest of its name, about a third of a string in a tuple. Reading one writes to no shared
    memory: a forked loader process would copy a tuple page by page as it counts references to its strings.

    Raises:
        ValueError: A path has a null character, which no file system allows.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        given = [*paths]
        prefix = _common_start(given) if len(given) > 1 else ""
        names = "\0".join(["", *given, ""]).replace(f"\0{prefix}", "\0", len(given))[1:]
        # Names that are no text have surrogates.
        self._prefix, self._names = (text.encode(errors="surrogatepass") for text in (prefix, names))
        self._ends = np.flatnonzero(
            np.frombuffer(self._names, dtype=np.uint8) == 0
        )  # (N,) int64: of the null byte of each
        if len(self) != len(given):
            raise ValueError("a path has a null character")

    @classmethod
    def joined(cls, parts: Iterable[Paths]) -> Paths:
        """Return the paths of all parts, one part after the other."""
        parts = [part for part in parts if len(part)]
        if len(parts) == 1:
            return parts[0]
        whole = cls()
        whole._prefix = _common_start([part._prefix for part in parts] or [b""])
        names, ends, size = list[bytes](), list[np.ndarray](), 0
        for part in parts:
            rest = part._prefix[len(whole._prefix) :]
            names.append(rest + part._names[:-1].replace(b"\0", b"\0" + rest) + b"\0")
            ends.append(part._ends + np.arange(1, len(part) + 1) * len(rest) + size)
            size += len(names[-1])
        whole._names = b"".join(names)
        whole._ends = np.concatenate([whole._ends, *ends])
        return whole

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Paths: ...
    def __getitem__(self, place: int | slice) -> str | Paths:
        if not isinstance(place, slice):
            index = range(len(self))[place]
            return self._decoded(self._start(index), int(self._ends[index]))
        places = range(len(self))[place]
        if places.step != 1:
            return Paths(map(self.__getitem__, places))
        part, start = Paths(), self._start(places.start)
        part._prefix = self._prefix
        part._names = self._names[start : self._start(places.stop)]
        part._ends = self._ends[place] - start
        return part

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), _BLOCK):
            for end in self._ends[first : first + _BLOCK].tolist():
                yield self._decoded(start, end)
                start = end + 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    def __repr__(self) -> str:
        return f"Paths({[*self[:3]]}{f' and {len(self) - 3:,} more' if len(self) > 3 else ''})"

    def _start(self, index: int) -> int:
        """Return where a name begins."""
        return int(self._ends[index - 1]) + 1 if index else 0

    def _decoded(self, start: int, end: int) -> str:
        return (self._prefix + self._names[start:end]).decode(errors="surrogatepass")


def _common_start(texts: Sequence[AnyStr]) -> AnyStr:
    """Return the longest start of all texts."""
    first, last = min(texts), max(texts)
    length = next(
        (place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first)
    )
    return first[:length]
