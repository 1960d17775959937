"""The final comparison: every weight set's scores with their sampling errors, and whether averaging helped.

An average (of weights, or that of probabilities which an ensemble is) is judged by its difference to `last` on the
same samples, in units of that difference's paired standard error: within two of them nothing was shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.report.columns import (
    Column,
    cell_line,
    count,
    fit,
    head_line,
    number,
    percent,
    signed,
    with_error,
)
from swa_cli.report.spelling import MINUS, safe

Scores = Mapping[str, Any]

CLEAR = 2.0  # standard errors that make a difference
TO_LAST = f"  {MINUS} last"
LONGEST_NAME = 20
STYLES = {"better": "green", "worse": "red"}


def score_table(scores: Mapping[str, Scores], *, console: Console) -> list[Text]:
    """A line for each weight set, and under each average its paired difference to `last`."""
    names = {name: safe(name, console=console)[:LONGEST_NAME] for name in scores}
    has_top5 = any(values.get("top5") is not None for values in scores.values())
    columns = fit(_columns(list(names.values()), has_top5=has_top5), width=console.width)
    lines = [head_line(columns, console=console)]
    for name, values in scores.items():
        cells = {
            "name": names[name],
            "accuracy": with_error(percent(values["accuracy"]), _error(values, "accuracy_se", percent)),
            "top5": percent(values.get("top5")),
            "nll": with_error(number(values["nll"]), _error(values, "nll_se", number)),
            "ece": number(values["ece"]),
            "brier": number(values["brier"]),
            "count": count(values.get("members", values.get("count"))),
            "batchnorm": values["batchnorm"],
        }
        lines.append(cell_line(columns, cells, console=console))
        if _is_compared(name, values):
            differences = {
                "name": TO_LAST,
                "accuracy": _accuracy_difference(values),
                "nll": _nll_difference(values),
            }
            styles = {"accuracy": STYLES.get(_accuracy_standing(values), "")}
            styles |= {"nll": STYLES.get(_nll_standing(values), ""), "name": "dim"}
            lines.append(cell_line(columns, differences, console=console, styles=styles))
    return lines


def ensemble_table(curve: Sequence[Scores], *, console: Console) -> list[Text]:
    """A line for each number of members."""
    columns = [
        Column("members", "members", 7, rank=0),
        Column("accuracy", "accuracy %", 15, rank=1),
        Column("nll", "NLL", 16, rank=2),
    ]
    cells = [
        {"members": str(row["members"]), "accuracy": percent(row["accuracy"]), "nll": number(row["nll"])}
        for row in curve
    ]
    return [head_line(columns, console=console), *(cell_line(columns, row, console=console) for row in cells)]


def verdict(scores: Mapping[str, Scores]) -> list[str]:
    """One sentence for each average that was compared with `last`: did averaging help?"""
    last = scores.get("last")
    if last is None:
        return []
    return [f"{name}: {_judgement(values, last=last)}" for name, values in scores.items() if _is_compared(name, values)]


def conclusion(standings: Collection[str], *, means: str = "averaging") -> str:
    """What the standings of accuracy and NLL, `better`, `worse` or another word, come to."""
    if "better" in standings:
        return "mixed result" if "worse" in standings else f"{means} helped"
    return f"{means} did not help" if "worse" in standings else "no clear difference to last"


def _judgement(values: Scores, *, last: Scores) -> str:
    if not math.isfinite(values["accuracy_diff"] + values["nll_diff"]):
        return "no comparison with last: the scores are not finite"
    standings = _accuracy_standing(values), _nll_standing(values)
    means = "ensembling" if values.get("members") else "averaging"
    accuracy = f"{percent(values['accuracy'])} % against {percent(last['accuracy'])} %"
    nll = f"{number(values['nll'])} against {number(last['nll'])}"
    return (
        f"{conclusion(standings, means=means)}: accuracy {accuracy} ({_accuracy_difference(values)}): {standings[0]}; "
        f"NLL {nll} ({_nll_difference(values)}): {standings[1]}"
    )


def _is_compared(name: str, values: Scores) -> bool:
    return name != "last" and values.get("accuracy_diff") is not None and values.get("nll_diff") is not None


def _accuracy_standing(values: Scores) -> str:
    return _standing(values["accuracy_diff"], error=values["accuracy_diff_se"])


def _nll_standing(values: Scores) -> str:
    return _standing(-values["nll_diff"], error=values["nll_diff_se"])


def _standing(gain: float, *, error: float) -> str:
    if gain > CLEAR * error:
        return "better"
    return "worse" if -gain > CLEAR * error else "no clear difference"


def _accuracy_difference(values: Scores) -> str:
    return with_error(signed(100 * values["accuracy_diff"], digits=2), percent(values["accuracy_diff_se"]))


def _nll_difference(values: Scores) -> str:
    return with_error(signed(values["nll_diff"], digits=3), number(values["nll_diff_se"]))


def _error(values: Scores, key: str, write: Any) -> str | None:
    return None if values.get(key) is None else write(values[key])


def _columns(names: list[str], *, has_top5: bool) -> list[Column]:
    width = max(cell_len(name) for name in (*names, "weights", TO_LAST))
    columns = [
        Column("name", "weights", width, rank=0, left=True),
        Column("accuracy", "accuracy %", 15, rank=1),
        Column("top5", "top-5 %", 9, rank=6),
        Column("nll", "NLL", 16, rank=2),
        Column("ece", "ECE", 7, rank=3),
        Column("brier", "Brier", 7, rank=7),
        Column("count", "n", 5, rank=4),
        Column("batchnorm", "BatchNorm", 12, rank=5),
    ]
    return [column for column in columns if has_top5 or column.key != "top5"]
