"""The learning rate as a pure function of the step: nothing to save, nothing to drift, known before the run.

The one idea: `chart` turns a recipe into numbers, and `learning_rate` lays warmup, shape, anneal and the
constant rate of swa.lr end to end. A length stays an exact fraction until it becomes a boundary in steps.
What a schedule is beside its keys stands in `SCHEDULES`, at the end of the file.
`step` counts optimizer updates from 0; a *point* (end of warmup, minimum of a cycle) counts updates done, so
step `p` is the first one after point `p`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import accumulate, cycle, repeat

from swa_cli.errors import Problem
from swa_cli.recipe.lr_curves import (
    ONE_CYCLE_END,
    cosine,
    cosine_restarts,
    cyclic,
    linear,
    multistep,
    one_cycle,
    swa_paper,
)
from swa_cli.recipe.schema import SCHEDULE_KEYS, Recipe, Schedule
from swa_cli.recipe.values import Duration, in_epochs, round_half_up

DEFAULT_PEAK = Fraction(3, 10)  # of the cycle of one_cycle

Rate = Callable[[int], float]  # of a step
Exact = Callable[[Duration], Fraction]  # a length in steps, before rounding


def learning_rate(recipe: Recipe, *, steps_per_epoch: int) -> Rate:
    """The rate of every step of a run.

    In the first `w` steps of warmup the rate is `shape(w) * (s + 1) / w`. If swa.lr is given, the rate is
    exactly swa.lr from swa.start on, and the `A` steps of anneal before it bridge from the schedule's rate at
    their beginning; the last of them already has swa.lr, so no weight of a bridge enters the average.
    """
    course = chart(recipe, steps_per_epoch=steps_per_epoch)
    shape = SCHEDULES[recipe.schedule.name].curve(recipe, course)

    def scheduled(step: int) -> float:
        if step < course.warmup:
            return shape(course.warmup) * ((step + 1) / course.warmup)
        return shape(step)

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


def minima(recipe: Recipe, *, steps_per_epoch: int) -> tuple[int, ...]:
    """Updates done when a cycle is at its minimum; empty if the schedule has no cycles."""
    return chart(recipe, steps_per_epoch=steps_per_epoch).minima


@dataclass(frozen=True)
class ResolvedSchedule:
    """What a recipe says of the rate, with durations in steps and every default filled in."""

    steps_per_epoch: int
    total: int
    start: Fraction  # swa.start, exact; the end of the run if there is no such section
    warmup: int
    anneal: int  # steps of the bridge that ends at `start`
    end: Fraction  # where a decay ends, exact
    final_lr: float  # where it leads
    peak: Fraction  # one_cycle: its highest point
    drops: tuple[int, ...]  # multistep: sorted
    turns: tuple[int, ...]  # bounds of the straight or cosine pieces of cycles; the last lies after the end
    minima: tuple[int, ...]


@dataclass(frozen=True)
class Cycles:
    """How a schedule comes to its minimum again and again."""

    keys: tuple[str, ...]  # the lengths that the cycles are made of; none may be shorter than a step
    lengths: Callable[[Schedule, Exact], Iterable[Fraction]]  # of their straight or cosine pieces, without end
    minima: Callable[[Schedule], slice]  # which of the bounds of the pieces are minima


@dataclass(frozen=True)
class Kind:
    """What a schedule is beside its keys; nothing has a default, so that a new one has to say all of it."""

    curve: Callable[[Recipe, ResolvedSchedule], Rate]  # without warmup and without swa.lr
    is_warmed_up: bool  # over an epoch by default; the others prescribe how they begin
    leads_to_swa_lr: bool  # ends at swa.lr where that begins
    final_lr: float  # where a decay leads by default, in parts of optimizer.lr
    cycles: Cycles | None
    is_decay: bool  # ends once, at its lowest rate; the baseline of any other one is a cosine


def chart(recipe: Recipe, *, steps_per_epoch: int) -> ResolvedSchedule:
    """Fill in the durations and defaults of a recipe in which `schedule_problems` finds nothing.

    A default warmup of one epoch that does not fit is cut to a tenth of what there is.
    """
    schedule, swa, total = recipe.schedule, recipe.swa, recipe.train.epochs * steps_per_epoch
    exact = partial(Duration.exact_steps, steps_per_epoch=steps_per_epoch, total_steps=total)
    explicit_warmup = round_half_up(exact(schedule.warmup)) if schedule.warmup else 0
    kind = SCHEDULES[schedule.name]
    turns = _turns(kind.cycles.lengths(schedule, exact), explicit_warmup, total) if kind.cycles else ()
    lows = turns[kind.cycles.minima(schedule)] if kind.cycles else ()
    low_points = tuple(point for point in lows if point <= total)

    start = point_of(swa.start, exact=exact, low_points=low_points, total=total) if swa else Fraction(total)
    holds = swa is not None and swa.lr is not None
    anneal = round_half_up(exact(swa.anneal)) if swa else 0
    end = start if _ends_at_start(recipe) else Fraction(total)
    drops = tuple(sorted(round_half_up(exact(point)) for point in schedule.milestones or ()))
    limit = _warmup_limit(end=end, drops=drops, shape_end=round_half_up(start) - anneal if holds else total)
    warmup = explicit_warmup
    if schedule.warmup is None and kind.is_warmed_up:
        warmup = steps_per_epoch if steps_per_epoch < limit else max(0, limit // 10)
    return ResolvedSchedule(
        steps_per_epoch=steps_per_epoch,
        total=total,
        start=start,
        warmup=warmup,
        anneal=anneal,
        end=end,
        final_lr=_final_lr(recipe),
        peak=exact(schedule.pct_start) if schedule.pct_start else end * DEFAULT_PEAK,
        drops=drops,
        turns=turns,
        minima=tuple(point for point in low_points if point <= start) if holds else low_points,
    )


def point_of(start: Duration, *, exact: Exact, low_points: Sequence[int], total: int) -> Fraction:
    """A point of the run; `2cycle` is the second minimum, or the end of the run if it has fewer."""
    if start.unit != "cycle":
        return exact(start)
    if start.value == 0:
        return Fraction(0)
    return Fraction(low_points[int(start.value) - 1] if start.value <= len(low_points) else total)


def schedule_problems(recipe: Recipe, *, steps_per_epoch: int) -> list[Problem]:
    """Every mistake in the sections `schedule` and `swa` that concerns the rate."""
    schedule, total = recipe.schedule, recipe.train.epochs * steps_per_epoch
    exact = partial(Duration.exact_steps, steps_per_epoch=steps_per_epoch, total_steps=total)
    cycles = SCHEDULES[schedule.name].cycles
    lengths = [(f"schedule.{key}", length) for key, length in schedule.lengths]
    problems = cycle_problems([*lengths, *([("swa.anneal", recipe.swa.anneal)] if recipe.swa else [])])
    problems += [
        Problem(f"schedule.{key}", f"{length} is shorter than one step", "write a longer one, such as 2ep")
        for key, length in schedule.lengths
        if cycles is not None and key in cycles.keys
        if length.unit != "cycle" and exact(length) < 1
    ]
    problems += _value_problems(recipe)
    return problems or _fit_problems(recipe, chart(recipe, steps_per_epoch=steps_per_epoch))


def cycle_problems(lengths: Iterable[tuple[str, Duration]]) -> list[Problem]:
    """Lengths that are given in cycles, where only `start` and `every` may be."""
    return [
        Problem(key, f"{length} has no fixed length", "write it in %, ep or step")
        for key, length in lengths
        if length.unit == "cycle"
    ]


def _value_problems(recipe: Recipe) -> list[Problem]:
    """Mistakes that need no arithmetic of steps."""
    schedule, swa, lr = recipe.schedule, recipe.swa, recipe.optimizer.lr
    base_lr, peak = schedule.base_lr or 0.0, peak_lr(recipe)
    found = []
    if schedule.name == "cyclic" and base_lr > peak:
        message = f"{base_lr:g} is above the peak of the cycles, {peak:g}"
        found.append(("schedule.base_lr", message, "lower it, or raise schedule.max_lr"))
    if schedule.name == "one_cycle" and peak < lr:
        message = f"{peak:g} is below optimizer.lr, {lr:g}, where the cycle begins"
        found.append(("schedule.max_lr", message, "raise it, or lower optimizer.lr"))
    if schedule.mode == "exp_range" and schedule.gamma is None:
        found.append(("schedule.mode", "exp_range needs gamma", "add `gamma: 0.9999` to the section"))
    if schedule.name == "cyclic" and schedule.gamma is not None and schedule.gamma > 1:
        found.append(("schedule.gamma", f"{schedule.gamma:g} is above 1", "write 1 or less: the cycles must not grow"))
    if schedule.name == "cyclic" and schedule.gamma is not None and schedule.mode != "exp_range":
        found.append(("schedule.gamma", "only exp_range uses it", "add `mode: exp_range` or leave it out"))
    if schedule.span == "start" and swa is None:
        found.append(("schedule.span", "start needs the section swa", "write `span: run`, or add swa.start"))
    if swa is not None and swa.lr is None and swa.anneal.value > 0:
        found.append(("swa.anneal", "it leads to swa.lr, which is not given", "add swa.lr, or leave it out"))
    return [Problem(*problem) for problem in found]


def _fit_problems(recipe: Recipe, course: ResolvedSchedule) -> list[Problem]:
    """Lengths that do not fit into the run."""
    schedule, swa, problems = recipe.schedule, recipe.swa, []
    epochs = partial(in_epochs, steps_per_epoch=course.steps_per_epoch)
    start = round_half_up(course.start)
    holds = swa is not None and swa.lr is not None
    anneal_fits = course.anneal <= start
    if swa is not None and not anneal_fits:
        message = f"{swa.anneal} is longer than the run up to swa.start, {epochs(start)} epochs"
        problems.append(Problem("swa.anneal", message, f"write at most {start}step"))
    shape_end = start - (course.anneal if anneal_fits else 0) if holds else course.total
    limit = _warmup_limit(end=course.end, drops=course.drops, shape_end=shape_end)
    if course.warmup and course.warmup >= limit:
        message = f"{schedule.warmup} is too long: the rate must be reached before epoch {epochs(limit)}"
        hint = f"write a shorter one, such as {limit // 10}step"
        problems.append(Problem("schedule.warmup", message, hint))
    if schedule.pct_start is not None and course.peak >= round_half_up(course.end):
        message = f"{schedule.pct_start} is not before the end of the cycle, epoch {epochs(course.end)}"
        hint = f"write an earlier point, such as {round_half_up(course.end * DEFAULT_PEAK)}step"
        problems.append(Problem("schedule.pct_start", message, hint))
    return problems


def _turns(lengths: Iterable[Fraction], first: int, total: int) -> tuple[int, ...]:
    """Where the pieces of the cycles meet: exact sums, each rounded up (Huang et al.: ceil(T/M))."""
    turns = []
    for point in accumulate(lengths, initial=Fraction(first)):
        turns.append(math.ceil(point))
        if point > total:
            break
    return tuple(turns)


def _ends_at_start(recipe: Recipe) -> bool:
    """Whether the decay ends at swa.start rather than with the run."""
    span, swa = recipe.schedule.span, recipe.swa
    return span == "start" or (span != "run" and swa is not None and swa.lr is not None)


def _final_lr(recipe: Recipe) -> float:
    """Where a decay leads: final_lr, or swa.lr if it ends where that begins, or its shape's default."""
    if recipe.schedule.final_lr is not None:
        return recipe.schedule.final_lr
    kind = SCHEDULES[recipe.schedule.name]
    swa_lr = recipe.swa.lr if recipe.swa and _ends_at_start(recipe) else None
    if kind.leads_to_swa_lr and swa_lr is not None:
        return swa_lr
    return kind.final_lr * recipe.optimizer.lr


