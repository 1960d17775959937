"""The table of runs and settings: its values, and its columns and cells as text, whatever the format.

A cell of several seeds is `mean ± standard deviation`; of a single one `value (standard error over samples)`. Under a
row stands its difference to another row with the 95 % interval over seeds, if one was asked for. The formats, in
`report/tables/formats.py`, write these cells, or numbers of full precision as CSV.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swa_cli.metrics.metric import Metric, TaskMetrics
from swa_cli.report.console_text import NOT_MEASURED, PLUS_MINUS, printable
from swa_cli.report.scores import cell, heading, interval_text, largest, value_with_error
from swa_cli.units import count_text

Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]  # split -> metric -> `mean`, `sd`, `se` and `values`

CAUTION = "A setting that is chosen by test scores needs other images to be judged by: choose by a validation column."


@dataclass(frozen=True)
class SettingRow:
    """A run or a setting, as a table shows it; `seeds` are those that its scores count."""

    label: str
    runs: Sequence[str]
    seeds: Sequence[int]
    params: Mapping[str, Any]  # key of the recipe -> value; None where the recipe has no such key
    weights: str
    state: str  # `finished`, `epoch 3 of 30`
    scores: Scores  # of every split, shown or not
    against: Mapping[str, Mapping[str, Mapping[str, Any]]] | None  # split -> metric -> mean, low, high and pairs
    is_best: bool  # lowest validation loss of the table


@dataclass(frozen=True)
class SettingTable:
    """Rows that were scored on the same samples.

    Attributes:
        task: The task of the recipes.
        metrics: Its metrics.
        samples: Split of the final scores -> its number of samples; empty where no run has finished.
        splits: The splits to show, validation first.
        names: Key of `params` -> the name of its column; CSV has those too that only differ between tables.
        rows: The rows, sorted.
        sort: How they are sorted, as a sentence.
        against: The label of the row that the others are compared with.
    """

    task: str
    metrics: TaskMetrics
    samples: Mapping[str, int]
    splits: Sequence[str]
    names: Mapping[str, str]
    rows: Sequence[SettingRow]
    sort: str
    against: str | None = None
    caution: str | None = None

    @property
    def title(self) -> str:
        """What the numbers are."""
        on = [
            f"{split}: {count_text(number, 'sample')}" for split, number in self.samples.items() if split in self.splits
        ]
        several = any(len(row.seeds) > 1 for row in self.rows)
        single = any(len(row.seeds) == 1 and _has_error(row, self.splits) for row in self.rows)
        words = [f"mean {PLUS_MINUS} standard deviation over seeds"] if several else []
        words += ["(standard error) of a single run"] if single else []
        words += [f"differences to {self.against} with [95 % interval]"] if self.against is not None else []
        return "; ".join([*on, ", ".join(words)] if words else on)

    @property
    def notes(self) -> list[str]:
        """The sentences below the table."""
        found = [self.sort]
        if self.against is not None:
            pairs = [_num_pairs(row) for row in self.rows if row.against is not None]
            if 0 in pairs and any(len(row.seeds) > 1 for row in self.rows):
                found.append(
                    "Where it says unpaired, fewer than two seeds are common: the interval is Welch's, and wider."
                )
            if any(low is None for row in self.rows for low in _lows(row)):
                found.append("A difference without an interval has too few seeds for one.")
        return found + ([self.caution] if self.caution else [])


@dataclass(frozen=True)
class TableColumn:
    """A column: the text of a row, and that of the line of differences below it.

    The column with the highest `rank` is left out first where the page is narrow.
    """

    key: str
    heading: str
    rank: int
    text: Callable[[SettingRow], str]
    difference: Callable[[SettingRow], str] = lambda row: ""
    is_text: bool = False


def columns(table: SettingTable) -> list[TableColumn]:
    """Return the columns of a table for people: the two judged metrics of each split, and what tells rows apart."""
    rows, names = table.rows, table.names
    found = [TableColumn("label", "run", 0, lambda row: row.label, lambda row: "  difference", is_text=True)]
    different = {
        key: name for key, name in names.items() if any(row.params[key] != rows[0].params[key] for row in rows)
    }
    for rank, (key, name) in enumerate(different.items(), start=4):
        found.append(TableColumn(key, name, rank, _param_text(key), is_text=True))
    has_several = len({row.label for row in rows}) < len(rows)  # of a setting: the weights tell them apart
    found.append(TableColumn("weights", "weights", 2 if has_several else 30, lambda row: row.weights, is_text=True))
    if any(row.state != "finished" for row in rows):
        found.append(TableColumn("state", "state", 3, lambda row: row.state, is_text=True))
    if any(len(row.seeds) > 1 for row in rows):
        found.append(TableColumn("seeds", "seeds", 29, lambda row: str(len(row.seeds)), _pairs_text))
    primary, loss = table.metrics.compared
    first = next(iter(table.splits), "")
    for split in table.splits:
        for metric in dict.fromkeys((primary, loss)):
            is_first = split == first
            rank = (1 if is_first else 2) + (0 if metric is (loss if is_first else primary) else 30)
            # Every finite output has a loss; another metric may not be defined by the samples.
            unknown = "not finite" if metric is loss else NOT_MEASURED
            texts = (_score_text(split, metric, unknown=unknown), _difference_text(split, metric, unknown=unknown))
            found.append(TableColumn(f"{split}_{metric.key}", f"{split} {heading(metric)}", rank, *texts))
    return found


def lines(table: SettingTable) -> list[tuple[SettingRow, bool]]:
    """Return the lines of a table: each row, and whether the line is that of its differences."""
    return [
        (row, is_difference) for row in table.rows for is_difference in (False, True)[: 1 + (row.against is not None)]
    ]


def line_text(column: TableColumn, row: SettingRow, *, is_difference: bool) -> str:
    """Return the text of a cell."""
    return printable(column.difference(row) if is_difference else column.text(row))


def value_text(value: Any) -> str:
    """Return a value of a recipe as text."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, float):
        return f"{value:.6g}"  # the values of a grid may be 0.009000000000000001
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _param_text(key: str) -> Callable[[SettingRow], str]:
    return lambda row: value_text(row.params[key])


