"""Show a comparison over seeds: means with their spread, and what the seeds say about averaging.

An average is judged by the mean of its differences, one per seed, to the reference of its run and to another recipe
with the same seeds, and by their 95 % interval: an interval that holds zero shows nothing. Column widths follow the
cells, as an interval of two seeds can be very wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report.console_text import Lines, hanging, safe
from swa_cli.report.tables.columns import Column, cell, cell_line, difference_text, fit, head_line, heading, with_error
from swa_cli.report.tables.scores import LONGEST_NAME, STYLES, UNCLEAR, conclusion, difference_label

Row = Mapping[str, Any]  # of a weight set: metric -> its spread, and `<metric>_diff` -> that of its differences
Spread = Mapping[str, Any]  # `mean` and `sd` of a metric; `mean`, `low`, `high` and `values` of differences

_ROUNDING = 1e-9  # equal fractions in several seeds differ by this at most


@dataclass(frozen=True)
class Against:
    """Another recipe with the same seeds, as the table shows it."""

    label: str  # baseline, or the name of the other recipe
    scores: Row  # of its own weight set
    pairs: Mapping[str, Mapping[str, Spread]]  # weight set -> metric -> the differences to `scores`


def seed_summary(
    weights: Mapping[str, Row],
    *,
    split: str,
    samples: int,
    seeds: Sequence[int],
    metrics: TaskMetrics = CLASSIFICATION,
    against: Against | None = None,
) -> Lines:
    """Return the lines of a repeat: a title, means and spreads of every weight set, a verdict for each average.

    Args:
        weights: Weight set to its row, from `over_seeds`.
        split: The split that was evaluated: test, val or train.
        samples: The number of its samples.
        seeds: The seeds that were run.
        metrics: The metrics of the task.
        against: Another recipe that was run with the same seeds.
    """
    title = f"{split}: {samples:,} samples, seeds {seed_ranges(seeds)} (± standard deviation, [95 % interval])"

    def lines(console: Console) -> list[Text]:
        block = hanging(Text(), title, console=console)
        block += seed_table(weights, console=console, metrics=metrics, against=against)
        for sentence in seed_verdict(weights, metrics=metrics, against=against):
            block += hanging(Text(), sentence, console=console)
        return block

    return lines


def seed_table(
    weights: Mapping[str, Row],
    *,
    console: Console,
    metrics: TaskMetrics = CLASSIFICATION,
    against: Against | None = None,
) -> list[Text]:
    """Return a line for each weight set, and under each average its mean differences with their intervals."""
    rows: list[tuple[dict[str, str], dict[str, str]]] = []
    for name, row in weights.items():
        rows.append(({**_score_cells(row, metrics), "name": safe(name, console=console)[:LONGEST_NAME]}, {}))
        if _is_compared(row, metrics):
            rows.append(_difference_cells(row["reference"], _to_reference(row, metrics), row, metrics))
        if against is not None and name in against.pairs:
            label = safe(against.label, console=console)[:LONGEST_NAME]
            rows.append(_difference_cells(label, against.pairs[name], row, metrics))
    if against is not None:
        label = safe(against.label, console=console)[:LONGEST_NAME]
        rows.append(({**_score_cells(against.scores, metrics), "name": label}, {}))
    columns = fit(_columns([cells for cells, _ in rows], metrics), width=console.width)
    lines = [cell_line(columns, cells, console=console, styles=styles) for cells, styles in rows]
    return [head_line(columns, console=console), *lines]


def _score_cells(row: Row, metrics: TaskMetrics) -> dict[str, str]:
    return {
        **{metric.key: cell(metric, row[metric.key]["mean"]) for metric in metrics.over_seeds},
        **{metric.key: _mean_text(row[metric.key], metric) for metric in metrics.compared},
        "n": str(row["n"]),
    }


def _difference_cells(
    label: str, differences: Mapping[str, Spread], row: Row, metrics: TaskMetrics
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the cells of a line of differences, and their styles."""
    cells = {metric.key: _interval_text(differences[metric.key], metric) for metric in metrics.compared}
    standings = {metric.key: _standing(differences[metric.key], metric, row) for metric in metrics.compared}
    styles = {key: STYLES.get(standing, "") for key, standing in standings.items()}
    return {"name": difference_label(label), **cells}, {"name": "dim", **styles}


