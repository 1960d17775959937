"""What a task is: a loss, predictions that can be averaged, and what every sample scores.

The one idea: a score is a number *and* N values whose mean it is, one a sample. Their spread is its sampling error,
and the difference of two weight sets on the same samples gets a paired one. What is no mean of samples (mean IoU, R2)
has jackknife pseudo-values (Tukey 1958) in their place, of which the same holds.
Legend: B batch, N samples of a split, K classes, D outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from swa_cli.averaging.batch_args import Arguments, batch_to_args
from swa_cli.errors import UserError
from swa_cli.metrics.metric import TaskMetrics


class UserTask(Protocol):
    """A task of one's own, named in a recipe by `task: package.module:attribute`; an object, a class or a module.

    `scores` names what `metrics` returns and which way each is better, `{"accuracy": "higher", "loss": "lower"}`.
    The first is what an epoch's row and metrics.csv show; `loss` is `val_loss`; averages are judged by both.
    A fourth function, `batch_to_args(inputs) -> (args, kwargs)`, may say how inputs go to the network; without it a
    tensor is `model(x)`, a tuple `model(*x)` and a dict `model(**x)`.
    """

    scores: Mapping[str, str]

    def loss(self, outputs: Any, targets: Any, *, label_smoothing: float) -> Tensor:
        """What is trained: a scalar, the mean over a batch.

        Args:
            outputs: What the network returned, in the precision of the run: `.float()` is often wise.
            targets: The stacked targets of the dataset, each with B samples.
            label_smoothing: Of the recipe.
        """

    def predict(self, outputs: Any) -> Tensor:
        """Predictions (B, ...) whose mean over several weight sets makes sense: probabilities, not logits."""

    def metrics(self, predictions: Tensor, targets: Any) -> Mapping[str, Tensor]:
        """What every sample of a batch scores: for each name in `scores` a tensor (B,). Their means are reported."""


class SampleScores(Protocol):
    """What is kept of every sample of a split: a frozen dataclass of tensors (N, ...), so that batches are joined."""

    @property
    def keys(self) -> Sequence[str]:
        """The names of the scores, in the order of JSON."""

    def __len__(self) -> int:
        """N."""

    def metric(self, key: str) -> MetricValue:
        """One score over all samples, in float64."""


Scores = TypeVar("Scores", bound=SampleScores)


@dataclass(frozen=True)
class MetricValue:
    """A score; without values for every sample it has no error and no paired difference."""

    value: float | None
    each: Tensor | None = None  # (N,) float64 with this mean
    error: float | None = None  # standard error of `value`


@dataclass(frozen=True)
class Subject:
    """Which network on which data is looked at before a run, for the words about it; two samples are."""

    model: str
    num_outputs: int | None
    size: tuple[int, ...]  # (H, W) of an image, () for other inputs

    def require_shape(self, outputs: Any, *wanted: tuple[int | None, ...], cure: str) -> None:
        """Refuse outputs of two samples of another shape than one of the `wanted` ones, which begin after the 2.

        Raises:
            UserError: They have another shape, or are no tensor.
        """
        shapes = [(2, *shape) for shape in wanted]
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if found not in shapes:
            raise UserError(f"model.name: {self.model} gives {found} for 2 images, not {shapes[0]}", hint=cure)


@dataclass(frozen=True)
class Task:
    """A task as the rest of the room takes it: functions on whole batches, and what is said of their results."""

    metrics: TaskMetrics
    loss: Callable[..., Tensor]  # (outputs, targets, *, label_smoothing) -> ()
    predict: Callable[[Any], Tensor]  # outputs -> (B, ...) float32
    score_predictions: Callable[[Tensor, Any], SampleScores]  # of predictions, and of their mean over weight sets
    score_outputs: Callable[[Any, Any], SampleScores]  # of the outputs of one weight set, and targets
    train_score: Callable[[Any, Any], Tensor]  # (outputs, targets) -> (), on the device: no host sync
    check: Callable[..., None]  # (outputs, targets, *, subject): raises if this cannot be trained
    check_training: Callable[..., None] = lambda outputs, *, subject: None  # the same of what it gives in training
    families: tuple[str, ...] = ("classification",)  # of torchvision's networks
    target: str | None = "class"  # what the labels of the dataset have to be: class, mask or value; None: anything
    batch_to_args: Callable[[Any], Arguments] = batch_to_args
    weight: Callable[[Any], int] | None = None  # of targets: how much a batch's loss is the mean of; None: its samples
    tta: str = "none"  # of `views.py`: how images are looked at to be scored


def mean_of(values: Tensor) -> MetricValue:
    """The mean of (N,) values and its standard error."""
    each = values.double()
    return MetricValue(float(each.mean()), each, standard_error(each))


def jackknife(value: float, left_out: Tensor) -> MetricValue:
    """A score that is no mean, with its jackknife error.

    The pseudo-values N value - (N - 1) left_out are moved to have the mean `value`: the bias is not corrected.

    Args:
        value: Of all samples.
        left_out: (N,) float64, the score of all samples but one each.
    """
    if len(left_out) < 2:
        return MetricValue(value, torch.full_like(left_out, value), 0.0)
    each = value - (len(left_out) - 1) * (left_out - left_out.mean())
    return MetricValue(value, each, standard_error(each))


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of (N,) values; 0 for a single one, which tells nothing of its spread."""
    return float(values.double().std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def concatenate(parts: Sequence[Scores]) -> Scores:
    """The scores of all batches, in order, on the CPU: one transfer at the end and none a batch."""
    assert parts, "a split without samples is refused where it is loaded"

    def join(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return torch.cat(values).cpu() if isinstance(values[0], Tensor) else values[0]

    return type(parts[0])(**{field.name: join(field.name) for field in fields(parts[0])})  # type: ignore[arg-type]
