"""Show scores of weight sets: the final comparison, an ensemble by size, and the trials of a search.

An average (of weights, or of probabilities, which is an ensemble) is judged by its difference to the reference on the
same samples, in units of the paired standard error of that difference: two of them make a difference, unless it rounds
to zero. `engine/evaluate.py` chooses the reference.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report.console_text import MINUS, Lines, hanging, safe
from swa_cli.report.tables.columns import (
    Column,
    cell,
    cell_line,
    count,
    difference_text,
    fit,
    head_line,
    metric_column,
    with_error,
)

Row = Mapping[str, Any]  # the scores of a weight set, as JSON has them

CLEAR = 2.0  # standard errors that make a difference
UNCLEAR = "no clear difference"
LONGEST_NAME = 20
STYLES = {"better": "green", "worse": "red"}
_LONGEST_FILE = 40


def score_summary(
    scores: Mapping[str, Row], *, split: str, samples: int, tta: str = "none", metrics: TaskMetrics = CLASSIFICATION
) -> Lines:
    """Return the lines of the final comparison: a title, the table of scores, a verdict for each average.

    Args:
        scores: Weight set to its metrics (`accuracy`, `nll`), their errors (`accuracy_se`), `count` and `batchnorm`. An
            average also has a `reference`, and the differences to it (`accuracy_diff`) with paired errors
            (`accuracy_diff_se`), or else `no_verdict`.
        split: The split that was evaluated: test, val or train.
        samples: The number of its samples.
        tta: The test-time augmentation, as `eval.tta` names it.
        metrics: The metrics of the task.
    """

    def lines(console: Console) -> list[Text]:
        views = "" if tta == "none" else f", tta {tta}"
        title = f"{split}: {samples:,} samples{views} (± one standard error)"
        block = [*hanging(Text(), title, console=console), *score_table(scores, console=console, metrics=metrics)]
        for sentence in verdict(scores, metrics=metrics):
            block += hanging(Text(), sentence, console=console)
        return block

    return lines


def ensemble_summary(curve: Sequence[Row], *, metrics: TaskMetrics = CLASSIFICATION) -> Lines:
    """Return the lines of an ensemble: its cost, and the judged metrics for each number of `members`."""
    cost = (
        f"ensemble: the mean {metrics.predictions} of the last {len(curve)} snapshots,"
        f" which take {len(curve)} forward passes per image; every other row takes one. The last m snapshots:"
    )
    columns = [
        Column("members", "members", 7, rank=0),
        *(metric_column(metric, metrics=metrics) for metric in metrics.compared),
    ]
    rows = [
        {"members": str(row["members"]), **{metric.key: cell(metric, row[metric.key]) for metric in metrics.compared}}
        for row in curve
    ]

    def lines(console: Console) -> list[Text]:
        table = [head_line(columns, console=console), *(cell_line(columns, row, console=console) for row in rows)]
        return [*hanging(Text(), cost, console=console), *table]

    return lines


def search_summary(rows: Sequence[Row], *, samples: int, passes: int, metrics: TaskMetrics = CLASSIFICATION) -> Lines:
    """Return the lines of a search: the validation scores of every trial, and which ones were chosen.

    Args:
        rows: A row per trial, see `search_table`.
        samples: The number of validation samples.
        passes: The number of BatchNorm passes that the search took.
        metrics: The metrics of the task.
    """
    took = f"{passes} BatchNorm pass{'es' if passes != 1 else ''}"
    title = f"val: {samples:,} samples (± one standard error); {took}"

    def lines(console: Console) -> list[Text]:
        table = search_table(rows, metrics=metrics, console=console)
        return [*hanging(Text(), title, console=console), *table, Text()]

    return lines


def score_table(scores: Mapping[str, Row], *, console: Console, metrics: TaskMetrics = CLASSIFICATION) -> list[Text]:
    """Return a line for each weight set, and under each average its paired difference to the reference."""
    names = {name: safe(name, console=console)[:LONGEST_NAME] for name in scores}
    shown = shown_metrics(list(scores.values()), metrics)
    labels = [difference_label(row["reference"]) for row in scores.values() if is_compared(row, metrics)]
    columns = [
        Column("name", "weights", max(map(cell_len, (*names.values(), *labels, "weights"))), rank=0, left=True),
        *(metric_column(metric, metrics=metrics) for metric in shown),
        Column("count", "n", 5, rank=4),
        Column("batchnorm", "BatchNorm", 12, rank=5),
    ]
    columns = fit(columns, width=console.width)
    lines = [head_line(columns, console=console)]
    for name, row in scores.items():
        cells = {
            "name": names[name],
            **{metric.key: score_with_error(row, metric) for metric in shown},
            "count": count(row.get("members", row.get("count"))),
            "batchnorm": row["batchnorm"],
        }
        lines.append(cell_line(columns, cells, console=console))
        if is_compared(row, metrics):
            cells = {metric.key: difference(row, metric) for metric in metrics.compared}
            styles = {metric.key: STYLES.get(standing(row, metric), "") for metric in metrics.compared}
            cells, styles = {"name": difference_label(row["reference"]), **cells}, {"name": "dim", **styles}
            lines.append(cell_line(columns, cells, console=console, styles=styles))
    return lines


def shown_metrics(rows: Sequence[Row], metrics: TaskMetrics) -> list[Metric]:
    """Return the metrics of a table: optional ones only where a row has them."""
    return [
        metric
        for metric in metrics.all
        if not metric.is_optional or any(row.get(metric.key) is not None for row in rows)
    ]


def verdict(scores: Mapping[str, Row], *, metrics: TaskMetrics = CLASSIFICATION) -> list[str]:
    """Return one sentence for each average: whether averaging helped, or why that cannot be said."""
    sentences = []
    for name, row in scores.items():
        if is_compared(row, metrics):
            sentences.append(f"{name} vs {row['reference']}: {_judgement(row, metrics)}")
        elif row.get("no_verdict"):
            sentences.append(row["no_verdict"])
    return sentences


def conclusion(standings: Collection[str], *, method: str = "averaging") -> str:
    """Return the conclusion from the standings of the judged metrics."""
    if "better" in standings:
        return "mixed result" if "worse" in standings else f"{method} helped"
    return f"{method} did not help" if "worse" in standings else UNCLEAR


def _judgement(row: Row, metrics: TaskMetrics) -> str:
    if not math.isfinite(sum(row[f"{metric.key}_diff"] for metric in metrics.compared)):
        return "no comparison: the scores are not finite"
    standings = [standing(row, metric) for metric in metrics.compared]
    parts = [
        f"{metric.name} {difference(row, metric)}{'' if found == UNCLEAR else f', {found}'}"
        for metric, found in zip(metrics.compared, standings, strict=True)
    ]
    method = "ensembling" if row.get("members") else "averaging"
    return f"{conclusion(standings, method=method)} ({'; '.join(parts)})"


def is_compared(row: Row, metrics: TaskMetrics) -> bool:
    """Return whether a weight set has differences to a reference."""
    return bool(row.get("reference")) and all(
        row.get(f"{metric.key}{suffix}") is not None for metric in metrics.compared for suffix in ("_diff", "_diff_se")
    )


def difference_label(reference: str) -> str:
    """Return the label of the line of differences to the reference."""
    return f"  {MINUS} {reference}"


def standing(row: Row, metric: Metric) -> str:
    """Return how a metric compares with the reference: better, worse, or no clear difference."""
    gain, error = metric.gain(row[f"{metric.key}_diff"]), row[f"{metric.key}_diff_se"]
    if abs(gain) < metric.resolution(row[metric.key]):
        return UNCLEAR
    if gain > CLEAR * error:
        return "better"
    return "worse" if -gain > CLEAR * error else UNCLEAR


def difference(row: Row, metric: Metric) -> str:
    """Return the difference to the reference with its paired standard error."""
    error = cell(metric, row[f"{metric.key}_diff_se"])
    return with_error(difference_text(metric, row[f"{metric.key}_diff"]), error)


def score_with_error(row: Row, metric: Metric) -> str:
    """Return a score with its standard error, if it has one."""
    error = row.get(f"{metric.key}_se")
    return with_error(cell(metric, row.get(metric.key)), None if error is None else cell(metric, error))


def search_table(rows: Sequence[Row], *, console: Console, metrics: TaskMetrics = CLASSIFICATION) -> list[Text]:
    """Return a line for each trial: windows sorted by start, or soup members in the order in which they were tried."""
    is_window = "start" in rows[0]
    ordered = sorted(rows, key=lambda row: (row["start"], row["end"])) if is_window else rows
    labels = [safe(_trial_label(row), console=console) for row in ordered]
    heading = "--window" if is_window else "offered"
    columns = fit(_search_columns(heading, labels, metrics=metrics, is_window=is_window), width=console.width)
    lines = [head_line(columns, console=console)]
    for row, label in zip(ordered, labels, strict=True):
        cells = {
            "label": label,
            "count": count(row["count"]),
            "alone": cell(metrics.primary, row.get(f"own_{metrics.primary.key}")),
            "difference": "" if row["chosen"] or not is_window else difference(row, metrics.loss),
            "chosen": ("chosen" if is_window else "kept") if row["chosen"] else "",
            **{metric.key: score_with_error(row, metric) for metric in metrics.compared},
        }
        lines.append(cell_line(columns, cells, console=console, styles={"chosen": "green"}))
    return lines


def _trial_label(row: Row) -> str:
    if "start" in row:
        return f"{row['start']}step:{row['end']}step"  # as the option takes it
    name = str(row["file"])
    return name if len(name) <= _LONGEST_FILE else f"…{name[1 - _LONGEST_FILE :]}"


def _search_columns(heading: str, labels: Sequence[str], *, metrics: TaskMetrics, is_window: bool) -> list[Column]:
    columns = [
        Column("label", heading, max(map(cell_len, (*labels, heading))), rank=0, left=True),
        Column("count", "n", 6, rank=3),
        Column("alone", "alone %" if metrics.primary.is_percent else "alone", 9, rank=5),
        replace(metric_column(metrics.primary, metrics=metrics), rank=2),
        replace(metric_column(metrics.loss, metrics=metrics), rank=1),
        Column("difference", f"{MINUS} chosen", 16, rank=4),
        Column("chosen", "", 8, rank=3),
    ]
    left_out = "alone" if is_window else "difference"
    return [column for column in columns if column.key != left_out]
