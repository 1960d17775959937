"""The learning rate of a run as a pure function of the step.

One idea: `chart` turns a recipe into numbers, and `learning_rate` joins warmup, schedule, anneal and the constant rate
of swa.lr end to end. Nothing has to be saved, and every rate is known before the run. A length stays an exact fraction
until it becomes a boundary in steps. Steps and points count as in `schedules`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import partial
from itertools import accumulate

from swa_cli.errors import Problem
from swa_cli.recipe.curves import Curve, Exact, ResolvedSchedule, cosine, linear
from swa_cli.recipe.schedules import SCHEDULES
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.values import Duration, round_half_up


def learning_rate(recipe: Recipe, *, steps_per_epoch: int) -> Curve:
    """Return the rate of every step of a run.

    In the first `w` steps of warmup the rate is `curve(w) * (s + 1) / w`. If swa.lr is given, the rate is exactly
    swa.lr from swa.start on, and the `A` steps of anneal before it bridge from the schedule's rate at their beginning;
    the last of them already has swa.lr, so no weight set of a bridge enters the average.
    """
    course = chart(recipe, steps_per_epoch=steps_per_epoch)
    curve = SCHEDULES[recipe.schedule.name].curve(course)

    def scheduled(step: int) -> float:
        if step < course.warmup:
            return curve(course.warmup) * ((step + 1) / course.warmup)
        return curve(step)

    swa = recipe.swa
    if swa is None or swa.lr is None:
        return scheduled
    swa_lr, hold, anneal = swa.lr, round_half_up(course.start), course.anneal
    bridge = partial(cosine if swa.anneal_shape == "cosine" else linear, last=swa_lr)
    level = scheduled(hold - anneal) if anneal else swa_lr

    def with_constant_phase(step: int) -> float:
        if step >= hold:
            return swa_lr
        if step < hold - anneal:
            return scheduled(step)
        return bridge((step - (hold - anneal) + 1) / anneal, first=level)

    return with_constant_phase


def bounds(recipe: Recipe) -> tuple[float, float]:
    """Return the lowest and the highest rate of the schedule, without swa.lr."""
    schedule = recipe.schedule
    return SCHEDULES[schedule.name].bounds(schedule.settings, recipe.optimizer.lr, _final_lr(recipe))


def chart(recipe: Recipe, *, steps_per_epoch: int) -> ResolvedSchedule:
    """Resolve the durations and defaults of a recipe in which `schedule_problems` finds nothing.

    A default warmup of one epoch that does not fit is cut to a tenth of what there is.
    """
    schedule, swa, total = recipe.schedule, recipe.swa, recipe.train.epochs * steps_per_epoch
    exact = partial(Duration.exact_steps, steps_per_epoch=steps_per_epoch, total_steps=total)
    explicit_warmup = round_half_up(exact(schedule.warmup)) if schedule.warmup else 0
    kind, settings = SCHEDULES[schedule.name], schedule.settings
    turns = _turns(kind.cycles.lengths(settings, exact), explicit_warmup, total) if kind.cycles else ()
    lows = turns[kind.cycles.minima(settings)] if kind.cycles else ()
    low_points = tuple(point for point in lows if point <= total)

    start = point_of(swa.start, exact=exact, low_points=low_points, total=total) if swa else Fraction(total)
    holds = swa is not None and swa.lr is not None
    anneal = round_half_up(exact(swa.anneal)) if swa else 0
    anneal_begin = round_half_up(start) - (anneal if anneal <= start else 0)
    end = start if _ends_at_start(recipe) else Fraction(total)
    drops = kind.drops(settings, exact)
    plateau = round_half_up(kind.plateau(settings, exact, end)) if kind.plateau else None
    limit = min(round_half_up(end), anneal_begin if holds else total, *drops, *([] if plateau is None else [plateau]))
    warmup = explicit_warmup
    if schedule.warmup is None and kind.has_default_warmup:
        warmup = steps_per_epoch if steps_per_epoch < limit else max(0, limit // 10)
    return ResolvedSchedule(
        name=schedule.name,
        settings=settings,
        exact=exact,
        steps_per_epoch=steps_per_epoch,
        total=total,
        lr=recipe.optimizer.lr,
        start=start,
        warmup=warmup,
        warmup_limit=limit,
        anneal=anneal,
        end=end,
        plateau=plateau,
        final_lr=_final_lr(recipe),
        drops=drops,
        turns=turns,
        minima=tuple(point for point in low_points if point <= start) if holds else low_points,
    )


def end_of_schedule(recipe: Recipe, *, steps_per_epoch: int) -> int | None:
    """Return the point from which on the rate is constant, whatever the length of the run; None without one."""
    holds = recipe.swa is not None and recipe.swa.lr is not None
    if not holds and recipe.schedule.span != "start":
        return None
    return round_half_up(chart(recipe, steps_per_epoch=steps_per_epoch).start)


def point_of(start: Duration, *, exact: Exact, low_points: Sequence[int], total: int) -> Fraction:
    """Return a point of the run; `2cycle` is the second minimum, or the end of the run if it has fewer."""
    if start.unit != "cycle":
        return exact(start)
    if start.value == 0:
        return Fraction(0)
    return Fraction(low_points[int(start.value) - 1] if start.value <= len(low_points) else total)


def schedule_problems(recipe: Recipe, *, steps_per_epoch: int) -> list[Problem]:
    """Return every mistake in the sections `schedule` and `swa` that concerns the rate."""
    schedule, swa, total = recipe.schedule, recipe.swa, recipe.train.epochs * steps_per_epoch
    exact = partial(Duration.exact_steps, steps_per_epoch=steps_per_epoch, total_steps=total)
    kind = SCHEDULES[schedule.name]
    lengths = [(f"schedule.{key}", length) for key, length in schedule.lengths]
    problems = cycle_problems([*lengths, *([("swa.anneal", swa.anneal)] if swa else [])])
    problems += [
        Problem(f"schedule.{key}", f"{length} is shorter than one step", "write a longer one, such as 2ep")
        for key, length in schedule.lengths
        if kind.cycles is not None and key in kind.cycles.keys
        if length.unit != "cycle" and exact(length) < 1
    ]
    if schedule.span == "start" and swa is None:
        hint = "write `span: run`, or add swa.start"
        problems.append(Problem("schedule.span", "start needs the section swa", hint))
    if swa is not None and swa.lr is None and swa.anneal.value > 0:
        message = "it leads to swa.lr, which is not given"
        problems.append(Problem("swa.anneal", message, "add swa.lr, or leave it out"))
    if problems:
        return problems
    course = chart(recipe, steps_per_epoch=steps_per_epoch)
    return [*kind.problems(course), *_fit_problems(recipe, course)]


def cycle_problems(lengths: Iterable[tuple[str, Duration]]) -> list[Problem]:
    """Return a problem for each length in cycles, where only `start` and `every` may be."""
    return [
        Problem(key, f"{length} has no fixed length", "write it in %, ep or step")
        for key, length in lengths
        if length.unit == "cycle"
    ]


def _fit_problems(recipe: Recipe, course: ResolvedSchedule) -> list[Problem]:
    """Return a problem for each length that does not fit into the run."""
    schedule, swa, problems = recipe.schedule, recipe.swa, []
    start, limit = round_half_up(course.start), course.warmup_limit
    if swa is not None and course.anneal > start:
        message = f"{swa.anneal} is longer than the run up to swa.start, {course.epoch(start)} epochs"
        problems.append(Problem("swa.anneal", message, f"write at most {start}step"))
    if course.warmup and course.warmup >= limit:
        message = f"{schedule.warmup} is too long: the rate must be reached before epoch {course.epoch(limit)}"
        hint = f"write a shorter one, such as {limit // 10}step"
        problems.append(Problem("schedule.warmup", message, hint))
    return problems


def _turns(lengths: Iterable[Fraction], first: int, total: int) -> tuple[int, ...]:
    """Return the bounds of the pieces of cycles: exact sums, each rounded up (Huang et al.: ceil(T/M))."""
    turns = []
    for point in accumulate(lengths, initial=Fraction(first)):
        turns.append(math.ceil(point))
        if point > total:
            break
    return tuple(turns)


def _ends_at_start(recipe: Recipe) -> bool:
    """Return whether the decay ends at swa.start rather than with the run."""
    span, swa = recipe.schedule.span, recipe.swa
    return span == "start" or (span != "run" and swa is not None and swa.lr is not None)


def _final_lr(recipe: Recipe) -> float:
    """Return the end of a decay: final_lr, or swa.lr if it ends where that begins, or the schedule's default."""
    if recipe.schedule.final_lr is not None:
        return float(recipe.schedule.final_lr)
    kind = SCHEDULES[recipe.schedule.name]
    swa_lr = recipe.swa.lr if recipe.swa and _ends_at_start(recipe) else None
    if kind.leads_to_swa_lr and swa_lr is not None:
        return swa_lr
    return kind.final_lr * recipe.optimizer.lr
