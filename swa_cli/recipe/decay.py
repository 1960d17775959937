"""The decay of an exponential moving average, also where the recipe tells it as a half-life.

One idea: after a half-life a weight set counts half of what it did, so an update that comes every so often keeps
`0.5 ** (every / half_life)` of the past. Both lengths are exact until then.
"""

from __future__ import annotations

from fractions import Fraction

from swa_cli.errors import Problem
from swa_cli.recipe.schedule import cycle_problems
from swa_cli.recipe.schema import Average, Recipe
from swa_cli.recipe.series import Clock


def decay_of(average: Average, *, clock: Clock) -> float | None:
    """The weight of the past at an update; None for another kind of average."""
    if average.half_life is None:
        return average.decay
    assert average.every is not None, "the schema fills it in"
    every = max(clock.exact(average.every), Fraction(1))  # what is shorter than a step is every step
    return 0.5 ** float(every / clock.exact(average.half_life))


def half_life_problems(recipe: Recipe, *, clock: Clock) -> list[Problem]:
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
