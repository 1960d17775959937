"""Show scores of weight sets: metrics as text, the final comparison, an ensemble by size, and the trials of a search.

An average (of weights, or of probabilities, which is an ensemble) is judged by its difference to the reference on the
same samples, in units of the paired standard error of that difference: two of them make a difference, unless it rounds
to zero. `engine/evaluate.py` chooses the reference. Fractions become percent here, and nowhere below `report/`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report.console_text import (
    MINUS,
    NOT_MEASURED,
    PLUS_MINUS,
    Cells,
    Column,
    Lines,
    block,
    count,
    number,
    printable,
    table,
    widest,
)
from swa_cli.units import count_text

Row = Mapping[str, Any]  # the scores of a weight set, as JSON has them
Judged = Mapping[str, tuple[str, str]]  # key of a metric -> its difference as text, and its standing

CLEAR = 2.0  # standard errors that make a difference
UNCLEAR = "no clear difference"
NOT_FINITE = "no comparison: the scores are not finite"
NO_ERROR = "no comparison: there are too few samples for a standard error"
_LONGEST_NAME = 20
_STYLES = {"better": "green", "worse": "red"}
_LONGEST_FILE = 40


def heading(metric: Metric) -> str:
    """Return the heading of a metric's column."""
    return f"{metric.name} %" if metric.is_percent else metric.name


def cell(metric: Metric, value: float | None, *, scale: float | None = None, sign: str = "-") -> str:
    """Return a value as a table shows it; `scale` and `sign` as in `number`."""
    if value is None or not metric.is_percent:
        least = metric.least_in_decimals if metric.has_error else 0.5e-3
        return number(value, scale=scale, least=least, sign=sign)
    return f"{100 * value:{sign}z.2f}"


def with_error(value: str, error: str | None) -> str:
    """Return `value ± error`, or the value alone."""
    return value if error is None else f"{value} {PLUS_MINUS} {error}"


def value_with_error(metric: Metric, value: float | None, error: float | None) -> str:
    """Return `value ± error` in the same decimals, with a dot for an error that is NaN; the value alone without one."""
    if value is None or error is None:
        return cell(metric, value)
    scale = largest(value, error)
    return with_error(cell(metric, value, scale=scale), cell(metric, known(error), scale=scale))


def difference_text(metric: Metric, value: float | None, *, scale: float) -> str:
    """Return the difference of two values of a scale with its sign; one that rounds to zero has a plus."""
    return cell(metric, known(value), scale=scale, sign="+").replace("-", MINUS)


def interval_text(metric: Metric, found: Mapping[str, Any], *, scale: float) -> str:
    """Return a difference of a scale with its interval, `mean [low, high]`; the mean alone without one."""
    mean, low, high = (difference_text(metric, found[key], scale=scale) for key in ("mean", "low", "high"))
    return mean if known(found["low"]) is None else f"{mean} [{low}, {high}]"


def known(value: float | None) -> float | None:
    """Return a finite number; None in place of another."""
    return value if value is not None and math.isfinite(value) else None


def largest(*values: float | None) -> float:
    """Return the largest magnitude among the numbers that are finite."""
    return max((abs(value) for value in map(known, values) if value is not None), default=0.0)


def score_summary(
    scores: Mapping[str, Row], *, split: str, samples: int, tta: str = "none", metrics: TaskMetrics = CLASSIFICATION
) -> Lines:
    """Return the lines of the final comparison: a title, the table of scores, a verdict for each average.

    Args:
        scores: Weight set to its metrics (`accuracy`, `nll`), their errors (`accuracy_se`), `count` and `batchnorm`. An
            average also has a `reference`, and the differences to it (`accuracy_diff`) with paired errors
            (`accuracy_diff_se`), or else `no_verdict`. What is not known is NaN or None.
        split: The split that was evaluated: test, val or train.
        samples: The number of its samples.
        tta: The test-time augmentation, as `eval.tta` names it.
        metrics: The metrics of the task.
    """
    views = "" if tta == "none" else f", tta {tta}"
    title = f"{split}: {count_text(samples, 'sample')}{views} (± one standard error)"
    return block(title, score_table(scores, metrics=metrics), *verdict(scores, metrics=metrics))


def ensemble_summary(
    curve: Sequence[Row],
    *,
    of: Literal["snapshots", "runs"] = "snapshots",
    draws: int = 1,
    metrics: TaskMetrics = CLASSIFICATION,
) -> Lines:
    """Return the lines of an ensemble: its cost, and the judged metrics for each number of `members`.

    Args:
        curve: A row for each number of members.
        of: The members: the last snapshots of a run, or the first runs of a repeat.
        draws: The forward passes of a member, each with weights drawn from its swag average.
        metrics: The metrics of the task.
    """
    which = "last" if of == "snapshots" else "first"
    number = f"the last {len(curve)} snapshots" if of == "snapshots" else f"{len(curve)} runs"
    each = f", {draws} draws from each" * (draws > 1)
    cost = (
        f"ensemble: the mean {metrics.predictions} of {number}{each}, which take {len(curve) * draws} forward passes"
        f" per image; every other row takes {'one' if draws == 1 else draws}. The {which} m {of}:"
    )
    rows: list[Cells] = [
        {"members": str(row["members"]), **{metric.key: cell(metric, row[metric.key]) for metric in metrics.compared}}
        for row in curve
    ]
    columns = [Column("members", "members", 7, rank=0), *(_column(each, metrics, rows) for each in metrics.compared)]
    return block(cost, table(columns, rows))


