"""Averages of saved weight sets: mean, window, greedy soup, Model Stock, search.

One idea: sets are mappings of names to tensors and are chosen by their indices; the caller's `score` alone decides
among them, so there are no files, data or networks here. Means are computed in float64 by name; tensors that are not
averaged (BatchNorm statistics, counters) come from the last set, as in `average.py`.

n: weight sets of a run, in the order of time; (first, last): a window of them, both included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swa_cli.averaging.model_state import require_same_shapes, shapes
from swa_cli.errors import UserError

State = Mapping[str, Tensor]
COARSE = 5  # windows before the search narrows: of n to n/16 sets


@torch.no_grad()
def mean(
    sets: Iterable[State], *, averaged: Collection[str], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return the mean of weight sets, sum w x / sum w, reading them one after the other.

    Args:
        sets: Complete state dicts of one architecture.
        averaged: Names of the parameters; the other tensors come from the last set.
        weights: One per set, not negative and not all 0; by default all sets count the same.

    Returns:
        The averaged tensors in float64 (complex128), the others as they are.

    Raises:
        UserError: A set is of another architecture, or there are no weights.
    """
    kept: dict[str, Tensor] = {}
    total, last, expected = 0.0, None, None
    for index, last in enumerate(sets):
        expected = expected or shapes(last)
        require_same_shapes(shapes(last), expected, what=f"weight set {index + 1}")
        weight = 1.0 if weights is None else weights[index]
        total += weight
        for name in averaged if weight else ():
            value = last[name].to(torch.promote_types(last[name].dtype, torch.float64))
            # As a step towards the new value: equal sets come out bit-exact.
            kept[name] = kept[name].lerp_(value, weight / total) if name in kept else value.clone()
    if last is None or total == 0:
        raise UserError("there are no weights to average", hint="name one weight set or more")
    return {name: kept.get(name, value) for name, value in last.items()}


@torch.no_grad()
def between(earlier: State, later: State, *, num_earlier: int, num_later: int) -> dict[str, Tensor]:
    """Return the mean of the weights after `earlier`, from two running means since the beginning of a run.

    m = (n_b m_b - n_a m_a) / (n_b - n_a), written as m_b + (m_b - m_a) n_a / (n_b - n_a).

    Args:
        earlier: Mean of the first `num_earlier` weights, in float64; not used if that is 0.
        later: Mean of the first `num_later` weights.
        num_earlier: n_a, at least 0.
        num_later: n_b, above n_a.
    """
    assert 0 <= num_earlier < num_later, "the window is empty"
    if num_earlier == 0:
        return {name: value.clone() for name, value in later.items()}
    share = num_earlier / (num_later - num_earlier)
    return {name: value + (value - earlier[name]) * share for name, value in later.items()}


def greedy(order: Iterable[int], score: Callable[[list[int]], float]) -> list[int]:
    """Choose the sets of a greedy soup: each is added if the score does not fall with it.

    Wortsman et al. 2022, Model soups (arXiv:2203.05482), Recipe 1.

    Args:
        order: The sets, best first.
        score: Scores the mean of these sets; higher is better.
    """
    soup: list[int] = []
    best = -math.inf
    for candidate in order:
        value = score([*soup, candidate])
        if value >= best or not soup:
            soup, best = [*soup, candidate], value
    return soup


@dataclass(frozen=True)
class Ratio:
    """Where Model Stock puts a tensor: at w0 + t (mean - w0); t follows from the cosine."""

    t: float
    cosine: float


