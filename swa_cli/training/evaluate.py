"""Scores of a weight set with their sampling errors: means over the samples of a whole split.

The one idea: keep what each sample scored. The mean of it is the score, its spread the sampling error, and the
difference of two weight sets on the same samples gets a *paired* error, which is smaller the more they agree.
Never the mean of batch means. Legend: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from swa_cli.training import tasks
from swa_cli.training.hardware import Hardware
from swa_cli.training.tasks import SampleScores

ECE_BINS = 15  # Guo et al. 2017, On Calibration of Modern Neural Networks


def score(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    hardware: Hardware,
    advance: Callable[[], None] = lambda: None,
) -> SampleScores:
    """Score every sample; the model is left in the mode it came in, and no random number is drawn.

    Args:
        model: The network, on the device of `hardware`.
        batches: Images (B, C, H, W) and labels (B,) on the same device.
        hardware: Device and precision of the forward pass; scores themselves are float32 or better.
        advance: Called after each batch.
    """
    parts: list[SampleScores] = []
    _forward(model, batches, lambda *batch: parts.append(tasks.score_samples(*batch)), hardware, advance)
    return tasks.concatenate(parts)


def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    hardware: Hardware,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Probabilities (N, K) in float32 and labels (N,) on the CPU; arguments as of `score`."""
    parts: list[tuple[Tensor, Tensor]] = []
    _forward(
        model, batches, lambda logits, labels: parts.append((logits.float().softmax(1), labels)), hardware, advance
    )
    probabilities, labels = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return probabilities, labels


def _forward(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    take: Callable[[Tensor, Tensor], None],
    hardware: Hardware,
    advance: Callable[[], None],
) -> None:
    """Give `take` the logits and labels of every batch; see `score`."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            for images, labels in batches:
                with hardware.autocast():
                    logits = model(images)
                take(logits, labels)
                advance()
    finally:
        for module, mode in training.items():
            module.training = mode


def summarize(scores: SampleScores) -> dict[str, float | None]:
    """Means over all samples in float64, with `accuracy_se = sqrt(p(1-p)/n)` and `nll_se`; ECE over 15 bins."""
    from torchmetrics.functional.classification import (
        binary_calibration_error,
    )  # slow to import, used at the end

    # Top-label calibration is the binary one of "is the prediction right" against its confidence.
    ece = binary_calibration_error(scores.confidence.double(), scores.correct.long(), n_bins=ECE_BINS, norm="l1")
    return {
        **brief(scores),
        "top5": None if scores.top5 is None else _mean(scores.top5),
        "ece": float(ece),
        "brier": _mean(scores.brier),
    }


def brief(scores: SampleScores) -> dict[str, float]:
    """Accuracy and NLL with their sampling errors: what one chooses by."""
    accuracy = _mean(scores.correct)
    return {
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(scores.correct)),
        "nll": _mean(scores.nll),
        "nll_se": standard_error(scores.nll),
    }


def quick(scores: SampleScores) -> dict[str, float]:
    """Loss and accuracy: what an epoch's row shows."""
    return {"loss": _mean(scores.nll), "accuracy": _mean(scores.correct)}


def compare(scores: SampleScores, reference: SampleScores) -> dict[str, float]:
    """Differences to another weight set on the same samples, each with its paired standard error."""
    accuracy = scores.correct.double() - reference.correct.double()
    nll = scores.nll.double() - reference.nll.double()
    return {
        "accuracy_diff": _mean(accuracy),
        "accuracy_diff_se": standard_error(accuracy),
        "nll_diff": _mean(nll),
        "nll_diff_se": standard_error(nll),
    }


def table(sets: Mapping[str, SampleScores]) -> dict[str, dict[str, float | None]]:
    """Scores of every weight set by name; where `last` is among them, the others' differences to it."""
    rows: dict[str, dict[str, float | None]] = {}
    for name, scores in sets.items():
        rows[name] = summarize(scores)
        if name != "last" and "last" in sets:
            rows[name] |= compare(scores, sets["last"])
    return rows


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of (N,) values; 0 for a single one, which tells nothing of its spread."""
    return float(values.double().std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
