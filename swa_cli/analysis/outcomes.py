"""`swa eval --per-class` and `--predictions`: the scores of each class, and a row for each sample.

Both come of the one pass that scores a weight set: `Kept` collects its predictions. Legend: N samples, K classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from swa_cli.analysis import open
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.data.splits import Split
from swa_cli.engine.context import Context
from swa_cli.errors import UserError
from swa_cli.metrics.per_class import CLASS_METRICS, Outcomes, class_scores
from swa_cli.metrics.tasks import SampleScores
from swa_cli.report.class_scores import class_table, means_table
from swa_cli.report.terminal import Terminal

COLUMNS = ("label", "prediction", "probability", "loss")  # behind the weights, and the path or row


class Kept:
    """The predictions of a weight set and their labels, collected batch by batch."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, predictions: Tensor, labels: Any) -> None:
        """Take the predictions (B, K) and labels (B,) of a batch."""
        self._parts.append((predictions.cpu(), labels.cpu()))

    @property
    def outcomes(self) -> Outcomes:
        """Those of all samples."""
        predictions, labels = zip(*self._parts, strict=True)
        return Outcomes(torch.cat(predictions), torch.cat(labels))


def require_classification(context: Context, *, option: str) -> None:
    """Refuse an option that is for classes where the task has none.

    Raises:
        UserError: The task is another.
    """
    if context.recipe.task != "classification":
        raise UserError(
            f"{option}: the task is {context.recipe.task}, and not classification", hint=f"leave {option} out"
        )


def require_csv(target: Path, *, source: Path) -> None:
    """Refuse a place where the predictions cannot be written.

    Raises:
        UserError: It has another suffix, or is not a file to write.
    """
    if target.suffix.lower() != ".csv":
        raise UserError(f"{target}: predictions are written as csv", hint=f"name {target.with_suffix('.csv')}")
    open.require_writable(target, sources=[source])


def per_class(kept: Mapping[str, Kept], context: Context, *, shown: str, terminal: Terminal) -> dict[str, Any]:
    """Return the scores of each class by weight set; print the means, and the classes of the weight set `shown`."""
    found: dict[str, Any] = {}
    classes = context.source.class_names
    with terminal.progress("scores of classes", len(kept) * len(CLASS_METRICS)) as bar:
        for name, each in kept.items():
            outcomes = each.outcomes
            number = outcomes.p.shape[1]
            names = classes if len(classes) == number else [*map(str, range(number))]
            found[name] = class_scores(outcomes, names=names, advance=bar.advance)
    title = f"classes of {shown} (± one standard error)"
    scores = [(metric.key, metric.name) for metric in CLASS_METRICS]
    terminal.print(class_table(title, found[shown]["classes"], scores))
    terminal.print(means_table(found, [(metric.mean_key, metric.mean_name) for metric in CLASS_METRICS]))
    return found


def write_predictions(
    target: Path, kept: Mapping[str, Kept], scored: Mapping[str, SampleScores], context: Context, split: str
) -> None:
    """Write a row for each sample of each weight set: path (or row), label, prediction, its probability, the loss."""
    loss = context.task.metrics.loss_key
    classes, samples = context.source.class_names, context.split(split)

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("weights", "row" if samples.names is None else "path", *COLUMNS))
        for name, each in kept.items():
            outcomes = each.outcomes
            highest, predicted = outcomes.p.max(1)
            losses = scored[name][loss].numpy().astype(str).tolist()
            columns = (
                _names(outcomes.labels, classes),
                _names(predicted, classes),
                highest.numpy().astype(str).tolist(),
                losses,
            )
            writer.writerows(zip([name] * len(losses), _places(samples), *columns, strict=False))
        text.detach()

    write_atomic(target, write)


def _places(samples: Split) -> Any:
    return count() if samples.names is None else samples.names


def _names(numbers: Tensor, classes: Sequence[str]) -> list[str]:
    return [classes[number] if number < len(classes) else str(number) for number in numbers.tolist()]
