"""Averaging profiles: how much the weights after each step count, and such averages made from snapshots after a run.

One idea: a profile is the share F(x) that the first x of L steps have together, from F(0) = 0 to F(L) = 1, so the steps
a + 1 to b count F(b) - F(a). Two kinds are what training would have kept (an EMA, a power-function EMA), the others
stand for a decay of the learning rate that was never trained (WSM, arXiv:2507.17634): a rate that falls as w(x / L)
counts each update as often as the mean with F = 1 - w does, to first order. A linear decay is the plain mean.

Snapshots know the weights only in part. Between two running means (`snapshots.cumulative`) the mean m of the segment
is exact, and the raw weights at its ends say how the weights moved in it: theta(u) ~ m + (theta_b - theta_a) (u - 1/2),
u from 0 to 1. A segment then contributes w m + mu (theta_b - theta_a): w is the integral of the profile over it, and mu
its first moment about the middle, in lengths of the segment. Plain snapshots each stand for the steps nearest to them.
Both are weighted sums of what the files hold. `Shares` has these weights, and those of a rougher sum, whose distance
tells the error.

L: steps of the window; x: a number of steps from its start; n: snapshots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

State = Mapping[str, Tensor]

NEGLIGIBLE = 1e-13  # of the largest weight: what rounding leaves of a weight that is 0


@dataclass(frozen=True)
class Profile:
    """How much each step of a window counts: `share(x, L)` is F, elementwise in float64."""

    kind: str  # ema | power_ema | decay
    settings: Mapping[str, float | str]
    share: Callable[[Tensor, float], Tensor]


def ema(half_life: float) -> Profile:
    """Return the profile of an EMA of every step, bias-corrected from the start of the window.

    A step counts half as much as one that is `half_life` steps younger. The steps a + 1 to b of L count
    (d^(L - b) - d^(L - a)) / (1 - d^L), d = 0.5^(1 / half_life), exactly as `kinds.ema_share` weighs them.
    """
    rate = math.log(2) / half_life

    def share(x: Tensor, length: float) -> Tensor:
        return torch.exp(-(length - x) * rate) * torch.expm1(-x * rate) / math.expm1(-length * rate)

    return Profile("ema", {"half_life": half_life}, share)


def power_ema(width: float, *, exponent: float) -> Profile:
    """Return the profile of a power-function EMA: F = (x / L)^(g + 1), whose standard deviation is `width` L.

    `exponent` is g. Karras et al. 2024 (EDM2, arXiv:2312.02696), section 3.1.
    """
    return Profile("power_ema", {"width": width}, lambda x, length: (x / length) ** (exponent + 1))


DECAYS: Mapping[str, Callable[[Tensor], Tensor]] = {  # 1 - w of the share of the window that is over
    "linear": lambda t: t,
    "cosine": lambda t: (1 - torch.cos(math.pi * t)) / 2,
    "1-sqrt": torch.sqrt,
}


def decay(shape: str) -> Profile:
    """Return the profile of the merge that stands for a decay of this shape over the window."""
    falls = DECAYS[shape]
    return Profile("decay", {"decay": shape}, lambda x, length: falls(x / length))


@dataclass(frozen=True)
class Shares:
    """The weights of n snapshots in an average by a profile; `means` and `raw` sum to 1 together.

    `error_factor` times the distance to the rougher sum is about the error; None where nothing is known of it.
    """

    means: list[float]  # of the running means
    raw: list[float]  # of the raw weights
    rough_means: list[float]
    rough_raw: list[float]
    error_factor: float | None
    mean_age: float  # in steps before the last snapshot


def of_running_means(profile: Profile, points: Sequence[int], *, start: int) -> Shares:
    """Return the weights of snapshots with running means.

    The rougher sum leaves out how the weights moved within each segment. The distance to it is about the error of
    weights that are constant in each segment; what is left of it after the correction is usually less than half.

    Args:
        profile: Over the steps start + 1 to points[-1].
        points: The steps of the snapshots, ascending: the first is at `start`, unless that is 0.
        start: The step before the first one that counts: 0 or the step of a snapshot.
    """
    edges = [0, *points] if start == 0 else list(points)
    length = edges[-1] - start
    n = len(edges)  # an edge at 0 is no snapshot, and its weights are 0
    means, raw, rough, mean_age = [0.0] * n, [0.0] * n, [0.0] * n, 0.0
    for index, (a, b) in enumerate(pairwise(edges)):
        steps = torch.arange(a, b + 1, dtype=torch.float64) - start
        counts = profile.share(steps, length).diff()
        positions = (steps[1:] - 0.5 - (a + b) / 2 + start) / (b - a)  # from -1/2 to 1/2
        mass, moment = float(counts.sum()), float(counts @ positions)
        mean_age += mass * (edges[-1] - (a + b) / 2) - moment * (b - a)
        _add_segment(rough, mass, index, a=a, b=b)
        if a == 0:  # the initial weights are not kept: from the mean in the middle to the raw weights at the end
            _add_segment(means, mass - 2 * moment, index, a=a, b=b)
            raw[index + 1] += 2 * moment
        else:
            _add_segment(means, mass, index, a=a, b=b)
            raw[index] -= moment
            raw[index + 1] += moment
    largest = max(map(abs, means))
    means, raw, rough = (
        [_rounded(weight, largest) for weight in column[n - len(points) :]] for column in (means, raw, rough)
    )
    return Shares(means, raw, rough, [0.0] * len(points), error_factor=1.0, mean_age=mean_age)


def _add_segment(weights: list[float], weight: float, index: int, *, a: int, b: int) -> None:
    """Add the mean of the segment between the edges `index` and `index + 1`: (b M_b - a M_a) / (b - a)."""
    weights[index] -= weight * a / (b - a)
    weights[index + 1] += weight * b / (b - a)


def of_snapshots(profile: Profile, points: Sequence[int], *, start: int) -> Shares:
    """Return the weights of plain snapshots, each of which stands for the steps that are nearest to it.

    The profile of an EMA begins after step `start` and ends with the last snapshot; steps that lie further before the
    first snapshot than the second lies after it are left out. The snapshots of a merge all count as if others lay
    beyond them, so evenly spaced ones are alike in a linear decay, as in WSM. The rougher sum leaves out every second
    snapshot; the error is about half the distance to it, and none where no step lies between two snapshots.
    """
    factor = None if len(points) == 1 else 0.5 if any(b - a > 1 for a, b in pairwise(points)) else 0.0
    every_second = points[::-2][::-1]
    raw, cells = _nearest(profile, points, start=start)
    coarse, _ = _nearest(profile, every_second, start=start)
    rough = dict(zip(every_second, coarse, strict=True))
    nothing, end = [0.0] * len(points), points[-1]
    return Shares(
        nothing,
        [_rounded(weight, max(raw)) for weight in raw],
        nothing,
        [rough.get(point, 0.0) for point in points],
        error_factor=factor,
        mean_age=sum(weight * (end - (a + b) / 2) for weight, (a, b) in zip(raw, pairwise(cells), strict=True)),
    )


def _nearest(profile: Profile, points: Sequence[int], *, start: float) -> tuple[list[float], list[float]]:
    """Return the weights of snapshots, and the edges of the steps that each stands for.

    Step s is the stretch from s - 1 to s, with its middle at s - 1/2: of every step, snapshots are exact.
    """
    if len(points) == 1 and profile.kind != "decay":
        return [1.0], [points[0] - 1.0, float(points[0])]
    borders = [(a + b - 1) / 2 for a, b in pairwise(points)]
    half, last_half = ((b - a) / 2 for a, b in (points[:2], points[-2:])) if borders else (0.5, 0.5)
    if profile.kind == "decay":
        edges = [points[0] - 0.5 - half, *borders, points[-1] - 0.5 + last_half]
        start = edges[0]
    else:
        edges = [max(float(start), points[0] - 2 * half), *borders, float(points[-1])]
    counts = profile.share(torch.tensor(edges, dtype=torch.float64) - start, edges[-1] - start).diff()
    return (counts / counts.sum()).tolist(), edges


def _rounded(weight: float, largest: float) -> float:
    return weight if abs(weight) > NEGLIGIBLE * largest else 0.0


@torch.no_grad()
def weighted_sums(
    sets: Iterable[tuple[State, Sequence[float]]], *, averaged: Collection[str], number: int
) -> list[dict[str, Tensor]]:
    """Return `number` weighted sums of weight sets in float64 (complex128), reading them one after the other.

    Args:
        sets: Each with its weight in every sum.
        averaged: Names of the tensors that are summed.
        number: Of sums.
    """
    sums: list[dict[str, Tensor]] = [{} for _ in range(number)]
    for state, weights in sets:
        for name in averaged:
            value = state[name].to(torch.promote_types(state[name].dtype, torch.float64))
            for kept, weight in zip(sums, weights, strict=True):
                if name not in kept:
                    kept[name] = value * weight
                elif weight:
                    kept[name].add_(value, alpha=weight)
    return sums


def relative_distance(first: State, second: State, *, last: State) -> float | None:
    """Return |first - second| / |last - first| over the tensors of `first`; None where that is nothing over nothing."""
    between = sum(float((value - second[name]).abs().square().sum()) for name, value in first.items())
    away = sum(float((value - last[name]).abs().square().sum()) for name, value in first.items())
    return math.sqrt(between / away) if away else None
