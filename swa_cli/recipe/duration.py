"""Durations of a recipe: `75%`, `23ep`, `0.25ep`, `200step`, `1cycle`. The unit is never left out.

The one idea: a duration stays an exact fraction until it becomes a step, and each *point* of a series is
rounded on its own. `every: 0.25ep` with 351 steps an epoch therefore never drifts off the epochs' ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from swa_cli.recipe.scalars import shown

UNITS = ("%", "ep", "step", "cycle")
# Few enough digits that every length is written out exactly.
_PATTERN = re.compile(r"(?P<value>\d{1,15}(?:\.\d{1,12})?|\.\d{1,12})\s*(?P<unit>%|ep|step|cycle)", re.ASCII)


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
        match = _PATTERN.fullmatch(text.strip())
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
        exact = Decimal(self.value.numerator) / Decimal(self.value.denominator)
        return f"{exact:f}{self.unit}"


def round_half_up(value: Fraction) -> int:
    """Round to the nearest whole number; `round` of Python would take halves to the even neighbour."""
    return int((value + Fraction(1, 2)).__floor__())
