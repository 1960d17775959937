"""A plan in words: what a person reads before a run, and above a picture of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from itertools import pairwise

from swa_cli.recipe.intervals import Series, average_series, snapshot_series
from swa_cli.recipe.plan import AveragePlan, Plan
from swa_cli.recipe.schedules import SCHEDULES, ResolvedSchedule, chart, learning_rate, peak_lr
from swa_cli.recipe.schema import AVERAGE_KINDS, SCHEDULE_KEYS, Recipe
from swa_cli.recipe.values import Duration, count_text, in_epochs, length_text


def describe_schedule(recipe: Recipe, plan: Plan) -> str:
    """`30 epochs x 351 steps: warmup 1 epoch to 0.1, cosine to 0.05 at epoch 22.5, then flat`."""
    course = chart(recipe, steps_per_epoch=plan.steps_per_epoch)
    epoch = partial(in_epochs, steps_per_epoch=plan.steps_per_epoch)
    parts = []
    if course.warmup:
        begins_at = learning_rate(recipe, steps_per_epoch=plan.steps_per_epoch)(course.warmup)
        parts.append(f"warmup {length_text(course.warmup, plan.steps_per_epoch)} to {begins_at:g}")
    parts.append(SCHEDULE_TEXTS[recipe.schedule.name](recipe, course))
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
    """A line for each average and one for the snapshots: how many weights, which, and what becomes of them.

    `swa: 8 weights, ends of epochs 23 to 30 (from 75 %); BatchNorm recomputed at the end`.
    """
    lines = []
    for series, average in zip(average_series(recipe), plan.averages, strict=True):
        when = _when(series, average.steps, plan.steps_per_epoch)
        what = AVERAGE_TEXTS[average.kind](average, recipe.all_averages[average.name].half_life)
        lines.append(f"{average.name}: {what}, {when}; BatchNorm recomputed at the end")
    for series in snapshot_series(recipe):
        assert recipe.snapshots is not None
        when = _when(series, plan.snapshots, plan.steps_per_epoch)
        kept = "all" if recipe.snapshots.keep == "all" else f"the last {recipe.snapshots.keep}"
        mean = ", with the running mean" if recipe.snapshots.cumulative else ""
        lines.append(f"snapshots: {len(plan.snapshots)}, {when}; {kept} kept{mean}")
    return lines


def _arrives_at(rate: float, recipe: Recipe, course: ResolvedSchedule) -> bool:
    """Whether the shape itself has come to `rate` at swa.start."""
    leads_there = SCHEDULES[recipe.schedule.name].leads_to_swa_lr and course.end == course.start
    return leads_there and course.final_lr == rate


def _when(series: Series, steps: tuple[int, ...], steps_per_epoch: int) -> str:
    """Where the points of a series lie, in the words of its own unit."""
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
    an_epoch = 1 / series.every.value if series.every.unit == "ep" else Fraction(0)
    divides_it = an_epoch.denominator == 1 and an_epoch > 0
    pace = f"{an_epoch} an epoch" if divides_it else f"every {length_text(gap, steps_per_epoch)}"
    return f"{pace}, epochs {epoch(steps[0])} to {epoch(steps[-1])}{start}"


def _ends_of(epochs: list[int]) -> str:
    if len(epochs) == 1:
        return f"end of epoch {epochs[0]}"
    if len(epochs) == 2:
        return f"ends of epochs {epochs[0]} and {epochs[1]}"
    if epochs[1] == epochs[0] + 1:
        return f"ends of epochs {epochs[0]} to {epochs[-1]}"
    return f"ends of epochs {epochs[0]}, {epochs[1]}, ..., {epochs[-1]}"


# Each schedule and each kind of average in words.


def _constant_text(recipe: Recipe, course: ResolvedSchedule) -> str:
    return f"constant {recipe.optimizer.lr:g}"


def _decay_text(recipe: Recipe, course: ResolvedSchedule) -> str:
    return f"{recipe.schedule.name} to {course.final_lr:g} at epoch {_epoch(course.end, course)}"


def _restarts_text(recipe: Recipe, course: ResolvedSchedule) -> str:
    mult = recipe.schedule.T_mult or 1
    growth = f", each {mult:g} x longer" if mult > 1 else ""
    first = length_text(course.turns[1] - course.turns[0], course.steps_per_epoch)
    return f"cosine cycles of {first} from {recipe.optimizer.lr:g} to {course.final_lr:g}{growth}"


def _cyclic_text(recipe: Recipe, course: ResolvedSchedule) -> str:
    schedule, peak = recipe.schedule, peak_lr(recipe)
    ways = ("down", "up") if schedule.begin == "max" else ("up", "down")
    pieces = [length_text(right - left, course.steps_per_epoch) for left, right in pairwise(course.turns)]
    paces = " and ".join(f"{piece} {way}" for piece, way in zip(pieces, ways, strict=False))
    mode = "" if schedule.mode in (None, "triangular") else f", {schedule.mode}"
    return f"cycles between {schedule.base_lr:g} and {peak:g}, {paces}{mode}"


def _multistep_text(recipe: Recipe, course: ResolvedSchedule) -> str:
    factor = 0.1 if recipe.schedule.gamma is None else recipe.schedule.gamma
    drops = ", ".join(_epoch(point, course) for point in course.drops)
    return f"steps from {recipe.optimizer.lr:g}, times {factor:g} at epoch {drops}"


def _one_cycle_text(recipe: Recipe, course: ResolvedSchedule) -> str:
    up = f"up to {peak_lr(recipe):g} at epoch {_epoch(course.peak, course)}"
    return (
        f"one cycle from {recipe.optimizer.lr:g} {up},"
        f" down to {course.final_lr:g} at epoch {_epoch(course.end, course)}"
    )


def _paper_text(recipe: Recipe, course: ResolvedSchedule) -> str:
    knee, foot = _epoch(course.end / 2, course), _epoch(course.end * Fraction(9, 10), course)
    return f"{recipe.optimizer.lr:g} to epoch {knee}, linear to {course.final_lr:g} at epoch {foot}"


def _epoch(point: Fraction | int, course: ResolvedSchedule) -> str:
    return in_epochs(point, steps_per_epoch=course.steps_per_epoch)


SCHEDULE_TEXTS: Mapping[str, Callable[[Recipe, ResolvedSchedule], str]] = {
    "constant": _constant_text,
    "cosine": _decay_text,
    "linear": _decay_text,
    "cosine_restarts": _restarts_text,
    "cyclic": _cyclic_text,
    "multistep": _multistep_text,
    "one_cycle": _one_cycle_text,
    "swa_paper": _paper_text,
}
assert SCHEDULE_TEXTS.keys() == SCHEDULE_KEYS.keys(), f"no text: {SCHEDULE_TEXTS.keys() ^ SCHEDULE_KEYS.keys()}"


def _mean_text(average: AveragePlan, half_life: Duration | None) -> str:
    return count_text(len(average.steps), "weight")


def _ema_text(average: AveragePlan, half_life: Duration | None) -> str:
    pace = f"EMA {average.decay}"
    if half_life is not None:
        pace = f"EMA of half-life {half_life} ({average.decay:.6g})"
    warmup = ", warmed up" if average.warmup else ""
    return pace + warmup + ("" if average.bias_correction else ", no bias correction")


def _lawa_text(average: AveragePlan, half_life: Duration | None) -> str:
    return f"LAWA, last {average.window} of {count_text(len(average.steps), 'weight')}"


def _swag_text(average: AveragePlan, half_life: Duration | None) -> str:
    kept = "diagonal" if average.diagonal else f"rank {average.rank}"
    return f"SWAG of {count_text(len(average.steps), 'weight')}, {kept}"


AVERAGE_TEXTS: Mapping[str, Callable[[AveragePlan, Duration | None], str]] = {
    "mean": _mean_text,
    "ema": _ema_text,
    "lawa": _lawa_text,
    "swag": _swag_text,
}
assert AVERAGE_TEXTS.keys() == AVERAGE_KINDS.keys(), f"no text: {AVERAGE_TEXTS.keys() ^ AVERAGE_KINDS.keys()}"
