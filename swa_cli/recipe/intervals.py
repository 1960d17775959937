"""Series of points of a run: which steps are averaged or kept.

One idea: a series is exact fractions, and each point is rounded on its own, so nothing drifts off the ends of epochs. A
point counts updates done. In cycles, a series is a choice among the schedule's minima.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from swa_cli.errors import Problem
from swa_cli.recipe.learning_rate import chart, point_of
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.values import Duration

ONE_EPOCH = Duration(Fraction(1), "ep")


@dataclass(frozen=True)
class Series:
    """Points from `start` on, with an interval between them."""

    key: str  # its section of the recipe: swa, averages.ema, snapshots
    start: Duration
    every: Duration


@dataclass(frozen=True)
class StepClock:
    """Turns durations into points."""

    steps_per_epoch: int
    total: int
    minima: tuple[int, ...]

    def exact(self, length: Duration) -> Fraction:
        """Return the steps of a length that is not in cycles, before rounding."""
        return length.exact_steps(steps_per_epoch=self.steps_per_epoch, total_steps=self.total)

    def start(self, series: Series) -> Fraction:
        """Return the first point that a series may have, before rounding."""
        return point_of(series.start, exact=self.exact, low_points=self.minima, total=self.total)


def average_series(recipe: Recipe) -> list[Series]:
    """Return a series for each average of `recipe.all_averages`, in their order."""
    found = []
    for name, average in recipe.all_averages.items():
        assert average.start is not None, "the schema fills it in"
        assert average.every is not None, "the schema fills it in"
        found.append(Series("swa" if name == "swa" else f"averages.{name}", average.start, average.every))
    return found


def snapshot_series(recipe: Recipe) -> list[Series]:
    """Return the series of the snapshots: none or one."""
    kept = recipe.snapshots
    return [Series("snapshots", kept.start, kept.every)] if kept else []


def points(series: Series, *, clock: StepClock) -> tuple[int, ...]:
    """Return the points of a series, each rounded half up on its own.

    The first is the first one on the grid of `every` (of whole epochs, if `every` is a number of them) at or after
    `start`, as in the paper's code: start 161ep, every 5ep are the ends of epochs 161, 166, ... With start 0 it is
    `every`.
    """
    start = clock.start(series)
    if series.every.unit == "cycle":
        stride = int(series.every.value)
        reached = [point for point in clock.minima if point >= start]
        return tuple(reached[stride - 1 if start == 0 else 0 :: stride])
    every = max(clock.exact(series.every), Fraction(1))  # what is shorter than a step is every step
    whole_epochs = series.every.unit == "ep" and series.every.value.denominator == 1
    grid = clock.exact(ONE_EPOCH) if whole_epochs else every
    first = math.ceil(start / grid) * grid if start > 0 else every
    unit = math.lcm(first.denominator, every.denominator)
    exact_points = range(int(first * unit), clock.total * unit + 1, int(every * unit))
    halves_up = {(2 * point + unit) // (2 * unit) for point in exact_points}
    return tuple(sorted(halves_up - {0}))


def series_problems(recipe: Recipe, series: Series, *, clock: StepClock, cycles_known: bool) -> list[Problem]:
    """Return the mistakes in one series; lengths in cycles are not checked while the schedule itself is wrong."""
    countable = cycles_known or "cycle" not in (series.start.unit, series.every.unit)
    problems = _start_problems(recipe, series, clock=clock, cycles_known=cycles_known)
    problems += _every_problems(recipe, series)
    return problems if problems or not countable else _reach_problems(recipe, series, clock=clock)


def _start_problems(recipe: Recipe, series: Series, *, clock: StepClock, cycles_known: bool) -> list[Problem]:
    key = f"{series.key}.start"
    if series.start.unit == "cycle" and SCHEDULES[recipe.schedule.name].cycles is None:
        return [_no_cycles(key, series.start, recipe)]
    if series.start.unit == "cycle" and not cycles_known:
        return []
    start = clock.start(series)
    if start < clock.total:
        return []
    where = "after" if start > clock.total else "not before"
    message = f"{series.start} is {where} the end of the run, epoch {recipe.train.epochs}: {_nothing(series)}"
    return [Problem(key, message, "write an earlier point, such as 75%")]


def _every_problems(recipe: Recipe, series: Series) -> list[Problem]:
    key = f"{series.key}.every"
    if series.every.value == 0:
        return [Problem(key, f"{series.every} is not an interval", "write 1ep")]
    if series.every.unit == "cycle" and SCHEDULES[recipe.schedule.name].cycles is None:
        return [_no_cycles(key, series.every, recipe)]
    if series.every.unit == "cycle" and recipe.swa and recipe.swa.lr is not None:
        message = "there are no cycles from swa.start on, where the rate is swa.lr"
        return [Problem(key, message, "leave swa.lr out, or write an interval such as 1ep")]
    return []


def _reach_problems(recipe: Recipe, series: Series, *, clock: StepClock) -> list[Problem]:
    """Return a problem if a series has no point, or if its last point is not at a minimum."""
    if series.key == "snapshots" and series.every.unit == "cycle" and clock.total not in clock.minima:
        message = "the run does not end at the minimum of a cycle, so its last snapshot would be off one"
        return [Problem("snapshots.every", message, _hint_to_end_at_minimum(recipe, clock))]
    if points(series, clock=clock):
        return []
    span = f"between {series.start} and the end of the run, epoch {recipe.train.epochs}"
    message = f"{series.every} has no point {span}: {_nothing(series)}"
    return [Problem(f"{series.key}.every", message, "write a shorter one, such as 1ep")]


def _no_cycles(key: str, duration: Duration, recipe: Recipe) -> Problem:
    message = f"{duration} needs a schedule with cycles, and {recipe.schedule.name} has none"
    cyclic = " or ".join(name for name, kind in SCHEDULES.items() if kind.cycles is not None)
    return Problem(key, message, f"write it in %, ep or step, or set schedule.name to {cyclic}")


def _nothing(series: Series) -> str:
    return f"nothing would be {'kept' if series.key == 'snapshots' else 'averaged'}"


def _hint_to_end_at_minimum(recipe: Recipe, clock: StepClock) -> str:
    """Search the nearest number of epochs that ends at a minimum; cycles in % may have none."""
    now = recipe.train.epochs
    for epochs in sorted(range(1, 2 * now + 9), key=lambda number: (abs(number - now), -number)):
        train = recipe.train.model_copy(update={"epochs": epochs})
        course = chart(recipe.model_copy(update={"train": train}), steps_per_epoch=clock.steps_per_epoch)
        if course.total in course.minima:
            return f"set train.epochs to {epochs}"
    return "write an interval such as 1ep"
