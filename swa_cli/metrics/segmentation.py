"""Segmentation: loss, predictions and per-image counts for one class per pixel; pixels marked 255 are ignored.

Each image keeps integer counts of its pixels by class. Metrics are ratios of their sums over the whole split, so they
equal those of one confusion matrix of all pixels and are never means of batches. Their errors are jackknife errors over
images. Mean IoU and Dice are means over the classes that are in a mask or a prediction of the split.
Legend: B batch, K classes, H W pixels, N images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.metrics import losses
from swa_cli.metrics.metric import SEGMENTATION, SampleScores
from swa_cli.metrics.task import Subject

IGNORED = 255  # of masks


def loss(logits: Tensor, masks: Tensor, *, label_smoothing: float, **options: Any) -> Tensor:
    """Return the mean loss over the pixels of a batch, see `losses.mean_loss`: logits (B, K, H, W), masks (B, H, W).

    It is 0, not NaN, for a batch without counted pixels.
    """
    _require_classes(masks, num_classes=logits.shape[1])
    return losses.mean_loss(logits, masks, label_smoothing=label_smoothing, ignored=IGNORED, **options)


def loss_weight(masks: Tensor, *, class_weights: Tensor | None) -> Tensor:
    """Return what the loss of a batch is divided by: its counted pixels, or the sum of their class weights."""
    return torch.as_tensor(losses.weight_of(masks, class_weights=class_weights, ignored=IGNORED))


def predict(logits: Tensor) -> Tensor:
    """Return probabilities (B, K, H, W) in float32; an ensemble keeps those of a whole split in memory."""
    return logits.float().softmax(1)


def score_outputs(logits: Tensor, masks: Tensor) -> SampleScores:
    """Return the counts of each image for the logits of one weight set."""
    return _scores(logits.float().log_softmax(1), masks)


def score_predictions(probabilities: Tensor, masks: Tensor) -> SampleScores:
    """Return the counts of each image for probabilities (B, K, H, W), such as an ensemble's; the log of 0 is finite."""
    p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    return _scores(p.clamp_min(torch.finfo(p.dtype).tiny).log(), masks)


def pixel_accuracy(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the fraction of the pixels of a batch that is correct, as a tensor on the device."""
    right = logits.argmax(1) == masks
    return right.sum() / (masks != IGNORED).sum().clamp(min=1)


def weight(masks: Tensor) -> int:
    """Return how many pixels the loss is the mean of."""
    return int((masks != IGNORED).sum())


def check(logits: Any, masks: Any, *, subject: Subject) -> None:
    """Raise unless the outputs have the shape (B, K, H, W)."""
    shape = (subject.num_outputs, *subject.size)
    subject.require_shape(logits, shape, cure="let the network return one logit per class and pixel")


def _scores(log_p: Tensor, masks: Tensor) -> SampleScores:
    """Return the counts of each image from log-probabilities (B, K, H, W), without ignored pixels.

    They are the diagonal and the margins of its confusion matrix, (B, K) int64 pixels of each class: `right`, predicted
    correctly; `present` in the mask; `predicted`. `nll` (B,) is the sum over its pixels, in nats.
    """
    num_images, num_classes = log_p.shape[:2]
    _require_classes(masks, num_classes=num_classes)
    counted, labels = (masks != IGNORED).flatten(1), masks.long().flatten(1)  # (B, H W)
    log_p = log_p.flatten(2)
    found = log_p.argmax(1)
    labels = labels.where(counted, 0)
    nll = -log_p.gather(1, labels[:, None])[:, 0].where(counted, 0).sum(1)
    image = torch.arange(num_images, device=masks.device)[:, None] * num_classes

    def pixels(classes: Tensor, which: Tensor) -> Tensor:
        """Return (B, K): the number of pixels of each image and class."""
        # Not bincount of the chosen pixels: a GPU would wait for their number, twice. The last place takes the others.
        places = torch.where(which, image + classes, num_images * num_classes).flatten()
        counts = torch.zeros(num_images * num_classes + 1, dtype=torch.int64, device=places.device)
        counts.scatter_add_(0, places, torch.ones_like(places))
        return counts[:-1].view(num_images, num_classes)

    right = pixels(labels, counted & (found == labels))
    values = {"right": right, "present": pixels(labels, counted), "predicted": pixels(found, counted), "nll": nll}
    return SampleScores(SEGMENTATION, values)


def _require_classes(masks: Tensor, *, num_classes: int) -> None:
    wrong = (masks >= num_classes) & (masks != IGNORED)
    if masks.device.type == "cpu" and bool(wrong.any()):  # on a GPU this check would synchronize
        raise UserError(
            f"the dataset gives a mask with the class {int(masks[wrong][0])}, but there are {num_classes} classes",
            hint=f"let masks hold 0 to {num_classes - 1}, and {IGNORED} for pixels to ignore",
        )
