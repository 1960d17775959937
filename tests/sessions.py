"""A command on a real terminal of some size, recorded; and what a person sees of it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte

import processes

HEIGHT = 24


@dataclass(frozen=True)
class Session:
    """What came out, in the pieces in which it came, on a terminal of so many columns."""

    pieces: tuple[bytes, ...]
    columns: int
    code: int | None

    @property
    def raw(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def lines(self) -> list[str]:
        """All that stands there at the end, what was scrolled away included."""
        return self.screens()[-1]

    def screens(self) -> list[list[str]]:
        """What stands there after each piece."""
        screen = pyte.HistoryScreen(self.columns, HEIGHT, history=10_000)
        stream, found = pyte.ByteStream(screen), []
        for piece in self.pieces:
            stream.feed(piece)
            above = [
                "".join(line[column].data for column in range(self.columns)).rstrip() for line in screen.history.top
            ]
            found.append(above + [line.rstrip() for line in screen.display])
        return found


def record(
    folder: Path, words: Sequence[str], *, columns: int, environment: Mapping[str, str] = processes.NOTHING
) -> Session:
    """Run `swa WORDS...` to its end on a terminal of `columns` x 24."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, columns, 0, 0))
    environment = {"TERM": "xterm-256color", **environment}
    process = processes.start(folder, words, terminal=os.ttyname(theirs), environment=environment)
    pieces: list[bytes] = []
    while process.is_alive() or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            pieces.append(os.read(ours, 1 << 16))
    process.join()
    os.close(ours)
    os.close(theirs)
    return Session(tuple(pieces), columns, process.exitcode)
