"""Classification with several labels, or none, per sample: loss, predictions and scores of each class by itself.

Each class has a sigmoid, and a sample has the labels whose probability is above 0.5. Mean average precision is the mean
over the classes that some sample has, F1 over those that some sample has or is predicted to have. The NLL of a sample
is the mean binary cross-entropy of its K labels. `losses.multilabel_loss` is what is trained.
Legend: B batch, K classes, N samples.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swa_cli.metrics.metric import MULTILABEL, THRESHOLD, SampleScores
from swa_cli.metrics.task import Subject


def predict(logits: Tensor) -> Tensor:
    """Return probabilities (B, K) in float32, to the bit those that `score_outputs` scores."""
    return logits.float().sigmoid()


def label_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of the labels of a batch that is correct, as a tensor on the device: no host sync.

    Of mixed labels, one counts with the share of the prediction.
    """
    return 1 - ((predict(logits) > THRESHOLD).float() - labels).abs().mean()


def score_outputs(logits: Tensor, labels: Tensor) -> SampleScores:
    """Return the scores of each sample of a batch: logits (B, K), labels (B, K) of 0 and 1."""
    nll = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return _scores(predict(logits), nll, labels)


def score_predictions(probabilities: Tensor, labels: Tensor) -> SampleScores:
    """Return the scores of each sample from probabilities (B, K), such as an ensemble's mean; labels (B, K).

    Computed in float32 or better. A probability of 0 counts as the smallest normal number, and 1 as half a step of
    floating-point numbers below 1: the NLL stays finite.
    """
    p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    about = torch.finfo(p.dtype)
    nll = -torch.where(labels > 0.5, p.clamp_min(about.tiny).log(), (1 - p).clamp_min(about.eps / 4).log())
    return _scores(p, nll, labels)


def _scores(p: Tensor, nll: Tensor, labels: Tensor) -> SampleScores:
    """Return `p` (B, K), `positive` (B, K) bool, and means over labels: `nll` (B,) in nats, `right` (B,), a share."""
    positive = labels > 0.5
    right = ((p > THRESHOLD) == positive).float().mean(1)
    return SampleScores(MULTILABEL, {"p": p, "positive": positive, "nll": nll.mean(1), "right": right})


def check(logits: Any, labels: Any, *, subject: Subject) -> None:
    """Raise unless the outputs are logits (B, K)."""
    subject.require_shape(logits, (subject.num_outputs,), cure="let the network return one logit per class")
