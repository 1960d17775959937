"""Define what a task is: a loss, predictions that can be averaged, scores of every sample, test-time augmentation.

Legend: B batch, C channels, H W pixels, N samples of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from swa_cli.errors import UserError
from swa_cli.metrics.metric import Direction, SampleScores, TaskMetrics

Arguments = tuple[Sequence[Any], Mapping[str, Any]]  # positional and keyword arguments of a network


class UserTask(Protocol):
    """A user's task, named in a recipe by `task: package.module:attribute`; an object, a class or a module.

    `scores` names the metrics that `metrics` returns, with their directions: `{"accuracy": "higher", "loss": "lower"}`.
    The first is the primary metric, which epoch rows and metrics.csv show; `loss` is `val_loss`; averages are judged by
    both. An optional function `batch_to_args(inputs) -> (args, kwargs)` says how the network is called; without it a
    tensor is `model(x)`, a tuple `model(*x)` and a dict `model(**x)`.
    """

    scores: Mapping[str, Direction]

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float) -> Tensor:
        """Return the loss that is trained: a scalar, the mean over a batch.

        Args:
            outputs: What the network returned, in the precision of the run: `.float()` is often wise.
            targets: The stacked targets of the dataset, each with B samples.
            label_smoothing: As the recipe sets it.
        """

    def predict(self, outputs: Any) -> Tensor:
        """Return predictions (B, ...) whose mean over weight sets is a prediction: probabilities, not logits."""

    def metrics(self, predictions: Tensor, targets: Any) -> Mapping[str, Tensor]:
        """Return per-sample values, a tensor (B,) for each name in `scores`. Their means are reported."""


@dataclass(frozen=True)
class Subject:
    """The network and the data of a check before a run, which looks at two samples."""

    model: str
    num_outputs: int | None
    size: tuple[int, ...]  # (H, W) of an image, () for other inputs

    def require_shape(self, outputs: Any, *wanted: tuple[int | None, ...], cure: str) -> None:
        """Raise unless the outputs of two samples have one of the `wanted` shapes, given without the 2.

        Raises:
            UserError: They have another shape, or are no tensor.
        """
        shapes = [(2, *shape) for shape in wanted]
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if found not in shapes:
            raise UserError(f"model.name: {self.model} returns {found} for 2 images, not {shapes[0]}", hint=cure)


@dataclass(frozen=True)
class Task:
    """A task as the engine uses it: functions on whole batches, and the table of its metrics."""

    metrics: TaskMetrics
    loss: Callable[..., Tensor]  # (outputs, targets, *, label_smoothing) -> (); of classes also `mean_loss`'s options
    predict: Callable[[Any], Tensor]  # outputs -> (B, ...) float32
    score_predictions: Callable[[Tensor, Any], SampleScores]  # (predictions, targets): one weight set's or a mean
    score_outputs: Callable[[Any, Any], SampleScores]  # (outputs, targets) of one weight set
    train_score: Callable[[Any, Any], Tensor]  # (outputs, targets) -> (), on the device: no host sync
    check: Callable[..., None]  # (outputs, targets, *, subject): raises if this cannot be trained
    batch_to_args: Callable[[Any], Arguments]  # inputs -> the arguments of the network
    check_training: Callable[..., None] = lambda outputs, *, subject: None  # the same for outputs in training mode
    families: tuple[str, ...] = ("classification",)  # of torchvision's networks
    target: str | None = "class"  # the labels that the dataset must have: class, multilabel, mask, value; None: any
    loss_weight: Callable[..., Tensor | None] | None = None  # see `losses.weight_of`; None: the task has no classes
    loss_name: str = "cross_entropy"  # of a task with classes: its loss where a recipe names none
    weight: Callable[[Any], int] | None = None  # targets -> what a batch's score is the mean of; None: its samples
    tta: str = "none"  # one of `VIEWS`


def concatenate(parts: Sequence[SampleScores]) -> SampleScores:
    """Join the scores of all batches in order, on the CPU, with one transfer at the end."""
    assert parts, "loading refuses a split without samples"
    values = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0].values}
    return SampleScores(parts[0].metrics, values)


SHIFT = 1  # pixels


def weighted_mean(model: Callable[[Tensor], Tensor], images: Tensor, *, kind: str) -> Tensor:
    """Return the weighted mean of the network's outputs for the views of (B, C, H, W) images, in float32."""
    views = VIEWS[kind](images)
    total = views[0][0] * model(views[0][1]).float()
    for weight, view in views[1:]:
        total = torch.add(total, model(view).float(), alpha=weight)
    return total


def _flipped(images: Tensor) -> list[tuple[float, Tensor]]:
    """Return the images and their mirror images."""
    return [(0.5, images), (0.5, images.flip(3))]


def _flipped_and_translated(images: Tensor) -> list[tuple[float, Tensor]]:
    """Return `_flipped` views with weight 1/2, and those of two translations by a pixel, up left and down right.

    Edges are padded by reflection, as in airbench's `tta_level=2` (Jordan 2024, arXiv:2404.00498).
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (SHIFT,) * 4, mode="reflect")
    moved = [padded[:, :, first : first + height, first : first + width] for first in (0, 2 * SHIFT)]
    halves = [(0.5, images), *((0.25, view) for view in moved)]
    return [(share * weight, view) for share, half in halves for weight, view in _flipped(half)]


VIEWS: Mapping[str, Callable[[Tensor], list[tuple[float, Tensor]]]] = {
    "flip": _flipped,
    "flip_translate": _flipped_and_translated,
}


def num_views(kind: str) -> int:
    """Return how many forward passes the scores of a sample take."""
    return len(VIEWS[kind](torch.zeros(1, 1, 8, 8))) if kind in VIEWS else 1
