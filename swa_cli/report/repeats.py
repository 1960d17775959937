"""The comparison over seeds: means with their spread, and what the seeds together say about averaging.

An average is judged by the mean of its differences to `last`, one a seed, and their 95 % interval: where that
holds zero, nothing was shown. Widths follow the cells: an interval of two seeds can be very wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.report.columns import Column, cell_line, fit, head_line, number, percent, signed, with_error
from swa_cli.report.scores import LONGEST_NAME, STYLES, TO_LAST, conclusion
from swa_cli.report.spelling import safe

Spread = Mapping[str, Any]

_HEADINGS = {"name": "weights", "accuracy": "accuracy %", "nll": "NLL", "ece": "ECE", "brier": "Brier", "n": "seeds"}
_IMPORTANCE = ("name", "accuracy", "nll", "n", "ece", "brier")
_ROUNDING = 1e-9  # differences of one fraction in several seeds differ by this at most


def repeat_table(weights: Mapping[str, Mapping[str, Any]], *, console: Console) -> list[Text]:
    """A line for each weight set, and under each average its mean difference to `last` with the interval."""
    rows: list[tuple[dict[str, str], dict[str, str]]] = []
    for name, values in weights.items():
        cells = {
            "name": safe(name, console=console)[:LONGEST_NAME],
            "accuracy": _mean(values["accuracy"], percent),
            "nll": _mean(values["nll"], number),
            "ece": number(values["ece"]["mean"]),
            "brier": number(values["brier"]["mean"]),
            "n": str(values["n"]),
        }
        rows.append((cells, {}))
        if values["accuracy_diff"] is not None:
            cells = {"name": TO_LAST, "accuracy": _accuracy_difference(values), "nll": _nll_difference(values)}
            standings = dict(zip(("accuracy", "nll"), _standings(values), strict=True))
            styles = {key: STYLES.get(standing, "") for key, standing in standings.items()}
            rows.append((cells, styles | {"name": "dim"}))
    columns = fit(_columns([cells for cells, _ in rows]), width=console.width)
    lines = [cell_line(columns, cells, console=console, styles=styles) for cells, styles in rows]
    return [head_line(columns, console=console), *lines]


def repeat_verdict(weights: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence for each average: did averaging help, as far as these seeds can tell?"""
    return [f"{name}: {_judgement(values)}" for name, values in weights.items() if values["accuracy_diff"] is not None]


def spelled(seeds: Sequence[int]) -> str:
    """Seeds in ascending order as a person says them: `0 to 4, 7, 9`."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _judgement(values: Mapping[str, Any]) -> str:
    if values["n"] < 2:
        return "no comparison with last: one seed has no spread to judge by"
    if not math.isfinite(values["accuracy_diff"]["mean"] + values["nll_diff"]["mean"]):
        return "no comparison with last: the scores are not finite"
    standings = _standings(values)
    return (
        f"{conclusion(standings)}: accuracy {_accuracy_difference(values)}: {standings[0]}; "
        f"NLL {_nll_difference(values)}: {standings[1]} (at 95 %, {values['n']} seeds)"
    )


def _standings(values: Mapping[str, Any]) -> tuple[str, str]:
    """Of accuracy and NLL."""
    return _standing(values["accuracy_diff"], sign=1), _standing(values["nll_diff"], sign=-1)


def _standing(difference: Spread, *, sign: int) -> str:
    values, low, high = difference["values"], difference["low"], difference["high"]
    if low is None:
        return "no clear difference"
    if max(values) - min(values) < _ROUNDING and difference["mean"] != 0:
        # Accuracies are counts: equal ones in a few seeds show how coarse they are, and not that they are certain.
        return "the same in every seed, no spread to judge by"
    low, high = sorted((sign * low, sign * high))
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no clear difference"


def _accuracy_difference(values: Mapping[str, Any]) -> str:
    return _interval(values["accuracy_diff"], lambda value: signed(100 * value, digits=2))


def _nll_difference(values: Mapping[str, Any]) -> str:
    return _interval(values["nll_diff"], lambda value: signed(value, digits=3))


def _interval(difference: Spread, write: Callable[[float], str]) -> str:
    mean = write(difference["mean"])
    if difference["low"] is None:
        return mean
    return f"{mean} [{write(difference['low'])}, {write(difference['high'])}]"


def _mean(spread: Spread, write: Callable[[float], str]) -> str:
    return with_error(write(spread["mean"]), None if spread["sd"] is None else write(spread["sd"]))


def _columns(rows: Sequence[Mapping[str, str]]) -> list[Column]:
    columns = []
    for key, heading in _HEADINGS.items():
        width = max(cell_len(text) for text in (heading, *(row.get(key, "") for row in rows)))
        is_name = key == "name"
        columns.append(Column(key, heading, width if is_name else width + 2, rank=_IMPORTANCE.index(key), left=is_name))
    return columns