def _score_text(split: str, metric: Metric, *, unknown: str) -> Callable[[SettingRow], str]:
    def text(row: SettingRow) -> str:
        found = row.scores.get(split, {}).get(metric.key)
        if found is None or not math.isfinite(found["mean"]):
            return NOT_MEASURED if found is None else unknown
        if found["sd"] is not None or found.get("se") is None:
            return value_with_error(metric, found["mean"], found["sd"])
        scale = largest(found["mean"], found["se"])
        return f"{cell(metric, found['mean'], scale=scale)} ({cell(metric, found['se'], scale=scale)})"

    return text


def _difference_text(split: str, metric: Metric, *, unknown: str) -> Callable[[SettingRow], str]:
    def text(row: SettingRow) -> str:
        found = (row.against or {}).get(split, {}).get(metric.key)
        if found is None or not math.isfinite(found["mean"]):
            return "" if found is None else unknown
        own = row.scores[split][metric.key]["mean"]
        return interval_text(metric, found, scale=largest(own, found["mean"]))

    return text


def _pairs_text(row: SettingRow) -> str:
    number = _num_pairs(row)
    return "unpaired" if number == 0 else count_text(number, "pair") if number else ""


def _num_pairs(row: SettingRow) -> int | None:
    found = [each["pairs"] for metrics in (row.against or {}).values() for each in metrics.values()]
    return min(found, default=None)


def _lows(row: SettingRow) -> list[float | None]:
    return [each["low"] for metrics in (row.against or {}).values() for each in metrics.values()]


def _has_error(row: SettingRow, splits: Sequence[str]) -> bool:
    return any(each.get("se") is not None for split in splits for each in row.scores.get(split, {}).values())
