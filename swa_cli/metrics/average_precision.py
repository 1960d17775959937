"""Average precision, and what it would be without each sample.

The precision at the score of each sample that has the class, averaged over these samples: the sum over thresholds of
(R_n - R_(n-1)) P_n, as in scikit-learn, without interpolation. Samples of equal scores are one threshold. Without a
sample, every threshold at or below its score has one sample fewer, so running sums over the sorted thresholds give the
values of all samples: O(N log N), not N times as much. Legend: N samples, K classes, G different scores.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from swa_cli.metrics.metric import MetricValue, jackknife, undefined


def average_precision(scores: Tensor, positive: Tensor) -> tuple[float, Tensor]:
    """Return the average precision of a class, and (N,) float64 what it is without each sample.

    It is NaN where no sample has the class.

    Args:
        scores: (N,), the higher the more probable.
        positive: (N,) bool, the samples that have the class.
    """
    found, has_class = scores.numpy(), positive.numpy()
    order = np.argsort(-found)  # numpy sorts ten times as fast as torch
    ordered = found[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # (G,) of each threshold
    sizes = np.diff(np.r_[starts, len(ordered)])
    hits = np.add.reduceat(has_class[order].astype(np.float64), starts)  # of each threshold
    above, hits_above = sizes.cumsum(), hits.cumsum()  # at each threshold and above
    number = hits_above[-1]
    terms = hits * hits_above / above
    before = terms.cumsum() - terms
    others = np.maximum(above - 1, 1)  # where it is 0, there is no other sample, and the terms below are 0
    without_negative = before + _and_below(hits * hits_above / others)
    hit = (hits_above - 1) / others
    without_positive = before + _and_below(hits * hit) - hit
    with np.errstate(divide="ignore", invalid="ignore"):
        of_negative, of_positive = without_negative / number, without_positive / (number - 1)
        value = float(terms.sum() / number)
    of_positive = of_positive if number > 1 else np.full_like(of_positive, np.nan)
    group = np.repeat(np.arange(len(sizes)), sizes)
    left_out = np.empty(len(found))
    left_out[order] = np.where(has_class[order], of_positive[group], of_negative[group])
    return value, torch.from_numpy(left_out)


def _and_below(values: np.ndarray) -> np.ndarray:
    """Return the sum of each value and of those behind it."""
    return values[::-1].cumsum()[::-1]


def mean_average_precision(p: Tensor, positive: Tensor) -> MetricValue:
    """Return the mean average precision over the classes that some sample has, with its jackknife error.

    Without the only sample of a class, the mean is over the others.

    Args:
        p: (N, K) probabilities.
        positive: (N, K) bool.
    """
    value, number = 0.0, 0
    total, defined = (torch.zeros(len(p), dtype=torch.float64) for _ in range(2))
    for scores, has_class in zip(p.T, positive.T, strict=True):
        if not bool(has_class.any()):
            continue
        each, left_out = average_precision(scores.contiguous(), has_class)
        value, number = value + each, number + 1
        total += left_out.nan_to_num()
        defined += ~left_out.isnan()
    if not number:
        return undefined(len(p))
    return jackknife(value / number, total / defined)
