"""Averages of saved weight sets: their mean, a window between two running means, a greedy soup, a search.

One idea: what is averaged is mappings of names to tensors, what is chosen are numbers, and the caller's `score`
alone decides among them: no files, no data, no network. Means are float64 sums by name; what is not averaged
(BatchNorm statistics, counters) is the last set's, as in `average.py`.

n: weight sets of a run, in the order of time; (first, last): a window of them, both included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from swa_cli.averaging.model_state import require_same_shapes, shapes
from swa_cli.errors import UserError

State = Mapping[str, Tensor]


@torch.no_grad()
def mean(
    sets: Iterable[State], *, averaged: Collection[str], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """The mean of weight sets, sum w x / sum w, read one after the other.

    Args:
        sets: Complete state dicts of one architecture.
        averaged: Names of the parameters; the rest comes from the last set.
        weights: One a set, not negative and not all 0; left out, all sets count the same.

    Returns:
        What is averaged in float64 (complex128), the rest as it is.

    Raises:
        UserError: A set of another architecture, or none at all.
    """
    kept: dict[str, Tensor] = {}
    total, last, expected = 0.0, None, None
    for index, last in enumerate(sets):
        expected = expected or shapes(last)
        require_same_shapes(shapes(last), expected, what=f"weight set {index + 1}")
        weight = 1.0 if weights is None else weights[index]
        total += weight
        for name in averaged if weight else ():
            value = last[name].to(_wide(last[name]))
            # As a step towards the new value: equal sets come out bit-exact.
            kept[name] = kept[name].lerp_(value, weight / total) if name in kept else value.clone()
    if last is None or total == 0:
        raise UserError("there are no weights to average", hint="name one weight set or more")
    return {name: kept.get(name, value) for name, value in last.items()}


@torch.no_grad()
def between(earlier: State, later: State, *, num_earlier: int, num_later: int) -> dict[str, Tensor]:
    """The mean of what came after `earlier`, from two running means of one run since its beginning.

    m = (n_b m_b - n_a m_a) / (n_b - n_a), written as m_b + (m_b - m_a) n_a / (n_b - n_a).

    Args:
        earlier: Mean of the first `num_earlier` weights, in float64; not looked at if that is 0.
        later: Mean of the first `num_later`.
        num_earlier: n_a, at least 0.
        num_later: n_b, above n_a.
    """
    assert 0 <= num_earlier < num_later, "the window has to hold something"
    if num_earlier == 0:
        return {name: value.clone() for name, value in later.items()}
    share = num_earlier / (num_later - num_earlier)
    return {name: value + (value - earlier[name]) * share for name, value in later.items()}


def greedy(order: Iterable[int], score: Callable[[list[int]], float]) -> list[int]:
    """The greedy soup (Wortsman et al. 2022, Model soups, Recipe 1).

    Args:
        order: The sets, best first.
        score: Of the mean of these sets; more is better.

    Returns:
        The sets of the soup: each was added because with it the score did not fall.
    """
    soup: list[int] = []
    best = -math.inf
    for candidate in order:
        value = score([*soup, candidate])
        if value >= best or not soup:
            soup, best = [*soup, candidate], value
    return soup


def search(n: int, score: Callable[[int, int], float], *, budget: int) -> tuple[int, int]:
    """The window (first, last) of the lowest score that few trials find.

    Windows up to the end of the run come first, of n, n/2, n/4, ... sets (five at most): the score is flat where
    many are averaged. Then the middle of the wider gap beside the best is tried, again and again; once it has no
    gap, the same is done for the end. Exact for a score with one minimum and a budget that lets the gaps close.

    Args:
        n: Weight sets, at least 1.
        score: Of the window (first, last), both included; less is better, nan is the worst.
        budget: How often `score` may be called, at least 1.
    """
    starts: dict[int, float] = {}
    for halving in range(min(COARSE, budget)):
        first = n - max(n >> halving, 1)
        if first not in starts:
            starts[first] = _or_worst(score(first, n - 1))
    _narrow(starts, lambda first: score(first, n - 1), low=0, high=n - 1, budget=budget)
    first = min(starts, key=starts.__getitem__)
    ends = {n - 1: starts[first]}
    _narrow(ends, lambda last: score(first, last), low=first, high=n - 1, budget=budget - len(starts) + 1)
    return first, min(ends, key=ends.__getitem__)


COARSE = 5  # windows before the search narrows: of n to n/16 sets


def _narrow(tried: dict[int, float], score: Callable[[int], float], *, low: int, high: int, budget: int) -> None:
    """Try the middle of the wider gap beside the best point, while there is a gap and `tried` is below `budget`."""
    while len(tried) < budget:
        best = min(tried, key=tried.__getitem__)
        left = max((point for point in tried if point < best), default=low - 1)
        right = min((point for point in tried if point > best), default=high + 1)
        if max(best - left, right - best) < 2:
            return
        probe = (left + best) // 2 if best - left >= right - best else (best + right) // 2
        tried[probe] = _or_worst(score(probe))


def _or_worst(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float64)
