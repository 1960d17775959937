"""Handle Ctrl-C and SIGTERM: the first signal waits for a safe point, the second stops at once.

A safe point is one where all state is consistent: between two updates, or anywhere in validation, which only reads.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from swa_cli.errors import Terminated

HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal stopped the run at a safe point; `ending` is the exception that gives the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.ending = _ending(number)


class Interrupt:
    """Defers the first signal while its block runs, until `check`; a second one is raised at once.

    Args:
        announce: Called in the signal handler when the first one is noted.
        agree: Gives the largest number that any process of the run passes to it, so that all stop at the same point;
            each passes every safe point.
    """

    def __init__(self, announce: Callable[[], None], *, agree: Callable[[int], int] = lambda number: number) -> None:
        self._announce = announce
        self._agree = agree
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._note) for number in HANDLED_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Stop at this safe point if a signal has arrived.

        Raises:
            Stopped: A signal has arrived, here or in another process.
        """
        if number := self._agree(self._number or 0):
            raise Stopped(number)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number is not None:
            raise _ending(number)
        self._number = number
        self._announce()


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()