def _warmup_limit(*, end: Fraction, drops: Sequence[int], shape_end: int) -> int:
    """The step before which a warmup has to end: that of the first drop, the decay's end or the anneal."""
    return min(round_half_up(end), shape_end, *drops)


# What each schedule is.


def _constant(recipe: Recipe, course: ResolvedSchedule) -> Rate:
    return lambda step: recipe.optimizer.lr


def _decay(recipe: Recipe, course: ResolvedSchedule, *, blend: Callable[..., float]) -> Rate:
    first, last, end, warmup = recipe.optimizer.lr, course.final_lr, round_half_up(course.end), course.warmup
    return lambda step: blend((step - warmup) / (end - warmup) if step < end else 1.0, first=first, last=last)


def _cosine_restarts(recipe: Recipe, course: ResolvedSchedule) -> Rate:
    return partial(cosine_restarts, boundaries=course.turns, lr=recipe.optimizer.lr, final_lr=course.final_lr)


def _cosine_lengths(schedule: Schedule, exact: Exact) -> Iterable[Fraction]:
    assert schedule.T_0 is not None, "the schema demands it"
    growth = Fraction(str(schedule.T_mult or 1))  # 1.1 as 11/10
    return accumulate(repeat(growth), Fraction.__mul__, initial=exact(schedule.T_0))


