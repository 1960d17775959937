"""Scores of a weight set with their sampling errors: over the samples of a whole split.

The one idea: keep what each sample scored. The mean of it is the score, its spread the sampling error, and the
difference of two weight sets on the same samples gets a *paired* error, which is smaller the more they agree.
Never the mean of batch means. What a sample scores is the task's (`tasks/protocol.py`). Legend: N samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.moments import alone
from swa_cli.data import nested
from swa_cli.training.hardware import Hardware
from swa_cli.training.tasks.protocol import SampleScores, Task, concatenate, standard_error
from swa_cli.training.views import weighted_mean

Batch = tuple[Any, Any]  # inputs and targets of B samples, on the device


def score(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task,
    hardware: Hardware,
    advance: Callable[[], None] = lambda: None,
    gathered: Callable[[Any], list[Any]] = alone,
) -> SampleScores:
    """Score every sample; the model is left in the mode it came in, and no random number is drawn.

    Args:
        model: The network, on the device of `hardware`.
        batches: Inputs, such as images (B, C, H, W), and targets, such as labels (B,), on the same device.
        task: What outputs and targets mean.
        hardware: Device and precision of the forward pass; scores themselves are float32 or better.
        advance: Called after each batch.
        gathered: Where several processes share the batches: gives what all of them passed to it, in order.
    """
    parts: list[SampleScores] = []
    _forward(model, batches, lambda *batch: parts.append(task.score(*batch)), task, hardware, advance)
    return concatenate(gathered(concatenate(parts)))


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task,
    hardware: Hardware,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Any]:
    """Predictions (N, ...) in float32 and targets on the CPU, those of all samples; arguments as of `score`."""
    parts: list[tuple[Tensor, Any]] = []
    _forward(
        model, batches, lambda outputs, targets: parts.append((task.predict(outputs), targets)), task, hardware, advance
    )
    predictions, targets = zip(*parts, strict=True)
    return torch.cat(predictions).cpu(), nested.mapped(nested.joined(targets), Tensor.cpu)


def _forward(
    model: nn.Module,
    batches: Iterable[Batch],
    take: Callable[[Any, Any], None],
    task: Task,
    hardware: Hardware,
    advance: Callable[[], None],
) -> None:
    """Give `take` the outputs and targets of every batch; see `score`."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            for inputs, targets in batches:
                args, kwargs = task.batch_to_args(inputs)
                with hardware.autocast():
                    if task.tta == "none":
                        outputs = model(*args, **kwargs)
                    else:
                        outputs = weighted_mean(model, *args, kind=task.tta)
                take(outputs, targets)
                advance()
    finally:
        model.train(training[model])  # networks that merge weights in eval() part them again
        for module, mode in training.items():
            module.training = mode


def summarize(scores: SampleScores, keys: Sequence[str] | None = None) -> dict[str, float | None]:
    """Every score over all samples, or those of these `keys`, each followed by its `_se` where it has one."""
    row: dict[str, float | None] = {}
    for key in scores.keys if keys is None else keys:
        found = scores.measure(key)
        row[key] = found.value
        if found.error is not None:
            row[f"{key}_se"] = found.error
    return row


def compare(scores: SampleScores, reference: SampleScores) -> dict[str, float]:
    """Differences to another weight set on the same samples, each with its paired standard error."""
    row: dict[str, float] = {}
    for key in scores.keys:
        each, other = scores.measure(key).each, reference.measure(key).each
        if each is not None and other is not None:
            difference = each - other
            row[f"{key}_diff"] = float(difference.mean())
            row[f"{key}_diff_se"] = standard_error(difference)
    return row
