"""The final comparison: every weight set's scores with their sampling errors, and whether averaging helped.

An average (of weights, or that of probabilities which an ensemble is) is judged by its difference to the reference on
the same samples, in units of that difference's paired standard error: within two of them nothing was shown, nor by a
difference that rounds to zero. What the reference is, `engine/evaluate.py` says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report.console_text import MINUS, safe
from swa_cli.report.tables.columns import Column, cell_line, count, fit, head_line, with_error

Scores = Mapping[str, Any]

CLEAR = 2.0  # standard errors that make a difference
UNCLEAR = "no clear difference"
LONGEST_NAME = 20
STYLES = {"better": "green", "worse": "red"}


def score_table(scores: Mapping[str, Scores], *, console: Console, metrics: TaskMetrics = CLASSIFICATION) -> list[Text]:
    """A line for each weight set, and under each average its paired difference to the reference."""
    names = {name: safe(name, console=console)[:LONGEST_NAME] for name in scores}
    said = [
        metric
        for metric in metrics.all
        if not metric.is_optional or any(values.get(metric.key) is not None for values in scores.values())
    ]
    labels = [difference_label(values["reference"]) for values in scores.values() if is_compared(values, metrics)]
    columns = fit(_columns([*names.values(), *labels], said), width=console.width)
    lines = [head_line(columns, console=console)]
    for name, values in scores.items():
        cells = {
            "name": names[name],
            **{metric.key: score_with_error(values, metric) for metric in said},
            "count": count(values.get("members", values.get("count"))),
            "batchnorm": values["batchnorm"],
        }
        lines.append(cell_line(columns, cells, console=console))
        if is_compared(values, metrics):
            differences = {metric.key: difference(values, metric) for metric in metrics.compared}
            styles = {metric.key: STYLES.get(standing(values, metric), "") for metric in metrics.compared}
            cells, styles = {"name": difference_label(values["reference"]), **differences}, {"name": "dim", **styles}
            lines.append(cell_line(columns, cells, console=console, styles=styles))
    return lines


def ensemble_table(curve: Sequence[Scores], *, console: Console, metrics: TaskMetrics = CLASSIFICATION) -> list[Text]:
    """A line for each number of members."""
    columns = [Column("members", "members", 7, rank=0), *(metric.column for metric in metrics.compared)]
    cells = [
        {"members": str(row["members"]), **{each.key: each.cell(row[each.key]) for each in metrics.compared}}
        for row in curve
    ]
    return [head_line(columns, console=console), *(cell_line(columns, row, console=console) for row in cells)]


def verdict(scores: Mapping[str, Scores], *, metrics: TaskMetrics = CLASSIFICATION) -> list[str]:
    """One sentence for each average: did averaging help, or why that cannot be said."""
    sentences = []
    for name, values in scores.items():
        if is_compared(values, metrics):
            sentences.append(f"{name} vs {values['reference']}: {_judgement(values, metrics)}")
        elif values.get("no_verdict"):
            sentences.append(values["no_verdict"])
    return sentences


def conclusion(standings: Collection[str], *, means: str = "averaging") -> str:
    """What the standings of the scores, `better`, `worse` or another word, come to."""
    if "better" in standings:
        return "mixed result" if "worse" in standings else f"{means} helped"
    return f"{means} did not help" if "worse" in standings else "no clear difference"


def _judgement(values: Scores, metrics: TaskMetrics) -> str:
    if not math.isfinite(sum(values[f"{metric.key}_diff"] for metric in metrics.compared)):
        return "no comparison: the scores are not finite"
    standings = [standing(values, metric) for metric in metrics.compared]
    means = "ensembling" if values.get("members") else "averaging"
    parts = [
        f"{metric.name} {difference(values, metric)}{'' if standing == UNCLEAR else f', {standing}'}"
        for metric, standing in zip(metrics.compared, standings, strict=True)
    ]
    return f"{conclusion(standings, means=means)} ({'; '.join(parts)})"


def is_compared(values: Scores, metrics: TaskMetrics) -> bool:
    """Whether a weight set has differences to a reference."""
    return bool(values.get("reference")) and all(
        values.get(f"{metric.key}{end}") is not None for metric in metrics.compared for end in ("_diff", "_diff_se")
    )


def difference_label(reference: str) -> str:
    """What the line of differences to the reference is called."""
    return f"  {MINUS} {reference}"


def standing(values: Scores, metric: Metric) -> str:
    """How a score stands to that of the reference: better, worse, or no clear difference."""
    gain, error = metric.gain(values[f"{metric.key}_diff"]), values[f"{metric.key}_diff_se"]
    if abs(gain) < metric.resolution(values[metric.key]):
        return UNCLEAR
    if gain > CLEAR * error:
        return "better"
    return "worse" if -gain > CLEAR * error else UNCLEAR


def difference(values: Scores, metric: Metric) -> str:
    """The difference to the reference with its paired standard error."""
    error = metric.cell(values[f"{metric.key}_diff_se"])
    return with_error(metric.difference(values[f"{metric.key}_diff"]), error)


def score_with_error(values: Scores, metric: Metric) -> str:
    """A score with its sampling error, where it has one."""
    error = values.get(f"{metric.key}_se")
    return with_error(metric.cell(values.get(metric.key)), None if error is None else metric.cell(error))


def _columns(names: list[str], said: Sequence[Metric]) -> list[Column]:
    width = max(cell_len(name) for name in (*names, "weights"))
    return [
        Column("name", "weights", width, rank=0, left=True),
        *(metric.column for metric in said),
        Column("count", "n", 5, rank=4),
        Column("batchnorm", "BatchNorm", 12, rank=5),
    ]
