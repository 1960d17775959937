"""Regression: loss, predictions and per-sample errors for one or several numbers per sample.

MSE and MAE are means over samples and outputs. R2 is 1 - (squared errors) / (squared distances from the mean target),
over the whole split and then averaged over the outputs; its jackknife error has a closed form.
Legend: B batch, D outputs, N samples.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from swa_cli.errors import UserError
from swa_cli.metrics.metric import REGRESSION, SampleScores
from swa_cli.metrics.task import Subject


def loss(outputs: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
    """Return the mean squared error of a batch: outputs (B, D), or (B,) for one number, and targets (B, D)."""
    assert label_smoothing == 0, "the plan refuses label smoothing"
    return F.mse_loss(_as_targets(outputs, targets), targets)


def predict(outputs: Tensor) -> Tensor:
    """Return the outputs in float32: their mean over weight sets is a prediction."""
    return outputs.float()


def score_predictions(predictions: Tensor, targets: Tensor) -> SampleScores:
    """Return the errors (B, D) of one weight set, or of the mean prediction of several, and the targets for R2."""
    return SampleScores(REGRESSION, {"error": _as_targets(predictions, targets) - targets, "target": targets})


def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute error of a batch, as a tensor on the device."""
    return (_as_targets(outputs, targets) - targets).abs().mean()


def check(outputs: Any, targets: Any, *, subject: Subject) -> None:
    """Raise unless outputs are (B, D), or (B,) for one number, and targets (B, D)."""
    if targets.shape[1] != subject.num_outputs:
        raise UserError(
            f"dataset.name: the dataset has {targets.shape[1]} numbers per sample, but says {subject.num_outputs}",
            hint=f"set num_outputs to {targets.shape[1]}",
        )
    shapes: list[tuple[int | None, ...]] = [(subject.num_outputs,), *([()] if subject.num_outputs == 1 else [])]
    subject.require_shape(outputs, *shapes, cure="let the network return one number for each output")


def _as_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Reshape outputs like targets: (B,) minus (B, 1) would broadcast to (B, B)."""
    return outputs.float().view(targets.shape)
