"""Scores of each class: precision, recall, F1, AUROC or average precision and their means over classes, with errors.

`CLASS_METRICS` is the table of a classification, `LABEL_METRICS` that of samples with several labels. Standard errors
are in closed form, nothing is drawn:

- recall and precision: binomial, sqrt(p (1 - p) / n) for n samples of the class, or predicted as it;
- F1: the delta method on the multinomial counts of the confusion matrix (Takahashi et al. 2022, Applied Intelligence
  52, 4961, equations 6 to 9), by the influence of each cell on the ratio 2 TP / (support + predicted);
- AUROC of a class against all others: DeLong, DeLong and Clarke-Pearson 1988, by sorting, as Sun and Xu 2014;
- average precision: the jackknife over samples, see `average_precision`; that of a class of one sample is unknown;
- a mean over classes: the influences of a sample on all classes are added up first, as the classes share samples.

A score that is not defined (precision of a class that is never predicted, recall of one without samples) is None, and
counts in no mean. Balanced accuracy is the mean recall. Legend: N samples, K classes, C the confusion matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swa_cli.metrics.average_precision import average_precision
from swa_cli.metrics.metric import THRESHOLD


@dataclass(frozen=True)
class Outcomes:
    """What was predicted for some samples, and what they are."""

    p: Tensor  # (N, K) probabilities
    labels: Tensor  # (N,) int64

    @property
    def metrics(self) -> Sequence[ClassMetric]:
        """What is computed of each class."""
        return CLASS_METRICS

    @property
    def support(self) -> Tensor:
        """The number of samples (K,) of each class."""
        return self.confusion.sum(1)

    @property
    def predicted(self) -> Tensor:
        """The number of samples (K,) that are predicted as each class."""
        return self.confusion.sum(0)

    @property
    def confusion(self) -> Tensor:
        """C (K, K) float64: row true class, column predicted class."""
        number = self.p.shape[1]
        return (
            torch.bincount(self.labels * number + self.p.argmax(1), minlength=number**2).view(number, number).double()
        )


@dataclass(frozen=True)
class LabelOutcomes:
    """What was predicted for some samples that have several labels each, and what they are."""

    p: Tensor  # (N, K) probabilities
    labels: Tensor  # (N, K) of 0 and 1

    @property
    def metrics(self) -> Sequence[ClassMetric]:
        """What is computed of each class."""
        return LABEL_METRICS

    @property
    def positive(self) -> Tensor:
        """(N, K) bool: the labels that are there."""
        return self.labels > 0.5

    @property
    def predicted_labels(self) -> Tensor:
        """(N, K) bool: the labels that are predicted."""
        return self.p > THRESHOLD

    @property
    def support(self) -> Tensor:
        """The number of samples (K,) of each class."""
        return self.positive.sum(0)

    @property
    def predicted(self) -> Tensor:
        """The number of samples (K,) that are predicted to have each class."""
        return self.predicted_labels.sum(0)


OUTCOMES: Mapping[str, type[Outcomes | LabelOutcomes]] = {"classification": Outcomes, "multilabel": LabelOutcomes}


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
    compute: Callable[[Any], ClassValues]  # of outcomes


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


def _label_precision(outcomes: LabelOutcomes) -> ClassValues:
    predicted = outcomes.predicted_labels
    return _ratio(predicted & outcomes.positive, predicted)


def _label_recall(outcomes: LabelOutcomes) -> ClassValues:
    return _ratio(outcomes.predicted_labels & outcomes.positive, outcomes.positive)


def _label_f1(outcomes: LabelOutcomes) -> ClassValues:
    predicted, positive = outcomes.predicted_labels, outcomes.positive
    return _ratio(2.0 * (predicted & positive), predicted.double() + positive)  # whole: 2 TP + FP + FN


def _ratio(part: Tensor, whole: Tensor) -> ClassValues:
    """Return sum(part) / sum(whole) of each class, both (N, K); errors by the delta method are binomial for a share."""
    part, whole = part.double(), whole.double()
    total = whole.sum(0)
    each = part.sum(0) / total
    return _of_influences(each, (part - each * whole) / total)


def _average_precision(outcomes: LabelOutcomes) -> ClassValues:
    num_samples = len(outcomes.p)
    found = [
        average_precision(scores.contiguous(), positive)
        for scores, positive in zip(outcomes.p.T, outcomes.positive.T, strict=True)
    ]
    left_out = torch.stack([values for _, values in found], dim=1)  # (N, K)
    factor = (num_samples - 1) / math.sqrt(max(num_samples * (num_samples - 1), 1))  # of jackknife pseudo-values
    each = torch.tensor([value for value, _ in found], dtype=torch.float64)
    means = left_out.nanmean(1)  # without the only sample of a class, over the others
    influence = factor * torch.cat([left_out.mean(0) - left_out, (means.mean() - means)[:, None]], dim=1)
    *errors, mean_error = influence.square().sum(0).sqrt()
    return ClassValues(each, torch.stack(errors), float(mean_error))


def _of_influences(each: Tensor, influence: Tensor) -> ClassValues:
    """Return scores (K,) with the errors that follow from the influence (N, K) of each sample on each of them."""
    influence = influence.nan_to_num()
    errors = influence.square().sum(0).sqrt().where(~each.isnan(), math.nan)
    return ClassValues(each, errors, float(influence.sum(1).square().sum().sqrt()) / _num_defined(each))


def _num_defined(each: Tensor) -> int:
    return int((~each.isnan()).sum()) or 1


CLASS_METRICS = (
    ClassMetric("precision", "precision", "macro_precision", "macro precision", _precision),
    ClassMetric("recall", "recall", "balanced_accuracy", "balanced accuracy", _recall),
    ClassMetric("f1", "F1", "macro_f1", "macro F1", _f1),
    ClassMetric("auroc", "AUROC", "macro_auroc", "macro AUROC", _auroc),
)


LABEL_METRICS = (
    ClassMetric("precision", "precision", "macro_precision", "macro precision", _label_precision),
    ClassMetric("recall", "recall", "macro_recall", "macro recall", _label_recall),
    ClassMetric("f1", "F1", "macro_f1", "macro F1", _label_f1),
    ClassMetric("ap", "AP", "map", "mAP", _average_precision),
)


def class_scores(
    outcomes: Outcomes | LabelOutcomes, *, names: Sequence[str], advance: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the scores as JSON has them: `classes`, a row each, and the means over them, all with `_se`.

    Args:
        outcomes: Of all samples of a split.
        names: Of the K classes.
        advance: Called after each of the metrics.
    """
    counts = zip(names, outcomes.support.tolist(), outcomes.predicted.tolist(), strict=True)
    rows: list[dict[str, Any]] = [
        {"class": name, "support": int(support), "predicted": int(predicted)} for name, support, predicted in counts
    ]
    means: dict[str, float | None] = {}
    for metric in outcomes.metrics:
        found = metric.compute(outcomes)
        for row, value, error in zip(rows, found.each.tolist(), found.errors.tolist(), strict=True):
            row |= {metric.key: _or_none(value), f"{metric.key}_se": _or_none(error)}
        is_defined = not math.isnan(found.mean)
        means |= {
            metric.mean_key: _or_none(found.mean),
            f"{metric.mean_key}_se": _or_none(found.mean_error) if is_defined else None,
        }
        advance()
    return {"classes": rows, **means}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
