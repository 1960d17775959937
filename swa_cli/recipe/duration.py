"""Durations of a recipe: `75%`, `23ep`, `0.25ep`, `200step`, `1cycle`, and times: `10min`, `2h`. Never without unit.

The one idea: a duration stays an exact fraction until it becomes a step, and each *point* of a series is
rounded on its own. `every: 0.25ep` with 351 steps an epoch therefore never drifts off the epochs' ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from swa_cli.recipe.scalars import shown

# Few enough digits that every length is written out exactly.
PATTERN = re.compile(r"(?P<value>\d{1,15}(?:\.\d{1,12})?|\.\d{1,12})\s*(?P<unit>%|ep|step|cycle)", re.ASCII)
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
TIME_PATTERN = re.compile(r"(?P<value>\d{1,15}(?:\.\d{1,12})?|\.\d{1,12})\s*(?P<unit>s|min|h|d)", re.ASCII)


@dataclass(frozen=True)
class Duration:
    """A length of training, or a point in it measured from its beginning."""

    value: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `75%`, `23ep`, `200step` or `1cycle`.

        Raises:
            ValueError: No such form; the message names the value and the forms that are understood.
        """
        match = PATTERN.fullmatch(text.strip())
        if match is None:
            bare = re.fullmatch(r"[\d.]+", text.strip(), re.ASCII)
            reason = "has no unit" if bare else "is not a duration"
            raise ValueError(f"{shown(text)} {reason}: write it as 75%, 23ep, 0.25ep, 200step or 1cycle")
        value, unit = Fraction(Decimal(match["value"])), match["unit"]
        if unit == "%" and value > 100:
            raise ValueError(f"{shown(text)} is more than the whole run: write at most 100%")
        if unit in ("step", "cycle") and value.denominator != 1:
            raise ValueError(f"{shown(text)} cannot be, a {unit} is not divided: write a whole number of {unit}s")
        return cls(value, unit)

    def exact_steps(self, *, steps_per_epoch: int, total_steps: int) -> Fraction:
        """Length in steps, before rounding. Cycles have no fixed length: the schedule resolves them."""
        assert self.unit != "cycle", "the schedule knows how long a cycle is"
        if self.unit == "%":
            return self.value * total_steps / 100
        return self.value * (steps_per_epoch if self.unit == "ep" else 1)

    def __str__(self) -> str:
        return f"{_decimal(self.value)}{self.unit}"


@dataclass(frozen=True)
class TimeSpan:
    """A length of wall-clock time, which no plan can turn into steps."""

    value: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> TimeSpan:
        """Read `90s`, `10min`, `2h` or `1.5d`.

        Raises:
            ValueError: No such form; the message names the value and the forms that are understood.
        """
        match = TIME_PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{shown(text)} is not a length of time: write it as 90s, 10min, 2h or 1d")
        value = Fraction(Decimal(match["value"]))
        if value == 0:
            raise ValueError(f"{shown(text)} is no time at all: write a longer one, such as 10min")
        return cls(value, match["unit"])

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return float(self.value * SECONDS[self.unit])

    def __str__(self) -> str:
        return f"{_decimal(self.value)}{self.unit}"


def round_half_up(value: Fraction) -> int:
    """Round to the nearest whole number; `round` of Python would take halves to the even neighbour."""
    return int((value + Fraction(1, 2)).__floor__())


def _decimal(value: Fraction) -> str:
    return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"
