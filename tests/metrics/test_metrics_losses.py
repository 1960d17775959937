"""Losses by name against torch.nn.CrossEntropyLoss, timm's BinaryCrossEntropy and closed forms in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from swa_cli.errors import UserError
from swa_cli.metrics import losses
from swa_cli.metrics.losses import LOSSES, balanced_weights
from swa_cli.metrics.tasks import TASKS, TrainingLoss, training_loss

K = 5
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 7.0])
SMOOTHING = pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
NAMES = pytest.mark.parametrize("name", LOSSES)


def batch(number: int = 24, *shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (B, K, ...) and labels (B, ...)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(number, K, *shape, generator=generator)
    return logits, torch.randint(K, (number, *shape), generator=generator)


def mixed(labels: Tensor) -> Tensor:
    """Probabilities (B, K): each label with the one before it."""
    one_hot = nn.functional.one_hot(labels, K).float()
    return 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)


def found(logits: Tensor, targets: Tensor, *, task: str = "classification", **options: Any) -> float:
    return float(training_loss(TASKS[task], **options)(logits.detach(), targets))


@SMOOTHING
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("is_mixed", [False, True])
def test_cross_entropy_is_that_of_torch(label_smoothing: float, weights: Tensor | None, is_mixed: bool) -> None:
    """Class weights and smoothing, of labels and mixtures, against torch.nn.CrossEntropyLoss in float64."""
    logits, labels = batch()
    targets = mixed(labels) if is_mixed else labels
    oracle = nn.CrossEntropyLoss(None if weights is None else weights.double(), label_smoothing=label_smoothing)
    expected = oracle(logits.double(), targets.double() if is_mixed else targets)
    value = found(logits, targets, class_weights=weights, label_smoothing=label_smoothing)
    assert value == pytest.approx(float(expected), abs=1e-6)


@SMOOTHING
def test_bce_is_that_of_timm(label_smoothing: float) -> None:
    """The mean over samples and classes of labels, and of mixtures that timm's Mixup smooths, against timm."""
    logits, labels = batch()
    expected = BinaryCrossEntropy(smoothing=label_smoothing)(logits, labels)
    assert found(logits, labels, name="bce", label_smoothing=label_smoothing) == pytest.approx(
        float(expected), abs=1e-6
    )
    smooth = mixed(labels) * (1 - label_smoothing) + label_smoothing / K
    expected = BinaryCrossEntropy(smoothing=0.0)(logits, smooth)
    value = found(logits, mixed(labels), name="bce", label_smoothing=label_smoothing)
    assert value == pytest.approx(float(expected), abs=1e-6)


def test_bce_with_class_weights_is_a_weighted_mean_over_samples() -> None:
    """Labels with class weights against the losses of single samples, averaged with the weights of their labels."""
    logits, labels = batch()
    each = torch.stack(
        [BinaryCrossEntropy(smoothing=0.0)(row[None], label[None]) for row, label in zip(logits, labels, strict=True)]
    )
    expected = (each * WEIGHTS[labels]).sum() / WEIGHTS[labels].sum()
    assert found(logits, labels, name="bce", class_weights=WEIGHTS) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_is_its_formula(gamma: float) -> None:
    """-w (1 - p)^gamma log p of each sample in Python floats, equation 5 of the paper with its alpha."""
    logits, labels = batch()
    total = weight = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = math.exp(row[label]) / sum(math.exp(value) for value in row)
        total -= float(WEIGHTS[label]) * (1 - p) ** gamma * math.log(p)
        weight += float(WEIGHTS[label])
    value = found(logits, labels, name="focal", class_weights=WEIGHTS, focal_gamma=gamma)
    assert value == pytest.approx(total / weight, rel=1e-5)
    assert found(logits, labels, name="focal") == found(logits, labels, name="focal", focal_gamma=2.0)


