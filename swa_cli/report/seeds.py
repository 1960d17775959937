"""Show a comparison over seeds: means with their spread, and what the seeds say about averaging.

An average is judged by the mean of its differences, one per seed, to the reference of its run and to another recipe
with the same seeds, and by their 95 % interval: an interval that holds zero shows nothing. Column widths follow the
cells, as an interval of two seeds can be very wide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report.console_text import Cells, Column, Lines, block, table, widest
from swa_cli.report.scores import (
    NOT_FINITE,
    UNCLEAR,
    Judged,
    conclusion,
    difference_cells,
    heading,
    interval_text,
    known,
    largest,
    reasons,
    short,
    value_with_error,
)
from swa_cli.units import count_text

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
    title = (
        f"{split}: {count_text(samples, 'sample')}, seeds {seed_ranges(seeds)} (± standard deviation, [95 % interval])"
    )
    rows: list[Cells] = []
    for name, row in weights.items():
        rows.append(_score_cells(name, row, metrics))
        for found in _comparisons(name, row, metrics, against):
            rows.append(difference_cells(short(found.label), _judged(found.differences, row, metrics)))
    if against is not None:
        rows.append(_score_cells(against.label, against.scores, metrics))
    verdict = seed_verdict(weights, metrics=metrics, against=against)
    return block(title, table(_columns(rows, metrics), rows), *verdict)


def seed_verdict(
    weights: Mapping[str, Row], *, metrics: TaskMetrics = CLASSIFICATION, against: Against | None = None
) -> list[str]:
    """Return one sentence for each comparison of an average: whether it helped, as far as these seeds show."""
    sentences = []
    for name, row in weights.items():
        if not _has_reference(row, metrics) and "no_verdict" in row:
            sentences.append(row["no_verdict"])
        for found in _comparisons(name, row, metrics, against):
            sentences.append(f"{name} vs {found.label}: {_judgement(found, row, metrics)}")
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


@dataclass(frozen=True)
class _Comparison:
    label: str
    differences: Mapping[str, Spread]  # of each judged metric
    better: str  # the conclusion if the average is better
    worse: str


def _comparisons(name: str, row: Row, metrics: TaskMetrics, against: Against | None) -> list[_Comparison]:
    """Return the comparisons of a weight set: with its reference, and with the other recipe."""
    found = []
    if _has_reference(row, metrics):
        differences = {metric.key: row[f"{metric.key}_diff"] for metric in metrics.compared}
        found.append(_Comparison(row["reference"], differences, "averaging helped", "averaging did not help"))
    if against is not None and name in against.pairs:
        label = against.label
        found.append(_Comparison(label, against.pairs[name], f"better than {label}", f"worse than {label}"))
    return found


def _has_reference(row: Row, metrics: TaskMetrics) -> bool:
    """Return whether there are differences to a reference: raw weights and an average of one weight set have none."""
    return row[f"{metrics.primary.key}_diff"] is not None


def _judgement(found: _Comparison, row: Row, metrics: TaskMetrics) -> str:
    num_seeds = len(found.differences[metrics.primary.key]["values"])
    if num_seeds < 2:
        return "no comparison: one seed has no spread to judge by"
    if known(found.differences[metrics.loss.key]["mean"]) is None:  # every finite output has a loss
        return NOT_FINITE
    judged = _judged(found.differences, row, metrics)
    concluded = conclusion(judged, better=found.better, worse=found.worse)
    return f"{concluded} ({reasons(judged, metrics)}; 95 %, {num_seeds} seeds)"


def _judged(differences: Mapping[str, Spread], row: Row, metrics: TaskMetrics) -> Judged:
    return {
        metric.key: (
            _interval_text(differences[metric.key], metric, row),
            _standing(differences[metric.key], metric, row),
        )
        for metric in metrics.compared
    }


def _standing(difference: Spread, metric: Metric, row: Row) -> str:
    values, low, high = difference["values"], difference["low"], difference["high"]
    if known(low) is None or abs(difference["mean"]) < metric.resolution(row[metric.key]["mean"]):
        return UNCLEAR
    if max(values) - min(values) < _ROUNDING and difference["mean"] != 0:
        # Accuracies are counts: equal ones in a few seeds show their resolution, not certainty.
        return "the same in every seed, no spread to judge by"
    low, high = sorted((metric.gain(low), metric.gain(high)))
    if low > 0:
        return "better"
    return "worse" if high < 0 else UNCLEAR


def _interval_text(difference: Spread, metric: Metric, row: Row) -> str:
    return interval_text(metric, difference, scale=largest(row[metric.key]["mean"], difference["mean"]))


def _score_cells(name: str, row: Row, metrics: TaskMetrics) -> Cells:
    cells = {"name": short(name), "n": str(row["n"])}
    for metric in metrics.over_seeds:
        sd = row[metric.key]["sd"] if metric in metrics.compared else None
        cells[metric.key] = value_with_error(metric, known(row[metric.key]["mean"]), sd)
    return cells


def _columns(rows: Sequence[Cells], metrics: TaskMetrics) -> list[Column]:
    primary, loss, *others = (metric.key for metric in metrics.over_seeds)
    ranks = ["name", primary, loss, "n", *others]
    columns = [Column("name", "weights", widest("name", "weights", rows), rank=0, left=True)]
    headings = {**{metric.key: heading(metric) for metric in metrics.over_seeds}, "n": "seeds"}
    for key, text in headings.items():
        columns.append(Column(key, text, widest(key, text, rows) + 2, rank=ranks.index(key)))
    return columns
