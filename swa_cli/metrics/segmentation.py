"""Segmentation: a class for each pixel; pixels marked 255 count nowhere.

The one idea: each image keeps whole-number counts of its pixels by class. Scores come from their sums over the whole
split, so they are those of the one confusion matrix of all pixels and never means of batches; their errors are
jackknife ones over images: of the mean IoU, Dice, pixel accuracy and NLL without image i, for each i.
Legend: B batch, K classes, H W pixels, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.metrics.task import MetricValue, Subject, jackknife

IGNORED = 255  # of masks


@dataclass(frozen=True)
class SampleScores:
    """The pixels of every image by class, ignored ones left out: diagonal and margins of its confusion matrix."""

    right: Tensor  # (N, K) int64, pixels of a class that were found
    present: Tensor  # (N, K) int64, pixels of a class in the mask
    predicted: Tensor  # (N, K) int64, pixels predicted as a class
    nll: Tensor  # (N,) float32, summed over the pixels, nats

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the scores."""
        return tuple(_METRICS)

    def __len__(self) -> int:
        return len(self.nll)

    def metric(self, key: str) -> MetricValue:
        """A score over all pixels with its jackknife error over images.

        Mean IoU and Dice are means over the classes that are in a mask or a prediction of the split.
        """
        return _over_images(*_METRICS[key](self))


# Of each score, in the order of JSON, the numbers (N, K) or (N, 1) whose sums it is the ratio of.
_METRICS: dict[str, Callable[[SampleScores], tuple[Tensor, Tensor]]] = {
    "mean_iou": lambda scores: (scores.right, scores.present + scores.predicted - scores.right),
    "dice": lambda scores: (2 * scores.right, scores.present + scores.predicted),
    "pixel_accuracy": lambda scores: (scores.right.sum(1, keepdim=True), scores.present.sum(1, keepdim=True)),
    "nll": lambda scores: (scores.nll[:, None], scores.present.sum(1, keepdim=True)),
}


def loss(outputs: Any, masks: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean cross-entropy over the pixels of a batch: outputs (B, K, H, W) or a dict with `out`, masks (B, H, W)."""
    values = logits(outputs).float()
    _require_classes(masks, num_classes=values.shape[1])
    total = F.cross_entropy(
        values, masks.long(), ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (masks != IGNORED).sum().clamp(min=1)  # a batch without any pixel is worth 0, and not NaN


def predict(outputs: Any) -> Tensor:
    """Probabilities (B, K, H, W) in float32. Those of a whole split are kept where weight sets predict together."""
    return logits(outputs).float().softmax(1)


def score_outputs(outputs: Any, masks: Tensor) -> SampleScores:
    """What each image scores with one weight set."""
    return _scores(logits(outputs).float().log_softmax(1), masks)


def score_predictions(probabilities: Tensor, masks: Tensor) -> SampleScores:
    """What each image scores with probabilities (B, K, H, W), as of several weight sets; 0 has a finite log."""
    p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    return _scores(p.clamp_min(torch.finfo(p.dtype).tiny).log(), masks)


def pixel_accuracy(outputs: Any, masks: Tensor) -> Tensor:
    """Which fraction of a batch's pixels is right, as a tensor on the device."""
    right = logits(outputs).argmax(1) == masks
    return right.sum() / (masks != IGNORED).sum().clamp(min=1)


def weight(masks: Tensor) -> int:
    """How many pixels the loss is the mean of."""
    return int((masks != IGNORED).sum())


def logits(outputs: Any) -> Tensor:
    """(B, K, H, W); torchvision's networks give a dict of them, whose auxiliary ones are for training alone."""
    values: Tensor = outputs["out"] if isinstance(outputs, Mapping) and "out" in outputs else outputs
    return values


def check(outputs: Any, masks: Any, *, subject: Subject) -> None:
    """Refuse what is no segmentation: logits (B, K, H, W), masks (B, H, W)."""
    shape = (subject.num_outputs, *subject.size)
    subject.require_shape(logits(outputs), shape, cure="let the network return a logit for each class and pixel")


def _scores(log_p: Tensor, masks: Tensor) -> SampleScores:
    """Of log-probabilities (B, K, H, W)."""
    num_images, num_classes = log_p.shape[:2]
    _require_classes(masks, num_classes=num_classes)
    counted, labels = (masks != IGNORED).flatten(1), masks.long().flatten(1)  # (B, H W)
    log_p = log_p.flatten(2)
    found = log_p.argmax(1)
    labels = labels.where(counted, 0)
    nll = -log_p.gather(1, labels[:, None])[:, 0].where(counted, 0).sum(1)
    image = torch.arange(num_images, device=masks.device)[:, None] * num_classes

    def pixels(classes: Tensor, which: Tensor) -> Tensor:
        """(B, K): how many pixels of each image are of each class."""
        numbers = (image + classes)[which]
        return torch.bincount(numbers, minlength=num_images * num_classes).view(num_images, num_classes)

    right = pixels(labels, counted & (found == labels))
    return SampleScores(right, pixels(labels, counted), pixels(found, counted), nll)


def _over_images(part: Tensor, whole: Tensor) -> MetricValue:
    """Mean over classes of sum(part) / sum(whole), both (N, K), in float64; classes without a whole are left out."""
    part, whole = part.double(), whole.double()
    sums = part.sum(0), whole.sum(0)
    return jackknife(float(_mean_ratio(*sums)), _mean_ratio(sums[0] - part, sums[1] - whole))


def _mean_ratio(part: Tensor, whole: Tensor) -> Tensor:
    ratios = part / whole  # (..., K), NaN where there is nothing
    return ratios.where(whole > 0, torch.nan).nanmean(-1)


def _require_classes(masks: Tensor, *, num_classes: int) -> None:
    wrong = (masks >= num_classes) & (masks != IGNORED)
    if masks.device.type == "cpu" and bool(wrong.any()):  # a GPU would have to be waited for
        raise UserError(
            f"the dataset gives a mask with the class {int(masks[wrong][0])}, and there are {num_classes}",
            hint=f"let masks hold 0 to {num_classes - 1}, and {IGNORED} where a pixel shall not count",
        )