def _columns(rows: Sequence[Mapping[str, str]], metrics: TaskMetrics) -> list[Column]:
    primary, loss, *others = metrics.over_seeds
    headings = {"name": "weights", **{metric.key: heading(metric) for metric in metrics.over_seeds}, "n": "seeds"}
    ranks = ["name", primary.key, loss.key, "n", *(metric.key for metric in others)]
    columns = []
    for key, text in headings.items():
        width = max(cell_len(item) for item in (text, *(row.get(key, "") for row in rows)))
        is_name = key == "name"
        columns.append(Column(key, text, width if is_name else width + 2, rank=ranks.index(key), left=is_name))
    return columns


def seed_verdict(
    weights: Mapping[str, Row], *, metrics: TaskMetrics = CLASSIFICATION, against: Against | None = None
) -> list[str]:
    """Return one sentence for each comparison of an average: whether it helped, as far as these seeds show."""
    sentences = []
    for name, row in weights.items():
        if _is_compared(row, metrics):
            judged = _judgement(_to_reference(row, metrics), row, metrics)
            sentences.append(f"{name} vs {row['reference']}: {judged}")
        elif "no_verdict" in row:
            sentences.append(row["no_verdict"])
        if against is not None and name in against.pairs:
            judged = _judgement(against.pairs[name], row, metrics, other=against.label)
            sentences.append(f"{name} vs {against.label}: {judged}")
    return sentences


def seed_ranges(seeds: Sequence[int]) -> str:
    """Return ascending seeds as text: `0 to 4, 7, 9`."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _judgement(differences: Mapping[str, Spread], row: Row, metrics: TaskMetrics, *, other: str = "") -> str:
    num_seeds = len(differences[metrics.primary.key]["values"])
    if num_seeds < 2:
        return "no comparison: one seed has no spread to judge by"
    if not math.isfinite(sum(differences[metric.key]["mean"] for metric in metrics.compared)):
        return "no comparison: the scores are not finite"
    standings = [_standing(differences[metric.key], metric, row) for metric in metrics.compared]
    parts = [
        f"{metric.name} {_interval_text(differences[metric.key], metric)}{'' if found == UNCLEAR else f', {found}'}"
        for metric, found in zip(metrics.compared, standings, strict=True)
    ]
    concluded = _conclusion_about(other, standings) if other else conclusion(standings)
    return f"{concluded} ({'; '.join(parts)}; 95 %, {num_seeds} seeds)"


def _conclusion_about(other: str, standings: Sequence[str]) -> str:
    """Return the conclusion of a comparison with another recipe."""
    found = [word for word in ("better", "worse") if word in standings]
    return "mixed result" if len(found) == 2 else f"{found[0]} than {other}" if found else UNCLEAR


def _is_compared(row: Row, metrics: TaskMetrics) -> bool:
    """Return whether the weight set has differences: raw weights and an average of one weight set have none."""
    return row[f"{metrics.primary.key}_diff"] is not None


def _to_reference(row: Row, metrics: TaskMetrics) -> dict[str, Spread]:
    return {metric.key: row[f"{metric.key}_diff"] for metric in metrics.compared}


def _standing(difference: Spread, metric: Metric, row: Row) -> str:
    values, low, high = difference["values"], difference["low"], difference["high"]
    if low is None or abs(difference["mean"]) < metric.resolution(row[metric.key]["mean"]):
        return UNCLEAR
    if max(values) - min(values) < _ROUNDING and difference["mean"] != 0:
        # Accuracies are counts: equal ones in a few seeds show their resolution, not certainty.
        return "the same in every seed, no spread to judge by"
    low, high = sorted((metric.gain(low), metric.gain(high)))
    if low > 0:
        return "better"
    return "worse" if high < 0 else UNCLEAR


def _interval_text(difference: Spread, metric: Metric) -> str:
    mean = difference_text(metric, difference["mean"])
    if difference["low"] is None:
        return mean
    return f"{mean} [{difference_text(metric, difference['low'])}, {difference_text(metric, difference['high'])}]"


def _mean_text(spread: Spread, metric: Metric) -> str:
    return with_error(cell(metric, spread["mean"]), None if spread["sd"] is None else cell(metric, spread["sd"]))