@torch.no_grad()
def model_stock(
    pretrained: State,
    sets: Sequence[State],
    *,
    averaged: Collection[str],
    advance: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Tensor], dict[str, Ratio]]:
    """Put each tensor between pretrained weights w0 and the mean of N fine-tuned ones: w0 + t (mean - w0).

    t = N c / (1 + (N - 1) c), Jang, Yun, Han 2024, Model Stock (arXiv:2403.19522), where c is the cosine of the angle
    between two differences w_i - w0. The paper has one angle for all pairs; here, as in mergekit, c is the mean of the
    cosines of all pairs of a tensor. A negative c gives t = 0: the result never lies beyond w0.

    Args:
        pretrained: w0; averaged tensors that it lacks, such as those of a new head, become the uniform mean.
        sets: The N >= 2 complete state dicts.
        averaged: Names of the parameters; the other tensors come from the last set.
        advance: Called after each set, and then after each averaged tensor.

    Returns:
        The averaged tensors in float64 (complex128), the others as they are; and the ratio of each tensor of w0 that
        a set has moved. A tensor that none has moved stays as it is.

    Raises:
        UserError: A set is of another architecture.
    """

    def read() -> Iterator[State]:
        for one in sets:
            yield one
            advance()

    state, ratios = mean(read(), averaged=averaged), dict[str, Ratio]()
    for name in averaged:
        advance()
        if name not in pretrained:
            continue
        origin = pretrained[name].to(state[name].device, state[name].dtype)
        moves = torch.stack([(one[name].to(origin.dtype) - origin).flatten() for one in sets])  # (N, ...)
        if not moves.any():
            continue
        ratios[name] = ratio = _ratio(torch.view_as_real(moves).flatten(1) if moves.is_complex() else moves)
        state[name] = origin.lerp(state[name], ratio.t)
    return state, ratios


def _ratio(moves: Tensor) -> Ratio:
    """Return the ratio of a tensor with differences (N, P) to w0; a set that did not move has cosine 0 to all."""
    n = len(moves)
    directions = moves / moves.norm(dim=1, keepdim=True).clamp(min=torch.finfo(moves.dtype).tiny)
    cosines = directions @ directions.T
    cosine = float(cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1))
    known = max(cosine, 0.0)
    return Ratio(n * known / (1 + (n - 1) * known), cosine)


def search(
    n: int, score: Callable[[str, int, int], float], *, lengths: Mapping[str, float], budget: int
) -> tuple[str, int, int]:
    """Search the shape and the window (first, last) of the lowest score with few trials.

    Windows of the first shape up to the end of the run come first, of n, n/2, n/4, ... sets (at most five): the score
    is flat where many sets are averaged. Half of the trials go to this shape. Then each other shape is tried at the
    length that gives the weights the same mean age as the best one so far. With the best of all, the search tries the
    middle of the wider gap beside the best start until there is no gap, and then does the same for the end. For one
    shape it is exact where the score has one minimum and the budget closes the gaps.

    Args:
        n: Weight sets, at least 1.
        score: Scores a shape over the window (first, last), both included; lower is better, nan is the worst.
        lengths: Shape to the length of its window at which the mean age of the weights is that of the first shape, in
            lengths of the first shape's window.
        budget: How often `score` may be called, at least 1.
    """
    usual, *others = lengths
    tried: dict[str, dict[int, float]] = {shape: {} for shape in lengths}
    spent = 0

    def try_out(shape: str, first: int, last: int = n - 1) -> float:
        nonlocal spent
        spent += 1
        return _or_worst(score(shape, first, last))

    for halving in range(min(COARSE, budget)):
        first = n - max(n >> halving, 1)
        if first not in tried[usual]:
            tried[usual][first] = try_out(usual, first)
    _narrow(tried[usual], lambda first: try_out(usual, first), low=0, high=n - 1, number=(budget + 1) // 2 - spent)
    length = n - min(tried[usual], key=tried[usual].__getitem__)
    for shape in others[: budget - spent]:
        first = n - min(max(round(length * lengths[shape]), 1), n)
        tried[shape][first] = try_out(shape, first)
    best = min((shape for shape in lengths if tried[shape]), key=lambda shape: min(tried[shape].values()))
    starts = tried[best]
    _narrow(starts, lambda first: try_out(best, first), low=0, high=n - 1, number=budget - spent)
    first = min(starts, key=starts.__getitem__)
    ends = {n - 1: starts[first]}
    _narrow(ends, lambda last: try_out(best, first, last), low=first, high=n - 1, number=budget - spent)
    return best, first, min(ends, key=ends.__getitem__)


def _narrow(tried: dict[int, float], score: Callable[[int], float], *, low: int, high: int, number: int) -> None:
    """Try the middle of the wider gap beside the best point, until there is no gap or after `number` trials."""
    for _ in range(number):
        best = min(tried, key=tried.__getitem__)
        left = max((point for point in tried if point < best), default=low - 1)
        right = min((point for point in tried if point > best), default=high + 1)
        if max(best - left, right - best) < 2:
            return
        probe = (left + best) // 2 if best - left >= right - best else (best + right) // 2
        tried[probe] = _or_worst(score(probe))


def _or_worst(value: float) -> float:
    return math.inf if math.isnan(value) else value