def _cyclic(recipe: Recipe, course: ResolvedSchedule) -> Rate:
    schedule = recipe.schedule
    return partial(
        cyclic,
        turns=course.turns,
        base_lr=schedule.base_lr or 0.0,
        max_lr=peak_lr(recipe),
        begin=schedule.begin or "base",
        mode=schedule.mode or "triangular",
        gamma=1.0 if schedule.gamma is None else schedule.gamma,
    )


def _cyclic_lengths(schedule: Schedule, exact: Exact) -> Iterable[Fraction]:
    assert schedule.step_size_up is not None, "the schema demands it"
    up, down = exact(schedule.step_size_up), exact(schedule.step_size_down or schedule.step_size_up)
    return cycle((down, up) if schedule.begin == "max" else (up, down))


def _multistep(recipe: Recipe, course: ResolvedSchedule) -> Rate:
    factor = 0.1 if recipe.schedule.gamma is None else recipe.schedule.gamma
    return partial(multistep, drops=course.drops, lr=recipe.optimizer.lr, factor=factor)


def _one_cycle(recipe: Recipe, course: ResolvedSchedule) -> Rate:
    steps, peak = round_half_up(course.end), float(course.peak)
    return partial(one_cycle, steps=steps, peak=peak, lr=recipe.optimizer.lr, max_lr=peak_lr(recipe))


