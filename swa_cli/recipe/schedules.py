"""Table of the schedules: keys, curves, cycles, checks and texts.

One idea: a schedule is one entry of `SCHEDULES`. The section `schedule`, its JSON Schema, the template, the plan and
the baseline are derived from the entry. No field of an entry has a default, so a part that is left out is an error at
import. Every curve is a convex combination of two rates, so it meets both exactly at its ends.

`step` counts optimizer updates from 0. A *point* (end of warmup, minimum of a cycle) counts updates done, so step `p`
is the first one after point `p`. `position` runs from 0 to 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import accumulate, cycle, pairwise, repeat
from typing import Annotated, Any, Literal

from pydantic import Field

from swa_cli.errors import Problem
from swa_cli.recipe.values import Duration, DurationField, Key, Number, Rate, in_epochs, length_text, round_half_up

Curve = Callable[[int], float]  # the rate of a step
Exact = Callable[[Duration], Fraction]  # the steps of a length, before rounding
Settings = Mapping[str, Any]  # the keys of a schedule; a key that the recipe leaves out has its default

ONE_CYCLE_END = 1e-4  # torch's final_div_factor
DEFAULT_PEAK = Fraction(3, 10)  # of one_cycle


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
    warmup_limit: int  # the step before which the warmup has to end: the first drop, the decay's end or the anneal
    anneal: int  # steps of the bridge to swa.lr, which ends at `start`
    end: Fraction  # of a decay, exact
    final_lr: float  # the rate at `end`
    drops: tuple[int, ...]  # points, sorted
    turns: tuple[int, ...]  # bounds of the pieces of cycles; the last one is after the end of the run
    minima: tuple[int, ...]  # points at which a cycle is at its minimum; none without cycles

    def epoch(self, point: Fraction | int) -> str:
        """Write a point in epochs."""
        return in_epochs(point, steps_per_epoch=self.steps_per_epoch)


@dataclass(frozen=True)
class Cycles:
    """How a schedule returns to its minimum."""

    keys: tuple[str, ...]  # lengths of the pieces; each takes at least a step
    lengths: Callable[[Settings, Exact], Iterable[Fraction]]  # of the pieces, without end
    minima: Callable[[Settings], slice]  # which bounds of the pieces are minima


@dataclass(frozen=True)
class ScheduleKind:
    """One schedule; no field has a default, so that an entry states all of them."""

    required: Mapping[str, Key]
    optional: Mapping[str, Key]
    curve: Callable[[ResolvedSchedule], Curve]  # without warmup and swa.lr
    text: Callable[[ResolvedSchedule], str]
    bounds: Callable[[Settings, float, float], tuple[float, float]]  # lowest and highest rate, of lr and final_lr
    problems: Callable[[ResolvedSchedule], list[Problem]]  # in its keys
    has_default_warmup: bool  # of one epoch; the other schedules prescribe their beginning
    leads_to_swa_lr: bool  # ends at swa.lr where that phase begins
    final_lr: float  # default, in multiples of optimizer.lr
    is_decay: bool  # ends at its lowest rate; the baseline of the others is a cosine
    drops: Callable[[Settings, Exact], tuple[int, ...]]  # points at which the rate drops
    cycles: Cycles | None

    @property
    def keys(self) -> Mapping[str, Key]:
        """Return all keys, the required ones first."""
        return {**self.required, **self.optional}


Factor = Annotated[Number, Field(gt=0)]
WARMUP = Key(DurationField, None, "linear rise from 0; default 1ep, or 0ep where the schedule has its own beginning")
SPAN = Key(
    Literal["auto", "start", "run"], None, "what a decay spans; auto: up to swa.start if swa.lr is given, else the run"
)
FINAL_LR = Key(Rate, None, "end of the decay; default swa.lr if the span ends at swa.start, else 0")


def linear(position: float, *, first: float, last: float) -> float:
    """Return the point between `first` (position 0) and `last` (position 1) on a straight line."""
    return first * (1 - position) + last * position


def cosine(position: float, *, first: float, last: float) -> float:
    """Return the point between `first` and `last` on half a cosine (Loshchilov and Hutter 2017)."""
    return linear((1 - math.cos(math.pi * position)) / 2, first=first, last=last)


def _segment(step: int, bounds: Sequence[int]) -> tuple[int, float]:
    """Return the piece that a step is in, and its position there, in [0, 1)."""
    piece = bisect_right(bounds, step) - 1
    return piece, (step - bounds[piece]) / (bounds[piece + 1] - bounds[piece])


def _lr_bounds(settings: Settings, lr: float, final_lr: float) -> tuple[float, float]:
    return final_lr, lr


def _no_problems(course: ResolvedSchedule) -> list[Problem]:
    return []


def _no_drops(settings: Settings, exact: Exact) -> tuple[int, ...]:
    return ()


# cosine, linear


def _decay(course: ResolvedSchedule, *, shape: Callable[..., float]) -> Curve:
    """Decay from the end of the warmup to `end`; the rate is constant from there on."""
    end, warmup, rates = round_half_up(course.end), course.warmup, {"first": course.lr, "last": course.final_lr}
    return lambda step: shape((step - warmup) / (end - warmup) if step < end else 1.0, **rates)


def _decay_kind(shape: Callable[..., float]) -> ScheduleKind:
    """Return the entry of a decay from optimizer.lr to final_lr on this shape."""
    return ScheduleKind(
        required={},
        optional={"warmup": WARMUP, "span": SPAN, "final_lr": FINAL_LR},
        curve=partial(_decay, shape=shape),
        text=lambda course: f"{course.name} to {course.final_lr:g} at epoch {course.epoch(course.end)}",
        bounds=_lr_bounds,
        problems=_no_problems,
        has_default_warmup=True,
        leads_to_swa_lr=True,
        final_lr=0.0,
        is_decay=True,
        drops=_no_drops,
        cycles=None,
    )


# cosine_restarts


def _restarts(course: ResolvedSchedule) -> Curve:
    """Decay on a cosine in each cycle.

    With final_lr 0 and cycles of ceil(T/M) steps: the snapshot ensembles of Huang et al. 2017.
    """
    return lambda step: cosine(_segment(step, course.turns)[1], first=course.lr, last=course.final_lr)


def _restart_lengths(settings: Settings, exact: Exact) -> Iterable[Fraction]:
    growth = Fraction(str(settings["T_mult"]))  # 1.1 as 11/10
    return accumulate(repeat(growth), Fraction.__mul__, initial=exact(settings["T_0"]))


def _restarts_text(course: ResolvedSchedule) -> str:
    growth = f", each {course.settings['T_mult']:g} x longer" if course.settings["T_mult"] > 1 else ""
    first = length_text(course.turns[1] - course.turns[0], course.steps_per_epoch)
    return f"cosine cycles of {first} from {course.lr:g} to {course.final_lr:g}{growth}"


# cyclic


def _cyclic(course: ResolvedSchedule) -> Curve:
    """Straight lines between `base_lr` and `max_lr` that turn at `turns` (Smith 2017).

    A cycle counts from minimum to minimum: triangular2 halves its height each cycle, exp_range multiplies it by
    gamma^(steps since the cycles began). `begin: max` goes down first, as FGE does (Garipov et al. 2018).
    """
    settings, turns = course.settings, course.turns
    base_lr, max_lr = _cyclic_bounds(settings, course.lr, course.final_lr)
    begins_at_max, mode, gamma = settings["begin"] == "max", settings["mode"], settings["gamma"]

    def rate(step: int) -> float:
        segment, position = _segment(step, turns)
        segment += begins_at_max  # as if a rise had gone before
        height = position if segment % 2 == 0 else 1 - position
        if mode == "triangular2":
            height *= 0.5 ** (segment // 2)
        elif mode == "exp_range":
            height *= gamma ** (step - turns[0])
        return linear(height, first=base_lr, last=max_lr)

    return rate


def _cyclic_bounds(settings: Settings, lr: float, final_lr: float) -> tuple[float, float]:
    return settings["base_lr"], lr if settings["max_lr"] is None else settings["max_lr"]


def _cyclic_lengths(settings: Settings, exact: Exact) -> Iterable[Fraction]:
    up = exact(settings["step_size_up"])
    down = exact(settings["step_size_down"]) if settings["step_size_down"] else up
    return cycle((down, up) if settings["begin"] == "max" else (up, down))


def _cyclic_problems(course: ResolvedSchedule) -> list[Problem]:
    found, gamma, mode = [], course.settings["gamma"], course.settings["mode"]
    base_lr, max_lr = _cyclic_bounds(course.settings, course.lr, course.final_lr)
    if base_lr > max_lr:
        message = f"{base_lr:g} is above the peak of the cycles, {max_lr:g}"
        found.append(Problem("schedule.base_lr", message, "lower it, or raise schedule.max_lr"))
    if mode == "exp_range" and gamma is None:
        found.append(Problem("schedule.mode", "exp_range needs gamma", "add `gamma: 0.9999` to the section"))
    if mode != "exp_range" and gamma is not None:
        hint = "add `mode: exp_range` or leave it out"
        found.append(Problem("schedule.gamma", "only exp_range uses it", hint))
    if gamma is not None and gamma > 1:
        found.append(Problem("schedule.gamma", f"{gamma:g} is above 1", "write 1 or less: cycles do not grow"))
    return found


def _cyclic_text(course: ResolvedSchedule) -> str:
    base_lr, max_lr = _cyclic_bounds(course.settings, course.lr, course.final_lr)
    ways = ("down", "up") if course.settings["begin"] == "max" else ("up", "down")
    pieces = [length_text(right - left, course.steps_per_epoch) for left, right in pairwise(course.turns)]
    paces = " and ".join(f"{piece} {way}" for piece, way in zip(pieces, ways, strict=False))
    mode = "" if course.settings["mode"] == "triangular" else f", {course.settings['mode']}"
    return f"cycles between {base_lr:g} and {max_lr:g}, {paces}{mode}"


# multistep


def _multistep(course: ResolvedSchedule) -> Curve:
    """Multiply the rate by `gamma` at each milestone."""
    gamma = course.settings["gamma"]
    return lambda step: course.lr * gamma ** bisect_right(course.drops, step)


def _milestones(settings: Settings, exact: Exact) -> tuple[int, ...]:
    return tuple(sorted(round_half_up(exact(point)) for point in settings["milestones"]))


def _multistep_text(course: ResolvedSchedule) -> str:
    drops = ", ".join(course.epoch(point) for point in course.drops)
    return f"steps from {course.lr:g}, times {course.settings['gamma']:g} at epoch {drops}"


# one_cycle


def _one_cycle(course: ResolvedSchedule) -> Curve:
    """Rise on a cosine from `lr` to `max_lr`, then fall to lr/10,000 (Smith and Topin 2018).

    As torch's OneCycleLR with pct_start = peak/steps: the peak is step `peak - 1`, the end step `steps - 1`.
    """
    steps, peak = round_half_up(course.end), float(_peak(course))
    top, lr, max_lr = peak - 1, course.lr, course.settings["max_lr"]

    def rate(step: int) -> float:
        if step < top:
            return cosine(step / top, first=lr, last=max_lr)
        position = (step - top) / (steps - peak) if step < steps else 1.0
        return cosine(position, first=max_lr, last=lr * ONE_CYCLE_END)

    return rate


def _peak(course: ResolvedSchedule) -> Fraction:
    """Return the point of the highest rate, exact."""
    pct_start = course.settings["pct_start"]
    return course.exact(pct_start) if pct_start else course.end * DEFAULT_PEAK


def _one_cycle_problems(course: ResolvedSchedule) -> list[Problem]:
    found, pct_start, max_lr = [], course.settings["pct_start"], course.settings["max_lr"]
    if max_lr < course.lr:
        message = f"{max_lr:g} is below optimizer.lr, {course.lr:g}, where the cycle begins"
        found.append(Problem("schedule.max_lr", message, "raise it, or lower optimizer.lr"))
    if pct_start is not None and _peak(course) >= round_half_up(course.end):
        message = f"{pct_start} is not before the end of the cycle, epoch {course.epoch(course.end)}"
        hint = f"write an earlier point, such as {round_half_up(course.end * DEFAULT_PEAK)}step"
        found.append(Problem("schedule.pct_start", message, hint))
    return found


def _one_cycle_text(course: ResolvedSchedule) -> str:
    up = f"up to {course.settings['max_lr']:g} at epoch {course.epoch(_peak(course))}"
    down = f"down to {course.final_lr:g} at epoch {course.epoch(course.end)}"
    return f"one cycle from {course.lr:g} {up}, {down}"


# swa_paper


def _swa_paper(course: ResolvedSchedule) -> Curve:
    """Return the rate of whole epochs in the code of Izmailov et al. 2018.

    `lr` for the first half of the epochs up to `end`, `final_lr` from nine tenths on, a straight line between.
    """
    per_epoch, end = course.steps_per_epoch, float(course.end / course.steps_per_epoch)

    def rate(step: int) -> float:
        position = (step // per_epoch / end - 0.5) / 0.4
        return linear(min(1.0, max(0.0, position)), first=course.lr, last=course.final_lr)

    return rate


def _swa_paper_text(course: ResolvedSchedule) -> str:
    knee, foot = course.epoch(course.end / 2), course.epoch(course.end * Fraction(9, 10))
    return f"{course.lr:g} to epoch {knee}, linear to {course.final_lr:g} at epoch {foot}"


SCHEDULES: Mapping[str, ScheduleKind] = {
    "constant": ScheduleKind(
        required={},
        optional={"warmup": WARMUP},
        curve=lambda course: lambda step: course.lr,
        text=lambda course: f"constant {course.lr:g}",
        bounds=_lr_bounds,
        problems=_no_problems,
        has_default_warmup=True,
        leads_to_swa_lr=False,
        final_lr=0.0,
        is_decay=False,
        drops=_no_drops,
        cycles=None,
    ),
    "cosine": _decay_kind(cosine),
    "linear": _decay_kind(linear),
    "cosine_restarts": ScheduleKind(
        required={"T_0": Key(DurationField, None, "length of the first cycle")},
        optional={
            "warmup": WARMUP,
            "T_mult": Key(Annotated[Number, Field(ge=1)], 1.0, "growth of the cycles"),
            "final_lr": FINAL_LR,
        },
        curve=_restarts,
        text=_restarts_text,
        bounds=_lr_bounds,
        problems=_no_problems,
        has_default_warmup=False,
        leads_to_swa_lr=False,
        final_lr=0.0,
        is_decay=False,
        drops=_no_drops,
        cycles=Cycles(("T_0",), _restart_lengths, lambda settings: slice(1, None)),
    ),
    "cyclic": ScheduleKind(
        required={
            "base_lr": Key(Rate, None, "minimum of a cycle"),
            "step_size_up": Key(DurationField, None, "length of the rise"),
        },
        optional={
            "warmup": WARMUP,
            "max_lr": Key(Rate, None, "peak; default optimizer.lr"),
            "step_size_down": Key(DurationField, None, "length of the fall; default step_size_up"),
            "begin": Key(Literal["base", "max"], "base", "rate of the first step; max is the cycle of FGE"),
            "mode": Key(
                Literal["triangular", "triangular2", "exp_range"],
                "triangular",
                "amplitude: constant, halved each cycle, or times gamma^step",
            ),
            "gamma": Key(Factor, None, "factor of each step with exp_range, at most 1"),
        },
        curve=_cyclic,
        text=_cyclic_text,
        bounds=_cyclic_bounds,
        problems=_cyclic_problems,
        has_default_warmup=False,
        leads_to_swa_lr=False,
        final_lr=0.0,
        is_decay=False,
        drops=_no_drops,
        cycles=Cycles(
            keys=("step_size_up", "step_size_down"),
            lengths=_cyclic_lengths,
            minima=lambda settings: slice(1 if settings["begin"] == "max" else 2, None, 2),
        ),
    ),
    "multistep": ScheduleKind(
        required={"milestones": Key(list[DurationField], None, "points at which the rate drops")},
        optional={"warmup": WARMUP, "gamma": Key(Factor, 0.1, "factor of each drop")},
        curve=_multistep,
        text=_multistep_text,
        bounds=lambda settings, lr, final_lr: (lr * settings["gamma"] ** len(settings["milestones"]), lr),
        problems=_no_problems,
        has_default_warmup=True,
        leads_to_swa_lr=False,
        final_lr=0.0,
        is_decay=True,
        drops=_milestones,
        cycles=None,
    ),
    "one_cycle": ScheduleKind(
        required={"max_lr": Key(Rate, None, "peak")},
        optional={"pct_start": Key(DurationField, None, "point of the highest rate; default 30%"), "span": SPAN},
        curve=_one_cycle,
        text=_one_cycle_text,
        bounds=lambda settings, lr, final_lr: (final_lr, settings["max_lr"]),
        problems=_one_cycle_problems,
        has_default_warmup=False,
        leads_to_swa_lr=False,
        final_lr=ONE_CYCLE_END,
        is_decay=True,
        drops=_no_drops,
        cycles=None,
    ),
    "swa_paper": ScheduleKind(
        required={},
        optional={},
        curve=_swa_paper,
        text=_swa_paper_text,
        bounds=_lr_bounds,
        problems=_no_problems,
        has_default_warmup=False,
        leads_to_swa_lr=True,
        final_lr=0.01,
        is_decay=True,
        drops=_no_drops,
        cycles=None,
    ),
}
