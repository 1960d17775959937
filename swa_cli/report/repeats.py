"""The comparison over seeds: means with their spread, and what the seeds together say about averaging.

An average is judged by the mean of its differences to `last`, one a seed, and their 95 % interval: where that
holds zero, nothing was shown. Widths follow the cells: an interval of two seeds can be very wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.report.columns import Column, cell_line, fit, head_line, with_error
from swa_cli.report.measures import CLASSIFICATION, Measure, Measures
from swa_cli.report.scores import LONGEST_NAME, STYLES, TO_LAST, conclusion
from swa_cli.report.spelling import safe

Spread = Mapping[str, Any]

_ROUNDING = 1e-9  # differences of one fraction in several seeds differ by this at most


def repeat_table(
    weights: Mapping[str, Mapping[str, Any]], *, console: Console, measures: Measures = CLASSIFICATION
) -> list[Text]:
    """A line for each weight set, and under each average its mean difference to `last` with the interval."""
    rows: list[tuple[dict[str, str], dict[str, str]]] = []
    for name, values in weights.items():
        cells = {
            "name": safe(name, console=console)[:LONGEST_NAME],
            **{each.key: each.cell(values[each.key]["mean"]) for each in measures.over_seeds},
            **{each.key: _mean(values[each.key], each) for each in measures.compared},
            "n": str(values["n"]),
        }
        rows.append((cells, {}))
        if _is_compared(values, measures):
            differences = {each.key: _interval(values, each) for each in measures.compared}
            styles = {each.key: STYLES.get(_standing(values, each), "") for each in measures.compared}
            rows.append(({"name": TO_LAST, **differences}, {"name": "dim", **styles}))
    columns = fit(_columns([cells for cells, _ in rows], measures), width=console.width)
    lines = [cell_line(columns, cells, console=console, styles=styles) for cells, styles in rows]
    return [head_line(columns, console=console), *lines]


def repeat_verdict(weights: Mapping[str, Mapping[str, Any]], *, measures: Measures = CLASSIFICATION) -> list[str]:
    """One sentence for each average: did averaging help, as far as these seeds can tell?"""
    return [
        f"{name}: {_judgement(values, measures)}" for name, values in weights.items() if _is_compared(values, measures)
    ]


def spelled(seeds: Sequence[int]) -> str:
    """Seeds in ascending order as a person says them: `0 to 4, 7, 9`."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _judgement(values: Mapping[str, Any], measures: Measures) -> str:
    if values["n"] < 2:
        return "no comparison with last: one seed has no spread to judge by"
    if not math.isfinite(sum(values[f"{each.key}_diff"]["mean"] for each in measures.compared)):
        return "no comparison with last: the scores are not finite"
    standings = [_standing(values, each) for each in measures.compared]
    sentences = [
        f"{each.name} {_interval(values, each)}: {standing}"
        for each, standing in zip(measures.compared, standings, strict=True)
    ]
    return f"{conclusion(standings)}: {'; '.join(sentences)} (at 95 %, {values['n']} seeds)"


def _is_compared(values: Mapping[str, Any], measures: Measures) -> bool:
    """`last` has no difference to itself."""
    return values[f"{measures.own.key}_diff"] is not None


def _standing(values: Mapping[str, Any], measure: Measure) -> str:
    difference: Spread = values[f"{measure.key}_diff"]
    seeds, low, high = difference["values"], difference["low"], difference["high"]
    if low is None:
        return "no clear difference"
    if max(seeds) - min(seeds) < _ROUNDING and difference["mean"] != 0:
        # Accuracies are counts: equal ones in a few seeds show how coarse they are, and not that they are certain.
        return "the same in every seed, no spread to judge by"
    low, high = sorted((measure.gain(low), measure.gain(high)))
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no clear difference"


def _interval(values: Mapping[str, Any], measure: Measure) -> str:
    difference: Spread = values[f"{measure.key}_diff"]
    mean = measure.difference(difference["mean"])
    if difference["low"] is None:
        return mean
    return f"{mean} [{measure.difference(difference['low'])}, {measure.difference(difference['high'])}]"


def _mean(spread: Spread, measure: Measure) -> str:
    return with_error(measure.cell(spread["mean"]), None if spread["sd"] is None else measure.cell(spread["sd"]))


def _columns(rows: Sequence[Mapping[str, str]], measures: Measures) -> list[Column]:
    own, loss, *others = measures.over_seeds
    headings = {"name": "weights", **{each.key: each.heading for each in measures.over_seeds}, "n": "seeds"}
    importance = ["name", own.key, loss.key, "n", *(each.key for each in others)]
    columns = []
    for key, heading in headings.items():
        width = max(cell_len(text) for text in (heading, *(row.get(key, "") for row in rows)))
        is_name = key == "name"
        columns.append(Column(key, heading, width if is_name else width + 2, rank=importance.index(key), left=is_name))
    return columns
