"""The shapes of a learning rate: pure functions of plain numbers, each with its source.

The one idea: every curve is a convex combination of two rates, so it meets both of them exactly at its ends.
`step` counts optimizer updates from 0, `epoch` from 0 as the paper's code does; `position` runs from 0 to 1.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

ONE_CYCLE_END = 1e-4  # torch's final_div_factor


def linear(position: float, *, first: float, last: float) -> float:
    """Straight from `first` at position 0 to `last` at position 1."""
    return first * (1 - position) + last * position


def cosine(position: float, *, first: float, last: float) -> float:
    """Half a cosine from `first` at position 0 to `last` at position 1 (Loshchilov and Hutter 2017)."""
    return linear((1 - math.cos(math.pi * position)) / 2, first=first, last=last)


def cosine_restarts(step: int, *, boundaries: Sequence[int], lr: float, final_lr: float) -> float:
    """A cosine from `lr` to `final_lr` in each cycle, `boundaries[k] <= step < boundaries[k + 1]`.

    With final_lr 0 and cycles of ceil(T/M) steps: the snapshot ensembles of Huang et al. 2017.
    """
    _, position = _segment(step, boundaries)
    return cosine(position, first=lr, last=final_lr)


def cyclic(
    step: int, *, turns: Sequence[int], base_lr: float, max_lr: float, begin: str, mode: str, gamma: float
) -> float:
    """Straight lines between `base_lr` and `max_lr` that turn at `turns` (Smith 2017).

    A cycle counts from minimum to minimum: triangular2 halves its height each cycle, exp_range multiplies it
    by gamma^(steps since the cycles began). `begin="max"` goes down first, as FGE does (Garipov et al. 2018).
    """
    segment, position = _segment(step, turns)
    segment += begin == "max"  # as if a rise had gone before
    height = position if segment % 2 == 0 else 1 - position
    if mode == "triangular2":
        height *= 0.5 ** (segment // 2)
    elif mode == "exp_range":
        height *= gamma ** (step - turns[0])
    return linear(height, first=base_lr, last=max_lr)


def multistep(step: int, *, drops: Sequence[int], lr: float, factor: float) -> float:
    """`lr`, times `factor` from each of the sorted points `drops` on."""
    return lr * factor ** bisect_right(drops, step)


def one_cycle(step: int, *, steps: int, peak: float, lr: float, max_lr: float) -> float:
    """Cosine from `lr` up to `max_lr`, then down to lr/10,000 (Smith and Topin 2018).

    As torch's OneCycleLR with pct_start = peak/steps: the peak is step `peak - 1`, the end step `steps - 1`.
    """
    top = peak - 1
    if step < top:
        return cosine(step / top, first=lr, last=max_lr)
    position = (step - top) / (steps - peak) if step < steps else 1.0
    return cosine(position, first=max_lr, last=lr * ONE_CYCLE_END)


def swa_paper(epoch: int, *, start: float, lr: float, final_lr: float) -> float:
    """Rate of a whole epoch, counted from 0, in the code of Izmailov et al. 2018.

    `lr` for the first half of the `start` epochs, `final_lr` from nine tenths on, a straight line between.
    """
    position = (epoch / start - 0.5) / 0.4
    return linear(min(1.0, max(0.0, position)), first=lr, last=final_lr)


def _segment(step: int, bounds: Sequence[int]) -> tuple[int, float]:
    """Which piece a step is in, and how far along it, in [0, 1)."""
    piece = bisect_right(bounds, step) - 1
    return piece, (step - bounds[piece]) / (bounds[piece + 1] - bounds[piece])
