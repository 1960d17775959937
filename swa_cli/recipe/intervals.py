"""Series of points of a run, from `start` on and `every` so often: what is averaged, what is kept.

The one idea: a series is exact fractions, and each point is rounded on its own, so nothing drifts off the
ends of epochs. A point counts updates done. In cycles, a series is a choice among the schedule's minima.

The decay of an exponential moving average, also where the recipe tells it as a half-life.

One idea: after a half-life a weight set counts half of what it did, so an update that comes every so often keeps
`0.5 ** (every / half_life)` of the past. Both lengths are exact until then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from swa_cli.errors import Problem
from swa_cli.recipe.schedules import CYCLIC, cycle_problems, minima, point_of
from swa_cli.recipe.schema import Average, Recipe
from swa_cli.recipe.values import Duration

ONE_EPOCH = Duration(Fraction(1), "ep")


@dataclass(frozen=True)
class Series:
    """From a point on, every so often."""

    key: str  # its section of the recipe: swa, averages.ema, snapshots
    start: Duration
    every: Duration


@dataclass(frozen=True)
class StepClock:
    """What turns durations into points."""

    steps_per_epoch: int
    total: int
    minima: tuple[int, ...]

    def exact(self, length: Duration) -> Fraction:
        """Steps of a length that is not in cycles, before rounding."""
        return length.exact_steps(steps_per_epoch=self.steps_per_epoch, total_steps=self.total)

    def start(self, series: Series) -> Fraction:
        """Where a series may begin, before rounding."""
        return point_of(series.start, exact=self.exact, low_points=self.minima, total=self.total)


def average_series(recipe: Recipe) -> list[Series]:
    """One for each average of `recipe.all_averages`, in their order."""
    return [
        Series("swa" if name == "swa" else f"averages.{name}", *_start_and_every(average))
        for name, average in recipe.all_averages.items()
    ]


def _start_and_every(average: Average) -> tuple[Duration, Duration]:
    assert average.start is not None, "the schema fills it in"
    assert average.every is not None, "the schema fills it in"
    return average.start, average.every


def snapshot_series(recipe: Recipe) -> list[Series]:
    """That of the snapshots: none or one."""
    kept = recipe.snapshots
    return [Series("snapshots", kept.start, kept.every)] if kept else []


def points(series: Series, *, clock: StepClock) -> tuple[int, ...]:
    """The points of a series, each rounded half up on its own.

    The first is the first on the grid of `every` (of whole epochs, if that is some) at or after `start`, as
    in the paper's code: start 161ep, every 5ep are the ends of epochs 161, 166, ... From 0 on it is `every`.
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
    """Mistakes in one series; what is counted in cycles is left alone while the schedule itself is wrong."""
    countable = cycles_known or "cycle" not in (series.start.unit, series.every.unit)
    problems = _start_problems(recipe, series, clock=clock, cycles_known=cycles_known)
    problems += _every_problems(recipe, series)
    return problems if problems or not countable else _reach_problems(recipe, series, clock=clock)


def _start_problems(recipe: Recipe, series: Series, *, clock: StepClock, cycles_known: bool) -> list[Problem]:
    key = f"{series.key}.start"
    if series.start.unit == "cycle" and recipe.schedule.name not in CYCLIC:
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
        return [Problem(key, f"{series.every} is no interval", "write 1ep")]
    if series.every.unit == "cycle" and recipe.schedule.name not in CYCLIC:
        return [_no_cycles(key, series.every, recipe)]
    if series.every.unit == "cycle" and recipe.swa and recipe.swa.lr is not None:
        message = "there are no cycles from swa.start on, where the rate is swa.lr"
        return [Problem(key, message, "leave swa.lr out, or write an interval such as 1ep")]
    return []


def _reach_problems(recipe: Recipe, series: Series, *, clock: StepClock) -> list[Problem]:
    """A series that has no point, or whose last one lies off a minimum."""
    if series.key == "snapshots" and series.every.unit == "cycle" and clock.total not in clock.minima:
        message = "the run does not end at the minimum of a cycle: its last weights would be kept off one"
        return [Problem("snapshots.every", message, _hint_to_end_at_minimum(recipe, clock))]
    if points(series, clock=clock):
        return []
    span = f"between {series.start} and the end of the run, epoch {recipe.train.epochs}"
    message = f"{series.every} has no point {span}: {_nothing(series)}"
    return [Problem(f"{series.key}.every", message, "write a shorter one, such as 1ep")]


def _no_cycles(key: str, duration: Duration, recipe: Recipe) -> Problem:
    message = f"{duration} needs a schedule with cycles, and {recipe.schedule.name} has none"
    return Problem(key, message, f"write it in %, ep or step, or set schedule.name to {' or '.join(CYCLIC)}")


def _nothing(series: Series) -> str:
    return f"nothing would be {'kept' if series.key == 'snapshots' else 'averaged'}"


def _hint_to_end_at_minimum(recipe: Recipe, clock: StepClock) -> str:
    """The nearest number of epochs that ends at a minimum, tried out; cycles in % may have none."""
    now = recipe.train.epochs
    for epochs in sorted(range(1, 2 * now + 9), key=lambda number: (abs(number - now), -number)):
        train = recipe.train.model_copy(update={"epochs": epochs})
        lows = minima(recipe.model_copy(update={"train": train}), steps_per_epoch=clock.steps_per_epoch)
        if epochs * clock.steps_per_epoch in lows:
            return f"set train.epochs to {epochs}"
    return "write an interval such as 1ep"


def decay_of(average: Average, *, clock: StepClock) -> float | None:
    """The weight of the past at an update; None for another kind of average."""
    if average.half_life is None:
        return average.decay
    assert average.every is not None, "the schema fills it in"
    every = max(clock.exact(average.every), Fraction(1))  # what is shorter than a step is every step
    return 0.5 ** float(every / clock.exact(average.half_life))


def half_life_problems(recipe: Recipe, *, clock: StepClock) -> list[Problem]:
    """Half-lives that no decay stands for."""
    found = []
    for name, average in recipe.all_averages.items():
        key, half_life, every = f"averages.{name}.half_life", average.half_life, average.every
        if half_life is None or every is None:
            continue
        if half_life.unit == "cycle":
            found += cycle_problems([(key, half_life)])
        elif half_life.value == 0:
            found.append(Problem(key, f"{half_life} is no time at all", "write a longer one, such as 1ep"))
        elif every.unit == "cycle":
            message = f"{half_life} cannot be told in updates, which come every {every}"
            found.append(Problem(key, message, "write decay, or an interval in %, ep or step"))
        elif decay_of(average, clock=clock) == 1:
            message = f"{half_life} is so long that nothing would ever be forgotten"
            found.append(Problem(key, message, "write a shorter one, or kind: mean"))
    return found
