"""`swa eval --per-class` and `--predictions`: the scores of each class, and a row for each sample.

Both come of the one pass that scores a weight set: `Kept` collects its predictions. Where samples have several labels,
these are joined in one text. Legend: N samples, K classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress, count
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from swa_cli.analysis import open
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.data.splits import Split
from swa_cli.engine.context import Context
from swa_cli.errors import UserError
from swa_cli.metrics.per_class import OUTCOMES, LabelOutcomes, Outcomes, class_scores
from swa_cli.metrics.tasks import SampleScores
from swa_cli.recipe.schema import Recipe
from swa_cli.report.class_scores import class_table, means_table
from swa_cli.report.terminal import Terminal

COLUMNS = ("label", "prediction", "probability", "loss")  # behind the weights, and the path or row
COLUMNS_OF_SEVERAL = ("label", "prediction", "loss")  # and a probability of each class
BETWEEN_LABELS = "|"  # where the recipe has no dataset.args.label_delimiter


class Kept:
    """The predictions of a weight set and their labels, collected batch by batch."""

    def __init__(self, task: str) -> None:
        self._make = OUTCOMES[task]
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, predictions: Tensor, labels: Any) -> None:
        """Take the predictions (B, K) and labels (B,) or (B, K) of a batch."""
        self._parts.append((predictions.cpu(), labels.cpu()))

    @property
    def outcomes(self) -> Outcomes | LabelOutcomes:
        """Those of all samples."""
        predictions, labels = zip(*self._parts, strict=True)
        return self._make(torch.cat(predictions), torch.cat(labels))


def require_classes(task: str, *, option: str) -> None:
    """Refuse an option that is for classes where the task has none for a whole sample.

    Raises:
        UserError: The task is such a one.
    """
    if task not in OUTCOMES:
        raise UserError(f"{option}: the task is {task}, and not {' or '.join(OUTCOMES)}", hint=f"leave {option} out")


def delimiter_of(recipe: Recipe) -> str:
    """Return what stands between the labels of a sample in a text: what the recipe reads, or `BETWEEN_LABELS`."""
    return str(recipe.dataset.args.get("label_delimiter") or BETWEEN_LABELS)


def label_texts(flags: Tensor, names: Sequence[str], *, delimiter: str) -> Iterator[str]:
    """Return the labels of each sample in one text, of flags (N, K)."""
    return (delimiter.join(compress(names, row)) for row in flags.tolist())


def names_of(classes: Sequence[str], number: int) -> list[str]:
    """Return the names of K classes, or their numbers where the dataset has no such names."""
    return [*classes] if len(classes) == number else [*map(str, range(number))]


def require_csv(target: Path, *, source: Path) -> None:
    """Refuse a place where the predictions cannot be written.

    Raises:
        UserError: It has another suffix, or is not a file to write.
    """
    if target.suffix.lower() != ".csv":
        raise UserError(f"{target}: predictions are written as csv", hint=f"name {target.with_suffix('.csv')}")
    open.require_writable(target, sources=[source], option="--predictions")


def per_class(kept: Mapping[str, Kept], context: Context, *, shown: str, terminal: Terminal) -> dict[str, Any]:
    """Return the scores of each class by weight set; print the means, and the classes of the weight set `shown`."""
    found: dict[str, Any] = {}
    metrics = kept[shown].outcomes.metrics
    with terminal.progress("scores of classes", len(kept) * len(metrics)) as bar:
        for name, each in kept.items():
            outcomes = each.outcomes
            names = names_of(context.source.class_names, outcomes.p.shape[1])
            found[name] = class_scores(outcomes, names=names, advance=bar.advance)
    title = f"classes of {shown} (± one standard error)"
    scores = [(metric.key, metric.name) for metric in metrics]
    terminal.print(class_table(title, found[shown]["classes"], scores))
    terminal.print(means_table(found, [(metric.mean_key, metric.mean_name) for metric in metrics]))
    return found


def write_predictions(
    target: Path, kept: Mapping[str, Kept], scored: Mapping[str, SampleScores], context: Context, split: str
) -> None:
    """Write a row for each sample of each weight set: path (or row), label, prediction, its probability, the loss.

    With several labels per sample, the probability of each class stands behind the loss.
    """
    loss, samples = context.task.metrics.loss_key, context.split(split)
    delimiter = delimiter_of(context.recipe)

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        writer = csv.writer(text, lineterminator="\n")
        first = next(iter(kept.values())).outcomes
        names = names_of(context.source.class_names, first.p.shape[1])
        columns = COLUMNS if isinstance(first, Outcomes) else (*COLUMNS_OF_SEVERAL, *probability_columns(names))
        writer.writerow(("weights", "row" if samples.names is None else "path", *columns))
        for name, each in kept.items():
            outcomes, losses = each.outcomes, scored[name][loss].numpy().astype(str).tolist()
            if isinstance(outcomes, Outcomes):
                rows = _rows_of_classes(outcomes, losses, names)
            else:
                rows = _rows_of_several(outcomes, losses, names, delimiter=delimiter)
            writer.writerows([name, place, *row] for place, row in zip(_places(samples), rows, strict=False))
        text.detach()

    write_atomic(target, write)


def probability_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of the probabilities of each class."""
    return [f"probability_{name}" for name in names]


def _rows_of_classes(outcomes: Outcomes, losses: Sequence[str], names: Sequence[str]) -> Iterable[Sequence[str]]:
    highest, predicted = outcomes.p.max(1)
    of_labels, of_predictions = (
        [names[number] for number in numbers.tolist()] for numbers in (outcomes.labels, predicted)
    )
    return zip(of_labels, of_predictions, highest.numpy().astype(str).tolist(), losses, strict=True)


def _rows_of_several(
    outcomes: LabelOutcomes, losses: Sequence[str], names: Sequence[str], *, delimiter: str
) -> Iterator[Sequence[str]]:
    of_labels, of_predictions = (
        label_texts(flags, names, delimiter=delimiter) for flags in (outcomes.positive, outcomes.predicted_labels)
    )
    for label, predicted, loss, p in zip(of_labels, of_predictions, losses, outcomes.p.numpy(), strict=True):
        yield [label, predicted, loss, *p.astype(str).tolist()]


def _places(samples: Split) -> Any:
    return count() if samples.names is None else samples.names
