"""The two schedules in cycles: cosine with restarts, and straight lines between two rates.

Each turns at `ResolvedSchedule.turns`, the bounds of its pieces; see `schedules` for steps, points and positions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import accumulate, cycle, pairwise, repeat

from swa_cli.errors import Problem
from swa_cli.recipe.curves import Curve, Exact, ResolvedSchedule, Settings, cosine, linear
from swa_cli.recipe.values import length_text

# cosine_restarts


def restarts(course: ResolvedSchedule) -> Curve:
    """Decay on a cosine in each cycle.

    With final_lr 0 and cycles of ceil(T/M) steps: the snapshot ensembles of Huang et al. 2017.
    """
    return lambda step: cosine(_segment(step, course.turns)[1], first=course.lr, last=course.final_lr)


def restart_lengths(settings: Settings, exact: Exact) -> Iterable[Fraction]:
    """Return the lengths of the cycles, in steps."""
    growth = Fraction(str(settings["T_mult"]))  # 1.1 as 11/10
    return accumulate(repeat(growth), Fraction.__mul__, initial=exact(settings["T_0"]))


def restarts_text(course: ResolvedSchedule) -> str:
    """Describe the cycles of a plan."""
    growth = f", each {course.settings['T_mult']:g} x longer" if course.settings["T_mult"] > 1 else ""
    first = length_text(course.turns[1] - course.turns[0], course.steps_per_epoch)
    return f"cosine cycles of {first} from {course.lr:g} to {course.final_lr:g}{growth}"


# cyclic


def cyclic(course: ResolvedSchedule) -> Curve:
    """Straight lines between `base_lr` and `max_lr` that turn at `turns` (Smith 2017).

    A cycle counts from minimum to minimum: triangular2 halves its height each cycle, exp_range multiplies it by
    gamma^(steps since the cycles began). `begin: max` goes down first, as FGE does (Garipov et al. 2018).
    """
    settings, turns = course.settings, course.turns
    base_lr, max_lr = cyclic_bounds(settings, course.lr, course.final_lr)
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


def cyclic_bounds(settings: Settings, lr: float, final_lr: float) -> tuple[float, float]:
    """Return the lowest and the highest rate."""
    return settings["base_lr"], lr if settings["max_lr"] is None else settings["max_lr"]


def cyclic_lengths(settings: Settings, exact: Exact) -> Iterable[Fraction]:
    """Return the lengths of the rises and falls in turn, in steps."""
    up = exact(settings["step_size_up"])
    down = exact(settings["step_size_down"]) if settings["step_size_down"] else up
    return cycle((down, up) if settings["begin"] == "max" else (up, down))


def cyclic_problems(course: ResolvedSchedule) -> list[Problem]:
    """Return the mistakes in the keys."""
    found, gamma, mode = [], course.settings["gamma"], course.settings["mode"]
    base_lr, max_lr = cyclic_bounds(course.settings, course.lr, course.final_lr)
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


def cyclic_text(course: ResolvedSchedule) -> str:
    """Describe the cycles of a plan."""
    base_lr, max_lr = cyclic_bounds(course.settings, course.lr, course.final_lr)
    ways = ("down", "up") if course.settings["begin"] == "max" else ("up", "down")
    pieces = [length_text(right - left, course.steps_per_epoch) for left, right in pairwise(course.turns)]
    paces = " and ".join(f"{piece} {way}" for piece, way in zip(pieces, ways, strict=False))
    mode = "" if course.settings["mode"] == "triangular" else f", {course.settings['mode']}"
    return f"cycles between {base_lr:g} and {max_lr:g}, {paces}{mode}"


def _segment(step: int, bounds: Sequence[int]) -> tuple[int, float]:
    """Return the piece that a step is in, and its position there, in [0, 1)."""
    piece = bisect_right(bounds, step) - 1
    return piece, (step - bounds[piece]) / (bounds[piece + 1] - bounds[piece])
