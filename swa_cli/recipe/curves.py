"""A schedule in a run, with its lengths in steps, and the shapes of which rates are made.

`step` counts optimizer updates from 0, and a point counts updates done, see `schedules`. `position` runs from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from swa_cli.recipe.values import Duration, in_epochs

Curve = Callable[[int], float]  # the rate of a step
Exact = Callable[[Duration], Fraction]  # the steps of a length, before rounding
Settings = Mapping[str, Any]  # the keys of a schedule; a key that the recipe leaves out has its default


@dataclass(frozen=True)
class ResolvedSchedule:
    """A schedule in a run: its settings, with durations in steps and every default filled in."""

    name: str
    settings: Settings
    exact: Exact
    steps_per_epoch: int
    total: int
    lr: float  # optimizer.lr
    start: Fraction  # swa.start, exact; the end of the run without the section
    warmup: int
    warmup_limit: int  # the step before which the warmup has to end: the first drop, the decay or its end, the anneal
    anneal: int  # steps of the bridge to swa.lr, which ends at `start`
    end: Fraction  # of a decay, exact
    plateau: int | None  # the point at which a decay begins that ends at `end`; None without one
    final_lr: float  # the rate at `end`
    drops: tuple[int, ...]  # points, sorted
    turns: tuple[int, ...]  # bounds of the pieces of cycles; the last one is after the end of the run
    minima: tuple[int, ...]  # points at which a cycle is at its minimum; none without cycles

    def epoch(self, point: Fraction | int) -> str:
        """Write a point in epochs."""
        return in_epochs(point, steps_per_epoch=self.steps_per_epoch)


def linear(position: float, *, first: float, last: float) -> float:
    """Return the point between `first` (position 0) and `last` (position 1) on a straight line."""
    return first * (1 - position) + last * position


def cosine(position: float, *, first: float, last: float) -> float:
    """Return the point between `first` and `last` on half a cosine (Loshchilov and Hutter 2017)."""
    return linear((1 - math.cos(math.pi * position)) / 2, first=first, last=last)


def one_minus_sqrt(position: float, *, first: float, last: float) -> float:
    """Return the point between `first` and `last` that falls as 1 - sqrt(position) (Haegele et al. 2024)."""
    return linear(math.sqrt(position), first=first, last=last)


SHAPES: Mapping[str, Callable[..., float]] = {"1-sqrt": one_minus_sqrt, "linear": linear, "cosine": cosine}