def search_summary(rows: Sequence[Row], *, samples: int, passes: int, metrics: TaskMetrics = CLASSIFICATION) -> Lines:
    """Return the lines of a search: the validation scores of every trial, and which ones were chosen."""
    took = count_text(passes, "BatchNorm pass", plural="BatchNorm passes")
    title = f"val: {count_text(samples, 'sample')} (± one standard error); {took}"
    return block(title, search_table(rows, metrics=metrics), "")


def score_table(scores: Mapping[str, Row], *, metrics: TaskMetrics = CLASSIFICATION) -> Lines:
    """Return a line for each weight set, and under each average its paired difference to the reference."""
    shown = shown_metrics(scores.values(), metrics)
    rows: list[Cells] = []
    for name, row in scores.items():
        values = {metric.key: score_with_error(row, metric) for metric in shown}
        held = count(row.get("members", row.get("count")))
        rows.append({"name": short(name), **values, "count": held, "batchnorm": row["batchnorm"]})
        if is_compared(row):
            rows.append(difference_cells(row["reference"], _judged(row, metrics)))
    columns = [
        Column("name", "weights", widest("name", "weights", rows), rank=0, left=True),
        *(_column(metric, metrics, rows) for metric in shown),
        Column("count", "n", 5, rank=4),
        Column("batchnorm", "BatchNorm", 12, rank=5),
    ]
    return table(columns, rows)


def short(name: str) -> str:
    """Return the name of a weight set as a table shows it."""
    return printable(name)[:_LONGEST_NAME]


def difference_cells(reference: str, judged: Judged) -> Cells:
    """Return the line of differences to the reference."""
    cells = {key: (text, _STYLES.get(found, "")) for key, (text, found) in judged.items()}
    return {"name": (f"  {MINUS} {reference}", "dim"), **cells}


def _column(metric: Metric, metrics: TaskMetrics, rows: Sequence[Cells]) -> Column:
    """Return a metric's column, wide enough for its cells; beside it `n` has rank 4, BatchNorm 5."""
    if metric in metrics.compared:
        rank = 1 + metrics.compared.index(metric)
    else:
        rank = 3 if metric.is_headline else 6 if metric == metrics.training else 7
    usual = 7 if not metric.has_error else 15 if metric.is_percent else 16
    text = heading(metric)
    return Column(metric.key, text, max(usual, widest(metric.key, text, rows) + 2), rank=rank)


def shown_metrics(rows: Iterable[Row], metrics: TaskMetrics) -> list[Metric]:
    """Return the metrics of a table: optional ones only where a row has them."""
    found = {key for row in rows for key, value in row.items() if value is not None}
    return [metric for metric in metrics.all if not metric.is_optional or metric.key in found]


def verdict(scores: Mapping[str, Row], *, metrics: TaskMetrics = CLASSIFICATION) -> list[str]:
    """Return one sentence for each average: whether averaging helped, or why that cannot be said."""
    sentences = []
    for name, row in scores.items():
        if is_compared(row):
            sentences.append(f"{name} vs {row['reference']}: {_judgement(row, metrics)}")
        elif row.get("no_verdict"):
            sentences.append(row["no_verdict"])
    return sentences


def _judgement(row: Row, metrics: TaskMetrics) -> str:
    if known(row.get(f"{metrics.loss.key}_diff")) is None:  # every finite output has a loss
        return NOT_FINITE
    if all(known(row.get(f"{metric.key}_diff_se")) is None for metric in metrics.compared):
        return NO_ERROR
    judged = _judged(row, metrics)
    method = "ensembling" if row.get("members") else "averaging"
    concluded = conclusion(judged, better=f"{method} helped", worse=f"{method} did not help")
    return f"{concluded} ({reasons(judged, metrics)})"


def conclusion(judged: Judged, *, better: str, worse: str) -> str:
    """Return the conclusion from the standings of the judged metrics, in the words of the caller."""
    standings = {found for _, found in judged.values()}
    if {"better", "worse"} <= standings:
        return "mixed result"
    return better if "better" in standings else worse if "worse" in standings else UNCLEAR


def reasons(judged: Judged, metrics: TaskMetrics) -> str:
    """Return the differences behind a conclusion: `accuracy +1.70 ± 0.20, better; NLL +0.001 ± 0.003`."""
    return "; ".join(
        f"{metrics[key].name} {text}{'' if found == UNCLEAR else f', {found}'}" for key, (text, found) in judged.items()
    )


def _judged(row: Row, metrics: TaskMetrics) -> Judged:
    return {metric.key: (difference(row, metric), standing(row, metric)) for metric in metrics.compared}


def is_compared(row: Row) -> bool:
    """Return whether a weight set has differences to a reference."""
    return bool(row.get("reference"))


