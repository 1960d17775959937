"""What is said on stderr while it runs: the topic, whose turn it is, and about how long it will go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

_EVERY_S = 2.0  # short turns follow each other faster than anyone reads


class Voice:
    """The lines of progress.

    Args:
        expected_s: Of each topic that will be measured, in this order.
    """

    def __init__(self, expected_s: Mapping[str, float]) -> None:
        self._expected_s = dict(expected_s)
        self._topic = ""
        self._begun = self._said = -_EVERY_S

    def topic(self, name: str) -> None:
        """A topic begins; those before it are done."""
        self._expected_s.pop(self._topic, None)
        self._topic, self._begun, self._said = name, time.monotonic(), -_EVERY_S

    def turn(self, contestant: str, *, number: int, rounds: int) -> None:
        """A contestant begins a round."""
        now = time.monotonic()
        if now - self._said < _EVERY_S:
            return
        self._said = now
        left = self._left_s(now)
        spoken = f"{left / 60:.0f} min" if left >= 90 else f"{max(left, 10):.0f} s"
        print(
            f"{self._topic}: {contestant}, round {number} of {rounds} (about {spoken} left)",
            file=sys.stderr,
            flush=True,
        )

    def _left_s(self, now: float) -> float:
        here = self._expected_s.get(self._topic, 0.0)
        later = sum(self._expected_s.values()) - here
        return max(here - (now - self._begun), 0.0) + later
