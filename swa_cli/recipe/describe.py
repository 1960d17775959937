"""A plan in words, for a person before a run and above a picture of it."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

from swa_cli.recipe.intervals import Series, average_series, snapshot_series
from swa_cli.recipe.kinds import KINDS
from swa_cli.recipe.learning_rate import chart, learning_rate
from swa_cli.recipe.plan import Plan
from swa_cli.recipe.schedules import SCHEDULES, ResolvedSchedule
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.values import count_text, in_epochs, length_text


def describe_schedule(recipe: Recipe, plan: Plan) -> str:
    """Describe the rate: `30 epochs x 351 steps: warmup 1 epoch to 0.1, cosine to 0.05 at epoch 22.5, then flat`."""
    course = chart(recipe, steps_per_epoch=plan.steps_per_epoch)
    epoch = partial(in_epochs, steps_per_epoch=plan.steps_per_epoch)
    parts = []
    if course.warmup:
        begins_at = learning_rate(recipe, steps_per_epoch=plan.steps_per_epoch)(course.warmup)
        parts.append(f"warmup {length_text(course.warmup, plan.steps_per_epoch)} to {begins_at:g}")
    parts.append(SCHEDULES[recipe.schedule.name].text(course))
    swa = recipe.swa
    if swa is not None and swa.lr is not None:
        if course.anneal:
            anneal = f"{swa.anneal_shape} anneal of {length_text(course.anneal, plan.steps_per_epoch)}"
            parts += [f"{anneal} to {swa.lr:g} at epoch {epoch(course.start)}", "then flat"]
        elif _arrives_at(swa.lr, recipe, course):
            parts.append("then flat")
        else:
            parts.append(f"{swa.lr:g} from epoch {epoch(course.start)} on")
    elif course.end < course.total:
        parts.append("then flat")
    length = f"{count_text(plan.epochs, 'epoch')} x {count_text(plan.steps_per_epoch, 'step')}"
    part = f", {plan.phase.span} of the schedule" if plan.phase.is_worker else ""
    return f"{length}{part}: {', '.join(parts)}"


def describe_averages(recipe: Recipe, plan: Plan) -> list[str]:
    """Return a line for each average and one for the snapshots: how many weights, which, and how they are used.

    `swa: 8 weights, ends of epochs 23 to 30 (from 75 %); BatchNorm recomputed at the end`.
    """
    lines = []
    for series, average in zip(average_series(recipe), plan.averages, strict=True):
        when = _when(series, average.steps, plan.steps_per_epoch)
        lines.append(f"{average.name}: {KINDS[average.kind].text(average)}, {when}; BatchNorm recomputed at the end")
    for series in snapshot_series(recipe):
        assert recipe.snapshots is not None
        when = _when(series, plan.snapshots, plan.steps_per_epoch)
        kept = "all" if recipe.snapshots.keep == "all" else f"the last {recipe.snapshots.keep}"
        mean = ", with the running mean" if recipe.snapshots.cumulative else ""
        lines.append(f"snapshots: {len(plan.snapshots)}, {when}; {kept} kept{mean}")
    return lines


def _arrives_at(rate: float, recipe: Recipe, course: ResolvedSchedule) -> bool:
    """Return whether the schedule itself is at `rate` at swa.start."""
    leads_there = SCHEDULES[recipe.schedule.name].leads_to_swa_lr and course.end == course.start
    return leads_there and course.final_lr == rate


def _when(series: Series, steps: tuple[int, ...], steps_per_epoch: int) -> str:
    """Say where the points of a series are, in its own unit."""
    epoch = partial(in_epochs, steps_per_epoch=steps_per_epoch)
    since = {"%": " (from {} %)", "step": " (from step {})", "cycle": " (from cycle {})"}
    start = since.get(series.start.unit, "").format(str(series.start).removesuffix(series.start.unit))
    gap = steps[1] - steps[0] if len(steps) > 1 else 0
    if series.every.unit == "cycle":
        return f"at the minima of the cycles{start}"
    if all(step % steps_per_epoch == 0 for step in steps):
        return f"{_ends_of([step // steps_per_epoch for step in steps])}{start}"
    if gap == 1 and len(steps) == steps[-1] - steps[0] + 1:
        return f"every step from epoch {math.ceil(steps[0] / steps_per_epoch)}{start}"
    if len(steps) == 1:
        return f"at epoch {epoch(steps[0])}{start}"
    per_epoch = 1 / series.every.value if series.every.unit == "ep" else Fraction(0)
    divides_it = per_epoch.denominator == 1 and per_epoch > 0
    pace = f"{per_epoch} an epoch" if divides_it else f"every {length_text(gap, steps_per_epoch)}"
    return f"{pace}, epochs {epoch(steps[0])} to {epoch(steps[-1])}{start}"


def _ends_of(epochs: list[int]) -> str:
    if len(epochs) == 1:
        return f"end of epoch {epochs[0]}"
    if len(epochs) == 2:
        return f"ends of epochs {epochs[0]} and {epochs[1]}"
    if epochs[1] == epochs[0] + 1:
        return f"ends of epochs {epochs[0]} to {epochs[-1]}"
    return f"ends of epochs {epochs[0]}, {epochs[1]}, ..., {epochs[-1]}"