def standing(row: Row, metric: Metric) -> str:
    """Return how a metric compares with the reference: better, worse, or no clear difference.

    A difference that is not known, or has an unknown error, is no clear one.
    """
    found, error = known(row.get(f"{metric.key}_diff")), known(row.get(f"{metric.key}_diff_se"))
    if found is None or error is None:
        return UNCLEAR
    gain = metric.gain(found)
    if abs(gain) < metric.resolution(row[metric.key]):
        return UNCLEAR
    if gain > CLEAR * error:
        return "better"
    return "worse" if -gain > CLEAR * error else UNCLEAR


def difference(row: Row, metric: Metric) -> str:
    """Return the difference to the reference with its paired standard error."""
    found, error = (known(row.get(f"{metric.key}{end}")) for end in ("_diff", "_diff_se"))
    scale = largest(row[metric.key], found, error)
    text = difference_text(metric, found, scale=scale)
    return text if found is None else with_error(text, cell(metric, error, scale=scale))


def score_with_error(row: Row, metric: Metric) -> str:
    """Return a score with its standard error, if it has one; a dot is one that is not known."""
    key = f"{metric.key}_se"
    error = math.nan if key in row and row[key] is None else row.get(key)  # JSON has null for NaN
    return value_with_error(metric, row.get(metric.key), error)


def search_table(rows: Sequence[Row], *, metrics: TaskMetrics = CLASSIFICATION) -> Lines:
    """Return a line for each trial: averages by window and shape, or soup members as they were tried."""
    is_window = "start" in rows[0]
    cells: list[Cells] = []
    for row in sorted(rows, key=lambda row: (row["start"], row["end"], row["shape"])) if is_window else rows:
        values = {metric.key: score_with_error(row, metric) for metric in metrics.compared}
        cells.append(
            {
                "label": f"{row['start']}step:{row['end']}step" if is_window else _end_of(str(row["file"])),
                "shape": _shape(row) if is_window else "",
                "count": count(row["count"]),
                "alone": cell(metrics.primary, row.get(f"own_{metrics.primary.key}")),
                **values,
                "difference": ("chosen", "green")
                if row["chosen"]
                else difference(row, metrics.loss)
                if is_window
                else "",
                "chosen": ("kept", "green") if row["chosen"] else "",
            }
        )
    label = "--window" if is_window else "offered"  # the label of a window is as the option takes it
    columns = [
        Column("label", label, widest("label", label, cells), rank=0, left=True),
        Column("shape", "shape", widest("shape", "shape", cells) + 2, rank=3),
        Column("count", "n", 6, rank=6),
        Column(
            "alone",
            "alone %" if metrics.primary.is_percent else "alone",
            max(9, widest("alone", "", cells) + 2),
            rank=5,
        ),
        replace(_column(metrics.primary, metrics, cells), rank=4),
        replace(_column(metrics.loss, metrics, cells), rank=1),
        Column("difference", f"{MINUS} chosen", max(16, widest("difference", "", cells) + 2), rank=2),
        Column("chosen", "", 8, rank=4),
    ]
    left_out = ("alone", "chosen") if is_window else ("difference", "shape")
    return table([column for column in columns if column.key not in left_out], cells)


def _shape(row: Row) -> str:
    """Return the shape of an average; an EMA has its half-life as `--ema` takes it."""
    return str(row["shape"]) if row["half_life"] is None else f"{row['shape']} {row['half_life']}step"


def budget_summary(rows: Sequence[Row], *, name: str, metrics: TaskMetrics = CLASSIFICATION) -> Lines:
    """Return the lines of scores by budget: `epochs`, window, weight sets, error, and scores on `val` and `test`."""
    headings, table_rows = budget_cells(rows, metrics=metrics)
    cells: list[Cells] = [dict(zip(headings, row, strict=True)) for row in table_rows]
    columns = [
        Column(text, text, widest(text, text, cells) + (2 if rank else 0), rank=_BUDGET_RANKS[rank])
        for rank, text in enumerate(headings)
    ]
    return block(f"{name} (± one standard error)", table(columns, cells), "")


_BUDGET_RANKS = (0, 7, 6, 5, 2, 1, 4, 3)  # epochs, window, n, error, primary metric and loss on val and on test


def budget_cells(rows: Sequence[Row], *, metrics: TaskMetrics) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of scores by budget; a split without images has empty cells."""
    shown = [(split, metric) for split in ("val", "test") for metric in metrics.compared]
    headings = ["epochs", "--window", "n", "error", *(f"{split} {heading(metric)}" for split, metric in shown)]
    cells = [
        [
            f"{row['epochs']:g}",
            f"{row['steps'][0]}step:{row['steps'][1]}step",
            str(row["count"]),
            NOT_MEASURED if row["error"] is None else f"{100 * row['error']:.1f} %",
            *("" if row[split] is None else score_with_error(row[split], metric) for split, metric in shown),
        ]
        for row in rows
    ]
    return headings, cells


def _end_of(file: str) -> str:
    return file if len(file) <= _LONGEST_FILE else f"…{file[1 - _LONGEST_FILE :]}"
