"""Losses over classes by name: cross-entropy, binary cross-entropy and focal, with class weights and label smoothing.

Where a sample has one class (`LOSSES`):

Each is a sum over samples (or pixels), divided by what `weight_of` counts, so that a batch may be computed in parts:
several batches of one optimizer step, or one part per process. Targets are labels, or probabilities of mixed classes.
Class weights follow torch.nn.CrossEntropyLoss: of labels, the mean is weighted by the weights of the labels; of
probabilities, the weighted losses are divided by the number of samples.

Where a sample has several (`MULTILABEL_LOSSES`), a loss is the mean over samples and classes, and class weights are
those of the labels that are there, as `pos_weight` of torch.nn.BCEWithLogitsLoss.

Legend: B batch, K classes, `...` pixels of a segmentation, nothing for a classification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NOT_IGNORED = -100  # torch's default of ignore_index: no label is negative
FOCAL_GAMMA = 2.0  # the best one of Lin et al. 2017, table 1b


def mean_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float,
    name: str = "cross_entropy",
    class_weights: Tensor | None = None,
    focal_gamma: float = FOCAL_GAMMA,
    ignored: int = NOT_IGNORED,
) -> Tensor:
    """Return the mean loss of a batch in float32, under autocast too; 0 if it has no weight.

    Args:
        logits: (B, K, ...).
        targets: (B, ...) labels, or (B, K) probabilities.
        label_smoothing: Share of each target that is spread evenly over all classes, as in torch.
        name: One of `LOSSES`.
        class_weights: (K,) float32 on the device of the targets.
        focal_gamma: The exponent of focal.
        ignored: The label of samples that do not count.
    """
    options: dict[str, Any] = {"focal_gamma": focal_gamma} if name == "focal" else {}
    total = LOSSES[name](
        logits.float(),
        targets if targets.is_floating_point() else targets.long(),
        label_smoothing=label_smoothing,
        class_weights=class_weights,
        ignored=ignored,
        **options,
    )
    weight = weight_of(targets, class_weights=class_weights, ignored=ignored)
    return total / (weight.clamp_min(torch.finfo(torch.float32).tiny) if isinstance(weight, Tensor) else weight)


def weight_of(targets: Tensor, *, class_weights: Tensor | None, ignored: int = NOT_IGNORED) -> Tensor | int:
    """Return what the loss of a batch is divided by, on the device: no host sync.

    The sum of the class weights of the labels; the number of samples without class weights or of probabilities.
    """
    if targets.is_floating_point():
        return len(targets)
    if class_weights is None:
        return targets.numel() if ignored == NOT_IGNORED else (targets != ignored).sum()
    return _weights_of_labels(targets.long(), class_weights, ignored=ignored).sum()


def cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float, class_weights: Tensor | None, ignored: int
) -> Tensor:
    """Return the sum of the softmax cross-entropies, as torch.nn.CrossEntropyLoss with reduction `sum`."""
    reduction = "none" if logits.ndim > 2 else "sum"  # CUDA's sum over pixels is not deterministic
    return F.cross_entropy(
        logits,
        targets,
        weight=class_weights,
        label_smoothing=label_smoothing,
        ignore_index=ignored,
        reduction=reduction,
    ).sum()


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float, class_weights: Tensor | None, ignored: int
) -> Tensor:
    """Return the sum over samples of the mean over classes of the binary cross-entropy of each class's sigmoid.

    As timm's BinaryCrossEntropy (Wightman et al. 2021, arXiv:2110.00476), which is a mean over samples and classes. A
    sample has the class weight of its label, for all classes (Cui et al. 2019, arXiv:1901.05555), or the mean weight of
    its probabilities.
    """
    smooth = _smoothed(targets, logits=logits, label_smoothing=label_smoothing, ignored=ignored)
    each = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)  # (B, ...)
    if targets.is_floating_point():
        return (each if class_weights is None else each * (targets @ class_weights)).sum()
    if class_weights is not None:
        return (each * _weights_of_labels(targets, class_weights, ignored=ignored)).sum()
    return (each if ignored == NOT_IGNORED else each.where(targets != ignored, 0)).sum()


def focal(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float,
    class_weights: Tensor | None,
    ignored: int,
    focal_gamma: float,
) -> Tensor:
    """Return the sum of -(1 - p)^gamma log p over samples, p the softmax probability of the label.

    The focal loss for several classes (Lin et al. 2017, arXiv:1708.02002, section 3); the class weights are its alpha.
    Of a smoothed or mixed target it is the sum over classes, each with its share: with gamma 0 it is `cross_entropy`.
    """
    smooth = _smoothed(targets, logits=logits, label_smoothing=label_smoothing, ignored=ignored)
    log_p = logits.log_softmax(1)
    # Not 0: the gradient of 0^gamma is infinite for a gamma below 1.
    rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).eps)
    terms = -smooth * rest.pow(focal_gamma) * log_p  # (B, K, ...)
    if class_weights is not None:
        terms = terms * class_weights.view(-1, *[1] * (logits.dim() - 2))
    each = terms.sum(1)
    return (each if ignored == NOT_IGNORED else each.where(targets != ignored, 0)).sum()


LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "bce": binary_cross_entropy,
    "focal": focal,
}


def _smoothed(targets: Tensor, *, logits: Tensor, label_smoothing: float, ignored: int) -> Tensor:
    """Return the targets as smoothed probabilities (B, K, ...); those of ignored labels have no meaning."""
    probabilities = targets
    if not targets.is_floating_point():
        labels = targets if ignored == NOT_IGNORED else targets.where(targets != ignored, 0)
        probabilities = torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)
    return probabilities * (1 - label_smoothing) + label_smoothing / logits.shape[1]


def _weights_of_labels(labels: Tensor, class_weights: Tensor, *, ignored: int) -> Tensor:
    """Return the class weight of each label (B, ...); 0 for an ignored one."""
    if ignored == NOT_IGNORED:
        return class_weights[labels]
    counted = labels != ignored
    return class_weights[labels.where(counted, 0)].where(counted, 0)


def multilabel_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float,
    name: str = "bce",
    class_weights: Tensor | None = None,
    focal_gamma: float = FOCAL_GAMMA,
) -> Tensor:
    """Return the mean loss of a batch over samples and classes in float32, under autocast too.

    Args:
        logits: (B, K).
        labels: (B, K) of 0 and 1, or mixtures.
        label_smoothing: Share s of each label that is spread evenly over all classes: y (1 - s) + s / K, as in timm.
        name: One of `MULTILABEL_LOSSES`.
        class_weights: (K,) float32 on the device of the labels.
        focal_gamma: The exponent of focal.
    """
    smooth = labels.float() * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    options: dict[str, Any] = {"focal_gamma": focal_gamma} if name == "focal" else {}
    return MULTILABEL_LOSSES[name](logits.float(), smooth, class_weights=class_weights, **options)


def sigmoid_cross_entropy(logits: Tensor, labels: Tensor, *, class_weights: Tensor | None) -> Tensor:
    """Return the mean binary cross-entropy of each class's sigmoid, as torch.nn.BCEWithLogitsLoss(pos_weight=)."""
    return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=class_weights)


