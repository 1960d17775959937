"""One measured figure: ours beside theirs, and what the pair is held against.

Absolute times say more about the machine than about a program, so a figure is judged by what is left when the machine
is divided out: a ratio of two times of the same run, a share, or a difference.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Sense = Literal["at least", "at most"]


@dataclass(frozen=True)
class Figure:
    """A figure and its bar."""

    topic: str
    name: str
    ours: float
    theirs: float | None
    unit: str  # of both: s, ms, img/s, MB
    value: float  # what comes of the two
    value_unit: str  # x (times), %, s, MB
    bar: float | None = None  # None where nothing was promised
    sense: Sense = "at least"
    note: str = ""

    @property
    def margin(self) -> float | None:
        """How far the value is on the right side of its bar, which is 1."""
        if self.bar is None:
            return None
        if self.sense == "at least":
            return self.value / self.bar
        return self.bar / self.value if self.value > 0 else float("inf")

    @property
    def is_missed(self) -> bool:
        """Whether there is a bar and the value is on its wrong side."""
        if self.bar is None:
            return False
        return not (self.value >= self.bar if self.sense == "at least" else self.value <= self.bar)

    @property
    def verdict(self) -> str:
        """The judgement in words."""
        if self.bar is None:
            return "no bar"
        if not self.is_missed:
            return "met"
        off = abs(self.value / self.bar - 1) if self.bar else float("inf")
        return f"MISSED by {off:.0%}" if off < 1 else "MISSED by far"

    @property
    def spoken_bar(self) -> str:
        """`>= 1.9 x`, or nothing."""
        if self.bar is None:
            return ""
        return f"{'>=' if self.sense == 'at least' else '<='} {self.bar:g} {self.value_unit}"

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "verdict": self.verdict}


def faster(topic: str, name: str, *, ours: float, theirs: float, bar: float | None = None, note: str = "") -> Figure:
    """Two times in seconds: how many times faster ours is."""
    return Figure(topic, name, ours, theirs, "s", theirs / ours, "x", bar, note=note)


def rate(topic: str, name: str, *, ours: float, theirs: float, bar: float | None = None, note: str = "") -> Figure:
    """Two rates in images a second: ours over theirs."""
    return Figure(topic, name, ours, theirs, "img/s", ours / theirs, "x", bar, note=note)


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    size = abs(value)
    if not size:
        return "0"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def quantity(value: float | None, unit: str) -> str:
    """`62.1 s`; nothing for None."""
    return "" if value is None else f"{number(value)} {unit}"
