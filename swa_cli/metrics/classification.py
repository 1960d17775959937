"""Classification: a class for each image.

Legend: B batch, K classes, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.metrics.task import MetricValue, Subject, mean_of

ECE_BINS = 15  # as in Guo et al. 2017, On Calibration of Modern Neural Networks


@dataclass(frozen=True)
class SampleScores:
    """What every single sample of a split scored, so that two weight sets can be compared sample by sample."""

    correct: Tensor  # (N,) bool
    top5: Tensor | None  # (N,) bool; None for five classes or fewer
    nll: Tensor  # (N,) float32, nats
    brier: Tensor  # (N,) float32, sum over classes of (p - y)^2
    confidence: Tensor  # (N,) float32, probability of the predicted class

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the scores."""
        return tuple(_METRICS)

    def __len__(self) -> int:
        return len(self.correct)

    def metric(self, key: str) -> MetricValue:
        """A score, with `accuracy_se = sqrt(p(1-p)/n)`; ECE over 15 bins. ECE, top-5 and Brier come without error."""
        return _METRICS[key](self)


def _accuracy(scores: SampleScores) -> MetricValue:
    correct = scores.correct.double()
    value = float(correct.mean())
    return MetricValue(value, correct, math.sqrt(value * (1 - value) / len(correct)))


def _top5(scores: SampleScores) -> MetricValue:
    return MetricValue(None if scores.top5 is None else float(scores.top5.double().mean()))


def _calibration_error(scores: SampleScores) -> MetricValue:
    """Sum over bins of equal width of |correct - confidence|, over N (Guo et al. 2017, equation 5).

    By hand: importing torchmetrics takes 3 s and 250 MB, more than many a run.
    """
    confidence = scores.confidence.double()
    edges = torch.linspace(0, 1, ECE_BINS + 1, dtype=torch.float64)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, ECE_BINS - 1)
    gaps = torch.zeros(ECE_BINS, dtype=torch.float64).index_add_(0, bins, scores.correct.double() - confidence)
    return MetricValue(float(gaps.abs().sum()) / len(confidence))


_METRICS: dict[str, Callable[[SampleScores], MetricValue]] = {  # in the order of JSON
    "accuracy": _accuracy,
    "top5": _top5,
    "nll": lambda scores: mean_of(scores.nll),
    "ece": _calibration_error,
    "brier": lambda scores: MetricValue(float(scores.brier.double().mean())),
}


def loss(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of a batch in float32 whatever the autocast: logits (B, K), labels (B,) or their mixtures."""
    try:
        return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    except IndexError as error:
        raise UserError(
            f"the dataset gives the label {int(labels.max())} for {logits.shape[1]} classes",
            hint=f"let labels be 0 to {logits.shape[1] - 1}, or correct num_classes",
        ) from error


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Which fraction of a batch is right, as a tensor on the device: no host sync.

    Of mixed classes (B, K) that is the share of the one predicted.
    """
    predicted = logits.argmax(dim=1)
    if labels.is_floating_point():
        return labels.gather(1, predicted[:, None]).mean()
    return (predicted == labels).sum() / len(labels)


def predict(logits: Tensor) -> Tensor:
    """(B, K) in float32, of logits."""
    return logits.float().softmax(1)


def score_outputs(logits: Tensor, labels: Tensor) -> SampleScores:
    """Scores of each sample of a batch: logits (B, K), labels (B,)."""
    log_p = F.log_softmax(logits.float(), dim=1)
    return _scores(log_p.exp(), log_p, labels)


def score_predictions(probabilities: Tensor, labels: Tensor) -> SampleScores:
    """Scores of each sample from probabilities (B, K), as of several weight sets together; labels (B,).

    In float32 or better. The logarithm is that of the smallest number where a probability is 0: the NLL stays finite.
    """
    p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    return _scores(p, p.clamp_min(torch.finfo(p.dtype).tiny).log(), labels)


def _scores(p: Tensor, log_p: Tensor, labels: Tensor) -> SampleScores:
    """Of probabilities and their logarithms, both (B, K)."""
    nll = F.nll_loss(log_p, labels, reduction="none")
    confidence, predicted = p.max(dim=1)
    p_label = p.gather(1, labels[:, None])[:, 0]
    brier = p.square().sum(dim=1) - 2 * p_label + 1  # sum (p - y)^2 with y one-hot
    top5 = None
    if p.shape[1] > 5:
        top5 = (log_p.topk(5, dim=1).indices == labels[:, None]).any(dim=1)
    return SampleScores(predicted == labels, top5, nll, brier, confidence)


def check(logits: Any, labels: Any, *, subject: Subject) -> None:
    """Refuse what is no classification: logits (B, K), labels (B,)."""
    subject.require_shape(logits, (subject.num_outputs,), cure="let the network return one logit a class")