def sigmoid_focal(logits: Tensor, labels: Tensor, *, class_weights: Tensor | None, focal_gamma: float) -> Tensor:
    """Return the mean of -(1 - q)^gamma log q, q the probability that the sigmoid of a class gives to the truth.

    The focal loss for two classes (Lin et al. 2017, arXiv:1708.02002, equation 4), as torchvision's sigmoid_focal_loss
    without alpha. Of a smoothed or mixed label both terms count with their shares: with gamma 0 it is
    `sigmoid_cross_entropy`.
    """
    log_p, log_rest = F.logsigmoid(logits), F.logsigmoid(-logits)
    present = -labels * (focal_gamma * log_rest).exp() * log_p
    absent = -(1 - labels) * (focal_gamma * log_p).exp() * log_rest
    return ((present if class_weights is None else present * class_weights) + absent).mean()


MULTILABEL_LOSSES: Mapping[str, Callable[..., Tensor]] = {"bce": sigmoid_cross_entropy, "focal": sigmoid_focal}


def balanced_positive_weights(labels: Tensor) -> Tensor:
    """Return (N - n_k) / n_k for each class: the samples without it in multiples of the n_k that have it.

    A class without samples gets infinity, and one that all samples have gets 0.

    Args:
        labels: (N, K) uint8 of 0 and 1.

    Returns:
        (K,) float64.
    """
    counts = labels.sum(0, dtype=torch.int64).double()
    return (len(labels) - counts) / counts


def balanced_weights(labels: Tensor, *, num_classes: int) -> Tensor:
    """Return n / (K n_k) for each class, of n labels of which n_k are of class k, as scikit-learn's `balanced`.

    A class without labels gets infinity; labels of K and more, such as 255 of pixels, do not count.

    Returns:
        (K,) float64.
    """
    counts = labels.flatten().bincount(minlength=num_classes)[:num_classes].double()
    return counts.sum() / (num_classes * counts)
