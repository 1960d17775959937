"""The comparison over seeds: means with their spread, and what the seeds together say about averaging.

An average is judged by the mean of its differences, one per seed, to the reference of its run and to another recipe
with the same seeds, and their 95 % interval: where that holds zero, nothing was shown. Widths follow the cells: an
interval of two seeds can be very wide.
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
from swa_cli.report.console_text import safe
from swa_cli.report.tables.columns import Column, cell_line, fit, head_line, with_error
from swa_cli.report.tables.scores import LONGEST_NAME, STYLES, UNCLEAR, conclusion, difference_label

SwagMoments = Mapping[str, Any]

_ROUNDING = 1e-9  # differences of one fraction in several seeds differ by this at most


@dataclass(frozen=True)
class Against:
    """Another recipe with the same seeds, as the table shows it."""

    label: str  # baseline, or what the other recipe is called
    scores: Mapping[str, Any]  # of what its runs came to, as `repeat_table` takes them
    pairs: Mapping[str, Mapping[str, SwagMoments]]  # weight set -> score -> its differences to them


def repeat_table(
    weights: Mapping[str, Mapping[str, Any]],
    *,
    console: Console,
    metrics: TaskMetrics = CLASSIFICATION,
    against: Against | None = None,
) -> list[Text]:
    """A line for each weight set, and under each average its mean differences with their intervals."""
    rows: list[tuple[dict[str, str], dict[str, str]]] = []
    for name, values in weights.items():
        rows.append(({**_scores(values, metrics), "name": safe(name, console=console)[:LONGEST_NAME]}, {}))
        if _is_compared(values, metrics):
            rows.append(_difference_row(values["reference"], _to_reference(values, metrics), values, metrics))
        if against is not None and name in against.pairs:
            label = safe(against.label, console=console)[:LONGEST_NAME]
            rows.append(_difference_row(label, against.pairs[name], values, metrics))
    if against is not None:
        label = safe(against.label, console=console)[:LONGEST_NAME]
        rows.append(({**_scores(against.scores, metrics), "name": label}, {}))
    columns = fit(_columns([cells for cells, _ in rows], metrics), width=console.width)
    lines = [cell_line(columns, cells, console=console, styles=styles) for cells, styles in rows]
    return [head_line(columns, console=console), *lines]


def _scores(values: Mapping[str, Any], metrics: TaskMetrics) -> dict[str, str]:
    return {
        **{each.key: each.cell(values[each.key]["mean"]) for each in metrics.over_seeds},
        **{each.key: _mean(values[each.key], each) for each in metrics.compared},
        "n": str(values["n"]),
    }


def _difference_row(
    label: str, differences: Mapping[str, SwagMoments], values: Mapping[str, Any], metrics: TaskMetrics
) -> tuple[dict[str, str], dict[str, str]]:
    cells = {each.key: _interval(differences[each.key], each) for each in metrics.compared}
    standings = {each.key: _standing(differences[each.key], each, values) for each in metrics.compared}
    styles = {key: STYLES.get(standing, "") for key, standing in standings.items()}
    return {"name": difference_label(label), **cells}, {"name": "dim", **styles}


def repeat_verdict(
    weights: Mapping[str, Mapping[str, Any]],
    *,
    metrics: TaskMetrics = CLASSIFICATION,
    against: Against | None = None,
) -> list[str]:
    """One sentence for each average and what it is compared with: did it help, as far as these seeds can tell?"""
    sentences = []
    for name, values in weights.items():
        if _is_compared(values, metrics):
            judged = _judgement(_to_reference(values, metrics), values, metrics)
            sentences.append(f"{name} vs {values['reference']}: {judged}")
        elif "no_verdict" in values:
            sentences.append(values["no_verdict"])
        if against is not None and name in against.pairs:
            judged = _judgement(against.pairs[name], values, metrics, other=against.label)
            sentences.append(f"{name} vs {against.label}: {judged}")
    return sentences


def spelled(seeds: Sequence[int]) -> str:
    """Seeds in ascending order as a person says them: `0 to 4, 7, 9`."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _judgement(
    differences: Mapping[str, SwagMoments], values: Mapping[str, Any], metrics: TaskMetrics, *, other: str = ""
) -> str:
    seeds = len(differences[metrics.primary.key]["values"])
    if seeds < 2:
        return "no comparison: one seed has no spread to judge by"
    if not math.isfinite(sum(differences[each.key]["mean"] for each in metrics.compared)):
        return "no comparison: the scores are not finite"
    standings = [_standing(differences[each.key], each, values) for each in metrics.compared]
    parts = [
        f"{each.name} {_interval(differences[each.key], each)}{'' if standing == UNCLEAR else f', {standing}'}"
        for each, standing in zip(metrics.compared, standings, strict=True)
    ]
    concluded = _beside(standings, other) if other else conclusion(standings)
    return f"{concluded} ({'; '.join(parts)}; 95 %, {seeds} seeds)"


def _beside(standings: Sequence[str], other: str) -> str:
    """What the standings to another recipe come to."""
    found = [word for word in ("better", "worse") if word in standings]
    return "mixed result" if len(found) == 2 else f"{found[0]} than {other}" if found else UNCLEAR


def _is_compared(values: Mapping[str, Any], metrics: TaskMetrics) -> bool:
    """Raw weights have no difference to a reference, nor has an average that holds one weight set."""
    return values[f"{metrics.primary.key}_diff"] is not None


def _to_reference(values: Mapping[str, Any], metrics: TaskMetrics) -> dict[str, SwagMoments]:
    return {each.key: values[f"{each.key}_diff"] for each in metrics.compared}


def _standing(difference: SwagMoments, metric: Metric, values: Mapping[str, Any]) -> str:
    seeds, low, high = difference["values"], difference["low"], difference["high"]
    if low is None or abs(difference["mean"]) < metric.resolution(values[metric.key]["mean"]):
        return UNCLEAR
    if max(seeds) - min(seeds) < _ROUNDING and difference["mean"] != 0:
        # Accuracies are counts: equal ones in a few seeds show how coarse they are, and not that they are certain.
        return "the same in every seed, no spread to judge by"
    low, high = sorted((metric.gain(low), metric.gain(high)))
    if low > 0:
        return "better"
    return "worse" if high < 0 else UNCLEAR


def _interval(difference: SwagMoments, metric: Metric) -> str:
    mean = metric.difference(difference["mean"])
    if difference["low"] is None:
        return mean
    return f"{mean} [{metric.difference(difference['low'])}, {metric.difference(difference['high'])}]"


def _mean(spread: SwagMoments, metric: Metric) -> str:
    return with_error(metric.cell(spread["mean"]), None if spread["sd"] is None else metric.cell(spread["sd"]))


def _columns(rows: Sequence[Mapping[str, str]], metrics: TaskMetrics) -> list[Column]:
    own, loss, *others = metrics.over_seeds
    headings = {"name": "weights", **{each.key: each.heading for each in metrics.over_seeds}, "n": "seeds"}
    importance = ["name", own.key, loss.key, "n", *(each.key for each in others)]
    columns = []
    for key, heading in headings.items():
        width = max(cell_len(text) for text in (heading, *(row.get(key, "") for row in rows)))
        is_name = key == "name"
        columns.append(Column(key, heading, width if is_name else width + 2, rank=importance.index(key), left=is_name))
    return columns