def _swa_paper(recipe: Recipe, course: ResolvedSchedule) -> Rate:
    start, lr, final_lr = float(course.end / course.steps_per_epoch), recipe.optimizer.lr, course.final_lr
    return lambda step: swa_paper(step // course.steps_per_epoch, start=start, lr=lr, final_lr=final_lr)


def peak_lr(recipe: Recipe) -> float:
    """The highest rate of cyclic and one_cycle."""
    return recipe.optimizer.lr if recipe.schedule.max_lr is None else recipe.schedule.max_lr


SCHEDULES = {
    "constant": Kind(_constant, is_warmed_up=True, leads_to_swa_lr=False, final_lr=0.0, cycles=None, is_decay=False),
    "cosine": Kind(
        partial(_decay, blend=cosine), is_warmed_up=True, leads_to_swa_lr=True, final_lr=0.0, cycles=None, is_decay=True
    ),
    "linear": Kind(
        partial(_decay, blend=linear), is_warmed_up=True, leads_to_swa_lr=True, final_lr=0.0, cycles=None, is_decay=True
    ),
    "cosine_restarts": Kind(
        _cosine_restarts,
        is_warmed_up=False,
        leads_to_swa_lr=False,
        final_lr=0.0,
        cycles=Cycles(("T_0",), _cosine_lengths, lambda schedule: slice(1, None)),
        is_decay=False,
    ),
    "cyclic": Kind(
        _cyclic,
        is_warmed_up=False,
        leads_to_swa_lr=False,
        final_lr=0.0,
        cycles=Cycles(
            ("step_size_up", "step_size_down"),
            _cyclic_lengths,
            lambda schedule: slice(1 if schedule.begin == "max" else 2, None, 2),
        ),
        is_decay=False,
    ),
    "multistep": Kind(_multistep, is_warmed_up=True, leads_to_swa_lr=False, final_lr=0.0, cycles=None, is_decay=True),
    "one_cycle": Kind(
        _one_cycle, is_warmed_up=False, leads_to_swa_lr=False, final_lr=ONE_CYCLE_END, cycles=None, is_decay=True
    ),
    "swa_paper": Kind(_swa_paper, is_warmed_up=False, leads_to_swa_lr=True, final_lr=0.01, cycles=None, is_decay=True),
}
assert SCHEDULES.keys() == SCHEDULE_KEYS.keys(), f"no curve: {SCHEDULES.keys() ^ SCHEDULE_KEYS.keys()}"
CYCLIC = tuple(name for name, kind in SCHEDULES.items() if kind.cycles is not None)
