"""Table of the schedules: keys, curves, cycles, checks and texts.

One idea: a schedule is one entry of `SCHEDULES`. The section `schedule`, its JSON Schema, the template, the plan and
the baseline are derived from the entry. No field of an entry has a default, so a part that is left out is an error at
import. Every curve but `sqrt` is a convex combination of two rates, so it meets both exactly at its ends.

`step` counts optimizer updates from 0. A *point* (end of warmup, minimum of a cycle) counts updates done, so step `p`
is the first one after point `p`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from swa_cli.errors import Problem
from swa_cli.recipe import cycles
from swa_cli.recipe.curves import SHAPES, Curve, Exact, ResolvedSchedule, Settings, cosine, linear
from swa_cli.recipe.values import Duration, DurationField, Key, Number, Rate, round_half_up

ONE_CYCLE_END = 1e-4  # torch's final_div_factor
DEFAULT_PEAK = Fraction(3, 10)  # of one_cycle


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
    plateau: Callable[[Settings, Exact, Fraction], Fraction] | None  # where the decay begins that ends at a point
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
        plateau=None,
        cycles=None,
    )


# wsd, sqrt


def _wsd(course: ResolvedSchedule) -> Curve:
    """Stay at `lr`, then decay to `final_lr` (WSD: Hu et al. 2024; shapes: Haegele et al. 2024, arXiv:2405.18392)."""
    begin, end, rates = course.plateau or 0, round_half_up(course.end), {"first": course.lr, "last": course.final_lr}
    shape = SHAPES[course.settings["shape"]]
    return lambda step: shape(min(1.0, max(0, step - begin) / (end - begin)), **rates)


def _wsd_plateau(settings: Settings, exact: Exact, end: Fraction) -> Fraction:
    return max(Fraction(0), end - exact(settings["decay"]))


def _wsd_problems(course: ResolvedSchedule) -> list[Problem]:
    length, end = course.settings["decay"], round_half_up(course.end)
    if course.exact(length) > course.end:
        message = f"{length} is longer than the run up to the end of the decay, epoch {course.epoch(end)}"
        return [Problem("schedule.decay", message, "write a shorter one, such as 20%")]
    if course.plateau == end:
        return [Problem("schedule.decay", f"{length} is shorter than one step", "write a longer one, such as 20%")]
    return []


def _wsd_text(course: ResolvedSchedule) -> str:
    fall = f"{course.settings['shape']} to {course.final_lr:g} at epoch {course.epoch(course.end)}"
    return f"stable at {course.lr:g} to epoch {course.epoch(course.plateau or 0)}, {fall}"


def _sqrt(course: ResolvedSchedule) -> Curve:
    """Stay at `lr` up to `hold`, then fall as sqrt(hold / step) (Vaswani et al. 2017; with a later `hold`, EDM2)."""
    hold = _hold(course)
    return lambda step: course.lr * math.sqrt(hold / max(step, hold))


def _hold(course: ResolvedSchedule) -> int:
    """Return the point up to which the rate stays."""
    hold = course.settings["hold"]
    return round_half_up(course.exact(hold)) if hold else course.warmup or course.steps_per_epoch


def _sqrt_problems(course: ResolvedSchedule) -> list[Problem]:
    hold, warmup = _hold(course), course.warmup
    if hold >= max(warmup, 1):
        return []
    where = f"before the end of the warmup, epoch {course.epoch(warmup)}" if warmup else "before the first step"
    return [Problem("schedule.hold", f"{course.settings['hold']} is {where}", "write a later point, or leave it out")]


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
        plateau=None,
        cycles=None,
    ),
    "cosine": _decay_kind(cosine),
    "linear": _decay_kind(linear),
    "wsd": ScheduleKind(
        required={},
        optional={
            "warmup": WARMUP,
            "decay": Key(DurationField, Duration.parse("20%"), "length of the decay"),
            "shape": Key(Literal[tuple(SHAPES)], "1-sqrt", "of the decay"),
            "span": SPAN,
            "final_lr": FINAL_LR,
        },
        curve=_wsd,
        text=_wsd_text,
        bounds=_lr_bounds,
        problems=_wsd_problems,
        has_default_warmup=True,
        leads_to_swa_lr=True,
        final_lr=0.0,
        is_decay=True,
        drops=_no_drops,
        plateau=_wsd_plateau,
        cycles=None,
    ),
    "sqrt": ScheduleKind(
        required={},
        optional={
            "warmup": WARMUP,
            "hold": Key(
                DurationField, None, "where the fall begins; default the end of the warmup, or 1ep without one"
            ),
        },
        curve=_sqrt,
        text=lambda course: f"{course.lr:g} to epoch {course.epoch(_hold(course))}, then inverse square root",
        bounds=_lr_bounds,
        problems=_sqrt_problems,
        has_default_warmup=True,
        leads_to_swa_lr=False,
        final_lr=0.0,
        is_decay=False,
        drops=_no_drops,
        plateau=None,
        cycles=None,
    ),
    "cosine_restarts": ScheduleKind(
        required={"T_0": Key(DurationField, None, "length of the first cycle")},
        optional={
            "warmup": WARMUP,
            "T_mult": Key(Annotated[Number, Field(ge=1)], 1.0, "growth of the cycles"),
            "final_lr": FINAL_LR,
        },
        curve=cycles.restarts,
        text=cycles.restarts_text,
        bounds=_lr_bounds,
        problems=_no_problems,
        has_default_warmup=False,
        leads_to_swa_lr=False,
        final_lr=0.0,
        is_decay=False,
        drops=_no_drops,
        plateau=None,
        cycles=Cycles(("T_0",), cycles.restart_lengths, lambda settings: slice(1, None)),
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
        curve=cycles.cyclic,
        text=cycles.cyclic_text,
        bounds=cycles.cyclic_bounds,
        problems=cycles.cyclic_problems,
        has_default_warmup=False,
        leads_to_swa_lr=False,
        final_lr=0.0,
        is_decay=False,
        drops=_no_drops,
        plateau=None,
        cycles=Cycles(
            keys=("step_size_up", "step_size_down"),
            lengths=cycles.cyclic_lengths,
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
        plateau=None,
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
        plateau=None,
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
        plateau=None,
        cycles=None,
    ),
}
