"""Evaluate weight sets: scores over a whole split, with sampling errors and paired differences.

The score of every sample is kept: the mean is the score of the split (never the mean of batch means), the spread
gives the sampling error, and the difference of two weight sets on the same samples gets a *paired* error, which is
smaller the more they agree. The task defines the score of a sample (`metrics/task.py`).

Averages are judged against raw weights under the same BatchNorm treatment. Recomputed statistics alone can be worth
many points, so raw weights are scored with them too (`last_bn` beside `last`). The **reference** is whichever of the
two has the lower validation loss. An average that holds one weight set gets no verdict.
Legend: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swa_cli.averaging.bn_layers import gather_single_process
from swa_cli.data import pytree
from swa_cli.engine.hardware import Hardware
from swa_cli.engine.network import evaluation_mode
from swa_cli.metrics.metric import SampleScores, standard_error
from swa_cli.metrics.task import Task, concatenate, weighted_mean

Batch = tuple[Any, Any]  # inputs and targets of B samples, on the device
Keep = Callable[[Tensor, Any], object]  # gets predictions and targets


def score(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task,
    hardware: Hardware,
    advance: Callable[[], None] = lambda: None,
    gathered: Callable[[Any], list[Any]] = gather_single_process,
    keep: Keep | None = None,
) -> SampleScores:
    """Score every sample in float32 or better; modes are restored, and no random number is drawn.

    Args:
        model: The network, on the device of `hardware`.
        batches: Inputs, such as images (B, C, H, W), and targets, such as labels (B,), on the same device.
        task: Computes the scores of outputs and targets.
        hardware: Device and precision of the forward pass.
        advance: Called after each batch.
        gathered: Returns what all processes that share the batches pass to it, in order.
        keep: Gets the predictions (B, ...) and the targets of each batch of this process.
    """
    parts: list[SampleScores] = []

    def take(outputs: Any, targets: Any) -> None:
        parts.append(task.score_outputs(outputs, targets))
        if keep is not None:
            keep(task.predict(outputs), targets)

    _forward(model, batches, take, task, hardware, advance)
    return concatenate(gathered(concatenate(parts)))


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task,
    hardware: Hardware,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Any]:
    """Return the predictions (N, ...) in float32 and the targets of all samples on the CPU; see `score`."""
    parts: list[tuple[Tensor, Any]] = []
    _forward(
        model, batches, lambda outputs, targets: parts.append((task.predict(outputs), targets)), task, hardware, advance
    )
    predictions, targets = zip(*parts, strict=True)
    return torch.cat(predictions).cpu(), pytree.map_tensors(pytree.concatenate(targets), Tensor.cpu)


def _forward(
    model: nn.Module,
    batches: Iterable[Batch],
    take: Callable[[Any, Any], None],
    task: Task,
    hardware: Hardware,
    advance: Callable[[], None],
) -> None:
    """Call `take` with the outputs and targets of every batch; see `score`."""
    with evaluation_mode(model), torch.inference_mode():
        for inputs, targets in batches:
            take(outputs_of(model, inputs, task=task, hardware=hardware), targets)
            advance()


def outputs_of(model: nn.Module, inputs: Any, *, task: Task, hardware: Hardware) -> Any:
    """Return the outputs of a network for a batch: with test-time augmentation their mean over its views."""
    args, kwargs = task.batch_to_args(inputs)
    with hardware.autocast():
        return model(*args, **kwargs) if task.tta == "none" else weighted_mean(model, *args, kind=task.tta)


def summarize(scores: SampleScores, keys: Sequence[str] | None = None) -> dict[str, float | None]:
    """Return every score over all samples, or those of `keys`, each followed by its `_se` if it has one."""
    row: dict[str, float | None] = {}
    for key in scores.keys if keys is None else keys:
        found = scores.metric(key)
        row[key] = found.value
        if found.error is not None:
            row[f"{key}_se"] = found.error
    return row


def compare(scores: SampleScores, reference: SampleScores) -> dict[str, float]:
    """Return the differences to another weight set on the same samples, with paired standard errors.

    Both are NaN where the samples do not define the metric; the error alone, where it is unknown.
    """
    row: dict[str, float] = {}
    for key in scores.keys:
        own, other = scores.metric(key), reference.metric(key)
        if own.each is not None and other.each is not None:
            row[f"{key}_diff"] = math.nan if own.value is None or other.value is None else own.value - other.value
            row[f"{key}_diff_se"] = standard_error(own.each - other.each)
    return row


RAW = "last"  # the raw weights at the end of a run
EQUAL = 1e-3  # of the length of a tensor: rounding it to bf16 changes it by more


def recomputed(name: str) -> str:
    """Return the name of raw weights with recomputed BatchNorm statistics: `last_bn` for `last`."""
    return f"{name}_bn"


def reference(candidates: Sequence[str], val_losses: Mapping[str, float | None]) -> str:
    """Return the weight set that averages are judged against: that with the lowest validation loss.

    Without a validation split, it is the first one with recomputed statistics. The candidates are raw weight sets, each
    before its twin with recomputed statistics, if there is one.
    """
    twin = recomputed(candidates[0])
    default = twin if twin in candidates else candidates[0]
    return lowest({name: val_losses.get(name) for name in candidates}) or default


def lowest(losses: Mapping[str, float | None]) -> str | None:
    """Return the name of the lowest finite loss; None without any."""
    known = {name: loss for name, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return min(known, key=lambda name: known[name], default=None)


def to_ship(weights: Mapping[str, Mapping[str, Any]], *, loss_key: str, averages: Sequence[str]) -> tuple[str, str]:
    """Return the weight set that a run ships, and why: the lowest finite validation loss, else the first average.

    Args:
        weights: Weight set -> its scores, with those of the validation split, or None, under `val`.
        loss_key: The metric that is trained.
        averages: The averages of the run that hold any weights.
    """
    losses = {name: row["val"][loss_key] for name, row in weights.items() if row.get("val") is not None}
    best = lowest(losses)
    if best is not None:
        return best, "best on validation"
    return next(iter(averages), RAW), "no validation loss is finite" if losses else "no validation split to choose on"


def unjudged(
    name: str, *, count: int | None, weights: Mapping[str, Tensor], raw: Mapping[str, Tensor], names: Sequence[str]
) -> str | None:
    """Return why an average gets no verdict; None if it gets one.

    Args:
        name: The average.
        count: The number of weight sets that it holds; None where that is not known.
        weights: Its state dict.
        raw: The state dict of the raw weights.
        names: The parameters to compare.
    """
    if count == 1:
        return f"{name} holds 1 weight set: nothing was averaged"
    # A file may have other types, and lie in another memory.
    moved = [key for key in names if not torch.equal(weights[key].cpu(), raw[key].to("cpu", weights[key].dtype))]
    # Tensors count alike: beside large weights small ones would count for nothing.
    squares = [distance(weights[key], raw[key]) ** 2 for key in moved]
    if math.sqrt(sum(squares) / max(len(squares), 1)) <= EQUAL:
        return f"{name} equals the raw weights to {100 * EQUAL:g} %: averaging changed nothing"
    return None


def distance(first: Tensor, second: Tensor) -> float:
    """Return ||first - second|| / ||second||, or ||first|| where the second is 0."""
    wide = torch.complex128 if second.is_complex() else torch.float64
    own, other = first.to("cpu", wide), second.to("cpu", wide)
    return float((own - other).norm() / (other.norm() or 1))


def table(
    samples: Mapping[str, SampleScores], *, reference: str | None, judged: Mapping[str, str | None]
) -> dict[str, dict[str, Any]]:
    """Return the scores of every weight set, and the paired differences of averages to the reference.

    Args:
        samples: Weight set -> the scores of all samples.
        reference: The weight set that averages are judged against; None where there are no raw weights.
        judged: Average -> why it gets no verdict; None if it gets one.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, own in samples.items():
        rows[name] = dict(summarize(own))
        if name not in judged:
            continue
        if (reason := judged[name]) is not None:
            rows[name]["no_verdict"] = reason
        elif reference is not None:
            rows[name] |= {"reference": reference, **compare(own, samples[reference])}
    return rows
