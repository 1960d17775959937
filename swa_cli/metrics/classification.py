"""Classification: loss, predictions and per-sample scores for one class per sample.

Legend: B batch, K classes, N samples.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.metrics import losses
from swa_cli.metrics.metric import CLASSIFICATION, SampleScores
from swa_cli.metrics.task import Subject


def loss(logits: Tensor, labels: Tensor, *, label_smoothing: float, **options: Any) -> Tensor:
    """Return the mean loss of a batch, see `losses.mean_loss`: logits (B, K), labels (B,) or mixtures (B, K)."""
    num_classes = logits.shape[1]
    if not labels.is_floating_point() and labels.device.type == "cpu" and int(labels.max()) >= num_classes:
        raise UserError(  # on a GPU this check would synchronize
            f"the dataset gives the label {int(labels.max())} for {num_classes} classes",
            hint=f"let labels be 0 to {num_classes - 1}, or correct num_classes",
        )
    return losses.mean_loss(logits, labels, label_smoothing=label_smoothing, **options)


def loss_weight(labels: Tensor, *, class_weights: Tensor | None) -> Tensor | None:
    """Return what the loss of a batch is divided by; None for its samples."""
    weight = losses.weight_of(labels, class_weights=class_weights)
    return weight if isinstance(weight, Tensor) else None


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of a batch that is correct, as a tensor on the device: no host sync.

    Of mixed classes (B, K) a sample counts with the share of the predicted class.
    """
    predicted = logits.argmax(dim=1)
    if labels.is_floating_point():
        return labels.gather(1, predicted[:, None]).mean()
    return (predicted == labels).sum() / len(labels)


def predict(logits: Tensor) -> Tensor:
    """Return probabilities (B, K) in float32, to the bit those that `score_outputs` scores."""
    return logits.float().log_softmax(1).exp()


def score_outputs(logits: Tensor, labels: Tensor) -> SampleScores:
    """Return the scores of each sample of a batch: logits (B, K), labels (B,)."""
    log_p = F.log_softmax(logits.float(), dim=1)
    return _scores(log_p.exp(), log_p, labels)


def score_predictions(probabilities: Tensor, labels: Tensor) -> SampleScores:
    """Return the scores of each sample from probabilities (B, K), such as an ensemble's mean; labels (B,).

    Computed in float32 or better. A probability of 0 counts as the smallest normal number: the NLL stays finite.
    """
    p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    return _scores(p, p.clamp_min(torch.finfo(p.dtype).tiny).log(), labels)


def _scores(p: Tensor, log_p: Tensor, labels: Tensor) -> SampleScores:
    """Return the scores from probabilities and their logarithms, both (B, K).

    `correct` (B,) bool; `top5` (B,) bool, of more than five classes; `nll` (B,) in nats; `brier` (B,), the sum over
    classes of (p - y)^2; `confidence` (B,), the probability of the predicted class.
    """
    confidence, predicted = p.max(dim=1)
    p_label = p.gather(1, labels[:, None])[:, 0]
    values = {
        "correct": predicted == labels,
        "nll": F.nll_loss(log_p, labels, reduction="none"),
        "brier": p.square().sum(dim=1) - 2 * p_label + 1,  # y is one-hot
        "confidence": confidence,
    }
    if p.shape[1] > 5:
        values["top5"] = (log_p.topk(5, dim=1).indices == labels[:, None]).any(dim=1)
    return SampleScores(CLASSIFICATION, values)


def check(logits: Any, labels: Any, *, subject: Subject) -> None:
    """Raise unless the outputs are logits (B, K)."""
    subject.require_shape(logits, (subject.num_outputs,), cure="let the network return one logit per class")
