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
        self._began = self._topic_began = time.monotonic()
        self._said = -_EVERY_S
        self._done_s = 0.0  # expected of the topics that are done

    def topic(self, name: str) -> None:
        """A topic begins; those before it are done."""
        self._done_s += self._expected_s.pop(self._topic, 0.0)
        self._topic, self._topic_began, self._said = name, time.monotonic(), -_EVERY_S

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
        """What is expected, at the pace of the topics that are done."""
        pace = (self._topic_began - self._began) / self._done_s if self._done_s else 1.0
        here = pace * self._expected_s.get(self._topic, 0.0)
        later = pace * sum(seconds for name, seconds in self._expected_s.items() if name != self._topic)
        return max(here - (now - self._topic_began), 0.0) + later
