"""Note Ctrl-C and SIGTERM when they arrive, and raise them where a command can stop.

One rule for all commands. The handler notes a signal. Inside `deferred` that is all: the block, or what follows it,
looks at the note at a safe point. Elsewhere the handler also raises the ending of the signal, wherever the process is.
Python drops what is raised in a destructor or a callback, and a library may turn it into an error of its own; so what
takes long calls `check` between batches, trials and seeds, which raises what was noted and did not end the command. A
second signal is raised at once everywhere. A command whose work is done no longer looks at a deferred signal.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

from swa_cli.errors import Terminated

HANDLED = (signal.SIGINT, signal.SIGTERM)


class _Process:
    """What this process has heard; of the process, as its handlers are."""

    noted = 0  # the last signal
    raised = 0  # the last one that the handler has raised
    ignored: ClassVar[set[int]] = set()  # on purpose: another process passes them on
    announce: Callable[[], None] | None = None  # called for a signal that is deferred; None where none is


def install() -> None:
    """Handle the signals by the rule above from now on, but those that this process was started to ignore."""
    for number in HANDLED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, hear)


def hear(number: int, _: FrameType | None = None) -> None:
    """Note a signal, as its handler; raise it unless it is the first one and is deferred."""
    is_first, _Process.noted = not _Process.noted, number
    if is_first and _Process.announce is not None:
        _Process.announce()
        return
    _Process.raised = number
    raise ending(number)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Set the handlers at the end of the block as they were before it."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undefended() -> Iterator[None]:
    """Let signals end the process at once while the block runs: where it waits outside of Python, no handler is called.

    Those that are ignored stay so.
    """
    with handlers_kept():
        for number in HANDLED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        yield


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals while the block runs, also those that this process was started to ignore."""
    with handlers_kept():
        for number in HANDLED:
            if number not in _Process.ignored:
                signal.signal(number, hear)
        yield


@contextmanager
def deferred(announce: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Only note the first signal while the block runs; the handler calls `announce` for it."""
    outer, _Process.announce = _Process.announce, announce
    try:
        yield
    finally:
        _Process.announce = outer


def check() -> None:
    """Raise the signal that was noted, unless signals are deferred.

    Raises:
        KeyboardInterrupt: It was Ctrl-C.
        Terminated: It was SIGTERM.
    """
    if _Process.noted and _Process.announce is None:
        raise ending(_Process.noted)


def noted() -> int:
    """Return the signal that was noted, or 0."""
    return _Process.noted


def exit_code() -> int:
    """Return the exit code for a signal that the handler has raised, whatever became of it; 0 without one."""
    return 128 + _Process.raised if _Process.raised else 0


def forget() -> None:
    """Forget the signals that were noted or are to be ignored: the command that they were for has ended."""
    _Process.noted = _Process.raised = 0
    _Process.ignored.clear()


def ignore(numbers: Iterable[int] = HANDLED) -> None:
    """Ignore signals from now on."""
    for number in numbers:
        _Process.ignored.add(number)
        signal.signal(number, signal.SIG_IGN)


def ending(number: int) -> BaseException:
    """Return the exception that a signal ends a command with."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()
