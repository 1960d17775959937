"""Files written while training goes on: by a thread, from a copy, one at a time and in order.

What is promised of a file holds for the thread as well: it is whole and durable, or not there. It is only later than
the step it belongs to, so nobody may say that it is saved before `wait` has returned.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from swa_cli.averaging.model_state import like


class Writer:
    """At most one write is under way; its fault is raised by the next `begin` or `wait`. Leaving the block waits."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()  # another fault is on its way, which tells more than that of the write

    def begin(self, write: Callable[[], None]) -> None:
        """Let the thread write, after what it is at.

        Args:
            write: Works on what nobody changes any more: see `copied`.

        Raises:
            OSError: What the write before has met.
        """
        self.wait()
        self._thread = threading.Thread(target=self._work, args=(write,), name="writer")
        self._thread.start()

    def wait(self) -> None:
        """Return when all is written.

        Raises:
            OSError: What the write has met.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _work(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as fault:  # raised where the run can tell of it
            self._fault = fault


def copied(content: Any) -> Any:
    """Dicts, lists and tuples of tensors with each tensor copied to memory that nobody else changes."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        return like(content, {key: copied(value) for key, value in content.items()})
    if isinstance(content, list | tuple):
        return type(content)(map(copied, content))
    return content
