"""Regression: one or several numbers for each sample.

MSE and MAE are means over samples and outputs. R2 is 1 - (squared errors) / (squared distances from the mean target),
over the whole split and then averaged over the outputs; its error is the jackknife one, in closed form from sums.
Legend: B batch, D outputs, N samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.metrics.task import MetricValue, Subject, jackknife, mean_of


@dataclass(frozen=True)
class SampleScores:
    """Errors of every sample, and its targets, which R2 compares them with."""

    error: Tensor  # (N, D) float32, prediction - target
    target: Tensor  # (N, D) float32

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the scores."""
        return tuple(_METRICS)

    def __len__(self) -> int:
        return len(self.error)

    def metric(self, key: str) -> MetricValue:
        """A score over all samples with its error; R2 of a constant target is not defined, and NaN."""
        return _METRICS[key](self.error.double(), self.target.double())


_METRICS: dict[str, Callable[[Tensor, Tensor], MetricValue]] = {  # of errors and targets, in the order of JSON
    "r2": lambda error, target: _r2(error.square(), target - target.mean(0)),
    "mse": lambda error, target: mean_of(error.square().mean(1)),
    "mae": lambda error, target: mean_of(error.abs().mean(1)),
}


def loss(outputs: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean squared error of a batch: outputs (B, D), or (B,) for one number, and targets (B, D)."""
    assert label_smoothing == 0, "refused where the plan is made"
    return F.mse_loss(_as_targets(outputs, targets), targets)


def predict(outputs: Tensor) -> Tensor:
    """The outputs in float32: their mean over weight sets is a prediction."""
    return outputs.float()


def score_predictions(predictions: Tensor, targets: Tensor) -> SampleScores:
    """Errors of each sample, of one weight set or of the mean prediction of several."""
    return SampleScores(_as_targets(predictions, targets) - targets, targets)


def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of a batch, as a tensor on the device."""
    return (_as_targets(outputs, targets) - targets).abs().mean()


def check(outputs: Any, targets: Any, *, subject: Subject) -> None:
    """Refuse what is no regression: outputs (B, D), or (B,) for one number, and targets (B, D)."""
    if targets.shape[1] != subject.num_outputs:
        raise UserError(
            f"dataset.name: gives {targets.shape[1]} numbers a sample, and says {subject.num_outputs}",
            hint="let num_outputs be how many there are",
        )
    shapes: list[tuple[int | None, ...]] = [(subject.num_outputs,), *([()] if subject.num_outputs == 1 else [])]
    subject.require_shape(outputs, *shapes, cure="let the network return one number for each output")


def _as_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs (B,) less targets (B, 1) would be (B, B), without a word."""
    return outputs.float().view(targets.shape)


def _r2(squared: Tensor, centred: Tensor) -> MetricValue:
    """Of squared errors and of targets without their mean, both (N, D) float64."""
    n = len(squared)
    residual, total = squared.sum(0), centred.square().sum(0)
    # Without sample i the mean of the others is -y_i / (n - 1), as the y sum to 0.
    left_total = total - centred.square() * (n / max(n - 1, 1))
    value = (1 - residual / total).where(total > 0, torch.nan).mean()
    left_out = (1 - (residual - squared) / left_total).where(left_total > 0, torch.nan).mean(1)
    return jackknife(float(value), left_out)