@SMOOTHING
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_with_gamma_0_is_cross_entropy(label_smoothing: float, weights: Tensor | None) -> None:
    """Focal without focus against cross-entropy: labels, mixtures and masks, values and gradients."""
    options = {"label_smoothing": label_smoothing, "class_weights": weights}
    masks = batch(3, 4, 4)
    masks[1][:, 0] = 255
    for task, (logits, targets) in (
        ("classification", batch()),
        ("classification", (batch()[0], mixed(batch()[1]))),
        ("segmentation", masks),
    ):
        gradients = []
        for given in ({"name": "focal", "focal_gamma": 0.0}, {}):
            logits = logits.detach().requires_grad_()
            training_loss(TASKS[task], **options, **given)(logits, targets).backward()
            gradients.append(logits.grad)
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)
        expected = found(logits, targets, task=task, **options)
        assert found(logits, targets, task=task, name="focal", focal_gamma=0.0, **options) == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_focal_of_a_certain_sample_has_finite_gradients(gamma: float) -> None:
    """A probability of 1, where (1 - p)^gamma has no derivative, against finite numbers."""
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    training_loss(TASKS["classification"], name="focal", focal_gamma=gamma)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@NAMES
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@SMOOTHING
def test_pixels_that_are_ignored_do_not_count(name: str, weights: Tensor | None, label_smoothing: float) -> None:
    """Masks with 255 against a classification of the other pixels; nothing but 255 against 0."""
    logits, masks = batch(3, 4, 6)
    masks[:, 1:3, 2:] = 255
    counted = masks != 255
    options: dict[str, Any] = {"name": name, "class_weights": weights, "label_smoothing": label_smoothing}
    expected = found(logits.movedim(1, -1)[counted], masks[counted], **options)
    masks = masks.to(torch.uint8)
    assert found(logits, masks, task="segmentation", **options) == pytest.approx(expected, rel=1e-5)
    assert found(logits, torch.full_like(masks, 255), task="segmentation", **options) == 0


@NAMES
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_parts_of_a_batch_by_their_weights_are_the_whole(name: str, task: str) -> None:
    """The mean of a batch against its parts, weighted by what `weight` says of each: never the mean of means."""
    logits, targets = batch(12, *[4, 4] * (task == "segmentation"))
    targets[:5] = 4  # heavy
    for weights in (None, WEIGHTS):
        loss = training_loss(TASKS[task], name=name, class_weights=weights)
        parts = [(loss(logits[rows], targets[rows]), loss.weight(targets[rows])) for rows in (slice(5), slice(5, 12))]
        sizes = [7 * [5, 7][i] if weight is None else float(weight) for i, (_, weight) in enumerate(parts)]
        expected = sum(float(value) * size for (value, _), size in zip(parts, sizes, strict=True)) / sum(sizes)
        assert float(loss(logits, targets)) == pytest.approx(expected, rel=1e-5)


@NAMES
def test_half_precision_is_computed_in_float32(name: str) -> None:
    """bf16 logits against the same numbers in float32."""
    logits, labels = batch()
    logits = logits.bfloat16()
    loss = training_loss(TASKS["classification"], name=name)
    assert loss(logits, labels).dtype == torch.float32
    assert torch.equal(loss(logits, labels), loss(logits.float(), labels))


@NAMES
def test_a_label_that_is_no_class(name: str) -> None:
    """A label of K against the number of classes in the message."""
    logits, labels = batch()
    labels[3] = K
    with pytest.raises(UserError, match=f"label {K} for {K} classes"):
        found(logits, labels, name=name)


def test_balanced_weights() -> None:
    """Against n / (K n_k) as scikit-learn documents it, with ignored labels left out and a class without any."""
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] + [255] * 4)
    assert balanced_weights(labels.to(torch.uint8), num_classes=3).tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert balanced_weights(labels[:10], num_classes=4)[3] == math.inf


def test_a_loss_of_ones_own() -> None:
    """A function of torch by its import path against a direct call; it gets the options that are set, and no others."""
    logits, labels = batch()
    name = "torch.nn.functional:cross_entropy"
    assert found(logits, labels, name=name, label_smoothing=0.1) == pytest.approx(
        float(nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))
    )
    values = torch.randn(6, 1)
    huber = training_loss(TASKS["regression"], name="torch.nn.functional:huber_loss")
    assert float(huber(values, values + 3)) == pytest.approx(2.5)
    with pytest.raises(UserError, match="takes other arguments"):
        training_loss(TASKS["regression"], name="torch.nn.functional:huber_loss", label_smoothing=0.1)
    with pytest.raises(UserError, match=r"returned a tensor of \(5,\)"):
        training_loss(TASKS["classification"], name="torch:sub")(logits[:5, 0], logits[:5, 1])


def test_every_loss_is_in_the_schema() -> None:
    """The table of losses against the names that a recipe takes, and the default gamma against the schema's."""
    from swa_cli.recipe import values
    from swa_cli.recipe.schema import Train

    assert tuple(LOSSES) == values.LOSSES
    assert Train(epochs=1, loss="focal").loss_text == f"focal (gamma {losses.FOCAL_GAMMA:g})"
    assert isinstance(training_loss(TASKS["classification"]), TrainingLoss)
