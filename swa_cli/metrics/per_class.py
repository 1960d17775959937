"""Scores of each class of a classification: precision, recall, F1, AUROC and their means over classes, with errors.

`CLASS_METRICS` is the table. Standard errors are in closed form, nothing is drawn:

- recall and precision: binomial, sqrt(p (1 - p) / n) for n samples of the class, or predicted as it;
- F1: the delta method on the multinomial counts of the confusion matrix (Takahashi et al. 2022, Applied Intelligence
  52, 4961, equations 6 to 9), by the influence of each cell on the ratio 2 TP / (support + predicted);
- AUROC of a class against all others: DeLong, DeLong and Clarke-Pearson 1988, by sorting, as Sun and Xu 2014;
- a mean over classes: the influences of a sample on all classes are added up first, as the classes share samples.

A score that is not defined (precision of a class that is never predicted, recall of one without samples) is None, and
counts in no mean. Balanced accuracy is the mean recall. Legend: N samples, K classes, C the confusion matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcomes:
    """What was predicted for some samples, and what they are."""

    p: Tensor  # (N, K) probabilities
    labels: Tensor  # (N,) int64

    @property
    def confusion(self) -> Tensor:
        """C (K, K) float64: row true class, column predicted class."""
        number = self.p.shape[1]
        return (
            torch.bincount(self.labels * number + self.p.argmax(1), minlength=number**2).view(number, number).double()
        )


@dataclass(frozen=True)
class ClassValues:
    """A score of each class, NaN where it is not defined, with the mean of the others; all in float64."""

    each: Tensor  # (K,)
    errors: Tensor  # (K,)
    mean_error: float

    @property
    def mean(self) -> float:
        """The mean over the classes that have the score; NaN without any."""
        return float(self.each.nanmean())


@dataclass(frozen=True)
class ClassMetric:
    """A score of each class: its key in JSON and its name in tables, and those of its mean over classes."""

    key: str
    name: str
    mean_key: str
    mean_name: str
    compute: Callable[[Outcomes], ClassValues]


def _precision(outcomes: Outcomes) -> ClassValues:
    return _share(outcomes.confusion.T)


def _recall(outcomes: Outcomes) -> ClassValues:
    return _share(outcomes.confusion)


def _share(counts: Tensor) -> ClassValues:
    """Return the share of the diagonal in each row of counts (K, K), with its binomial error."""
    number = counts.sum(1)
    each = counts.diagonal() / number
    errors = (each * (1 - each) / number).sqrt()
    mean_error = float(errors.square().nansum().sqrt()) / _num_defined(each)  # rows share no sample
    return ClassValues(each, errors, mean_error)


def _f1(outcomes: Outcomes) -> ClassValues:
    counts = outcomes.confusion
    right, whole = counts.diagonal(), counts.sum(0) + counts.sum(1)  # 2 TP + FP + FN
    each = 2 * right / whole
    errors = (right * (2 - 2 * each).square() + (whole - 2 * right) * each.square()).sqrt() / whole
    # A sample in cell (a, b) moves 2 TP / whole by -F / whole of both classes, and by 2 / whole if a = b.
    loss = (each / whole).nan_to_num()
    influence = -loss[:, None] - loss[None, :] + torch.diag((2 / whole).nan_to_num(posinf=0))
    return ClassValues(each, errors, float((counts * influence.square()).sum().sqrt()) / _num_defined(each))


def _auroc(outcomes: Outcomes) -> ClassValues:
    num_samples, num_classes = outcomes.p.shape
    each, errors = (torch.full((num_classes,), math.nan, dtype=torch.float64) for _ in range(2))
    total = torch.zeros(num_samples, dtype=torch.float64)
    for number in range(num_classes):
        is_class, scores = outcomes.labels == number, outcomes.p[:, number].contiguous()
        inside, outside = int(is_class.sum()), int((~is_class).sum())
        if not (inside and outside):
            continue
        below = _share_below(scores[is_class], among=scores[~is_class])
        above = 1 - _share_below(scores[~is_class], among=scores[is_class])
        each[number] = area = below.mean()
        influence = torch.empty_like(total)
        influence[is_class] = (below - area) / math.sqrt(inside * max(inside - 1, 1))
        influence[~is_class] = (above - area) / math.sqrt(outside * max(outside - 1, 1))
        errors[number] = influence.square().sum().sqrt()
        total += influence
    return ClassValues(each, errors, float(total.square().sum().sqrt()) / _num_defined(each))


def _share_below(values: Tensor, *, among: Tensor) -> Tensor:
    """Return for each of the values (n,) the share of the others that are lower; equal ones count half."""
    ordered = np.sort(among.numpy())  # numpy sorts ten times as fast as torch
    lower, upper = (np.searchsorted(ordered, values.numpy(), side=side) for side in ("left", "right"))
    return torch.from_numpy(lower + upper).double() / (2 * len(among))


def _num_defined(each: Tensor) -> int:
    return int((~each.isnan()).sum()) or 1


CLASS_METRICS = (
    ClassMetric("precision", "precision", "macro_precision", "macro precision", _precision),
    ClassMetric("recall", "recall", "balanced_accuracy", "balanced accuracy", _recall),
    ClassMetric("f1", "F1", "macro_f1", "macro F1", _f1),
    ClassMetric("auroc", "AUROC", "macro_auroc", "macro AUROC", _auroc),
)


def class_scores(
    outcomes: Outcomes, *, names: Sequence[str], advance: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the scores as JSON has them: `classes`, a row each, and the means over them, all with `_se`.

    Args:
        outcomes: Of all samples of a split.
        names: Of the K classes.
        advance: Called after each of `CLASS_METRICS`.
    """
    counts = outcomes.confusion
    rows: list[dict[str, Any]] = [
        {"class": name, "support": int(counts[number].sum()), "predicted": int(counts[:, number].sum())}
        for number, name in enumerate(names)
    ]
    means: dict[str, float | None] = {}
    for metric in CLASS_METRICS:
        found = metric.compute(outcomes)
        for row, value, error in zip(rows, found.each.tolist(), found.errors.tolist(), strict=True):
            row |= {metric.key: _or_none(value), f"{metric.key}_se": _or_none(error)}
        is_defined = not math.isnan(found.mean)
        means |= {
            metric.mean_key: _or_none(found.mean),
            f"{metric.mean_key}_se": found.mean_error if is_defined else None,
        }
        advance()
    return {"classes": rows, **means}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
