"""What is learned: the loss that is trained and what each sample scores. Here: classification.

Legend: B batch, K classes, N samples.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from swa_cli.errors import UserError


@dataclass(frozen=True)
class SampleScores:
    """What every single sample of a split scored, so that two weight sets can be compared sample by sample."""

    correct: Tensor  # (N,) bool
    top5: Tensor | None  # (N,) bool; None for five classes or fewer
    nll: Tensor  # (N,) float32, nats
    brier: Tensor  # (N,) float32, sum over classes of (p - y)^2
    confidence: Tensor  # (N,) float32, probability of the predicted class


def loss(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of a batch: logits (B, K), labels (B,). Computed in float32 whatever the autocast."""
    try:
        return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    except IndexError as error:
        raise UserError(
            f"the dataset gives the label {int(labels.max())} for {logits.shape[1]} classes",
            hint=f"let labels be 0 to {logits.shape[1] - 1}, or correct num_classes",
        ) from error


def num_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of a batch are right, as a tensor on the device: no host sync."""
    return (logits.argmax(dim=1) == labels).sum()


def score_samples(logits: Tensor, labels: Tensor) -> SampleScores:
    """Scores of each sample of a batch: logits (B, K), labels (B,)."""
    log_p = F.log_softmax(logits.float(), dim=1)  # (B, K)
    nll = F.nll_loss(log_p, labels, reduction="none")
    return _scores(log_p.exp(), labels, nll=nll, order=logits)


def score_probabilities(probabilities: Tensor, labels: Tensor) -> SampleScores:
    """Scores of each sample of a batch of which the probabilities are known: probabilities (B, K), labels (B,).

    A probability that underflowed to 0 counts as the smallest normal number, 87 nats in float32.
    """
    p = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    nll = -p.gather(1, labels[:, None])[:, 0].clamp_min(torch.finfo(p.dtype).tiny).log()
    return _scores(p, labels, nll=nll, order=p)


def _scores(p: Tensor, labels: Tensor, *, nll: Tensor, order: Tensor) -> SampleScores:
    """All scores, from probabilities (B, K), NLL (B,), and what puts the classes in order: (B, K)."""
    confidence, predicted = p.max(dim=1)
    p_label = p.gather(1, labels[:, None])[:, 0]
    brier = p.square().sum(dim=1) - 2 * p_label + 1  # sum (p - y)^2 with y one-hot
    top5 = None
    if p.shape[1] > 5:
        top5 = (order.topk(5, dim=1).indices == labels[:, None]).any(dim=1)
    return SampleScores(predicted == labels, top5, nll, brier, confidence)


def concatenate(parts: list[SampleScores]) -> SampleScores:
    """The scores of all batches, in order, on the CPU: one transfer at the end and none a batch."""
    assert parts, "a split without samples is refused where it is loaded"

    def join(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values).cpu()

    return SampleScores(**{field.name: join(field.name) for field in fields(SampleScores)})  # type: ignore[arg-type]
