"""Assemble the page: values of one run, or of several side by side, for the template `page.html`."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from swa_cli.metrics.metric import Metric, TaskMetrics
from swa_cli.report.console_text import MINUS, printable
from swa_cli.report.page import render
from swa_cli.report.page.chart import Line, chart
from swa_cli.report.plots import curves, style
from swa_cli.report.tables.metrics import heading
from swa_cli.report.tables.scores import difference, is_compared, score_with_error, shown_metrics, standing

Row = Mapping[str, Any]
_COLORS = {look["color"]: f"a{index}" for index, look in enumerate(style.AVERAGES)}
_COLORS |= {style.TRAIN["color"]: "train", style.VAL["color"]: "val"}


@dataclass(frozen=True)
class Drawing:
    """A picture as SVG."""

    title: str
    svg: bytes

    @property
    def base64(self) -> str:
        """The SVG as text for a data URL."""
        return base64.b64encode(self.svg).decode()


@dataclass(frozen=True)
class RunOnPage:
    """The values of a run that the page shows."""

    title: str
    facts: Sequence[tuple[str, str]]  # label and value
    metrics: TaskMetrics
    rows: Sequence[Row]  # of metrics.csv
    averaging: Mapping[str, Sequence[int]]  # average -> the steps it holds
    steps_per_epoch: int
    lr: Sequence[float]  # of each step
    split: str
    samples: int
    weights: Mapping[str, Row]  # final scores; empty if the run has not ended
    verdict: Sequence[str]
    drawings: Sequence[Drawing]
    notes: Sequence[str]  # what was left out, and why
    recipe: str
    versions: Sequence[tuple[str, str]]
    commands: Sequence[str]  # how to run it again


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    kind: str = ""  # CSS class


@dataclass(frozen=True)
class TableRow:
    """A row of a table."""

    cells: Sequence[Cell]
    kind: str = ""  # CSS class


@dataclass(frozen=True)
class Table:
    """A table."""

    heads: Sequence[str]
    rows: Sequence[TableRow]
    caption: str = ""


def document(runs: Sequence[RunOnPage], *, differences: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return the HTML of the page.

    Args:
        runs: At least one run.
        differences: Keys in which the recipes of several runs differ, with the value of each run.
    """
    differing = [TableRow([Cell(key), *map(Cell, values)]) for key, values in differences]
    return render(
        "page.html",
        title=runs[0].title if len(runs) == 1 else f"{len(runs)} runs",
        articles=[
            {"run": run, "scores": _scores([run]) if run.weights else None, "charts": _charts(run)} for run in runs
        ],
        all_scores=[_scores(group) for group in _comparable(runs)],
        differences=Table(["key", *(run.title for run in runs)], differing),
    )


def _charts(run: RunOnPage) -> list[Markup]:
    """Draw the loss, the primary metric and the learning rate over the epochs."""
    steps = next(iter(run.averaging.values()), ())
    phase = steps[0] / run.steps_per_epoch if steps else None
    end = max([1.0, len(run.lr) / run.steps_per_epoch, *(row["epoch"] for row in run.rows)])
    charts = []
    for metric in run.metrics.loss, run.metrics.primary:
        is_loss = metric is run.metrics.loss
        found = curves.lines(run.rows, names=list(run.averaging), metrics=run.metrics, is_loss=is_loss)
        lines = [
            Line(printable(name), _COLORS[look["color"]], look["linestyle"], look.get("marker"), points)
            for name, look, points in found
        ]
        if lines:
            title = run.metrics.loss_axis if is_loss else style.axis_title(metric)
            unit = " %" if metric.is_percent else ""
            is_lower_better = metric.is_lower_better
            charts.append(chart(lines, title=title, unit=unit, end=end, phase=phase, is_lower_better=is_lower_better))
    every = max(1, run.steps_per_epoch // 4)
    points = [(step / run.steps_per_epoch, run.lr[step]) for step in range(0, len(run.lr), every)]
    if points:
        rate = Line("learning rate", "val", "-", None, points)
        charts.append(chart([rate], title="learning rate of a step", unit="", end=end, phase=phase, from_zero=True))
    return charts


def _comparable(runs: Sequence[RunOnPage]) -> list[list[RunOnPage]]:
    """Group the ended runs that were evaluated on the same samples, a table for each group."""
    groups: dict[tuple[Any, ...], list[RunOnPage]] = {}
    for run in runs:
        if run.weights:
            groups.setdefault((run.split, run.samples, run.metrics), []).append(run)
    return list(groups.values())


def _scores(runs: Sequence[RunOnPage]) -> Table:
    """Return a row for each weight set, and under each average its paired difference to the reference of its run."""
    metrics, is_several = runs[0].metrics, len(runs) > 1
    shown = shown_metrics([row for run in runs for row in run.weights.values()], metrics)
    rows = []
    for run in runs:
        for name, row in run.weights.items():
            rows.append(TableRow([*_labels(run.title, name, is_several=is_several), *_score_cells(row, shown)]))
            if is_compared(row, metrics):
                labels = _labels("", f"{MINUS} {row['reference']}", is_several=is_several)
                rows.append(TableRow([*labels, *_difference_cells(row, shown, metrics)], kind="difference"))
    return Table(
        [*(["run"] if is_several else []), "weights", *map(heading, shown), "n", "BatchNorm"],
        rows,
        caption=f"{runs[0].split}: {runs[0].samples:,} samples, ± one standard error; differences are paired",
    )


def _labels(run: str, name: str, *, is_several: bool) -> list[Cell]:
    return [*([Cell(run)] if is_several else []), Cell(name)]


def _score_cells(row: Row, shown: Sequence[Metric]) -> list[Cell]:
    count = row.get("members", row.get("count"))
    cells = [Cell(score_with_error(row, metric)) for metric in shown]
    return [*cells, Cell("" if count is None else f"{count:,}"), Cell(str(row.get("batchnorm", "")))]


def _difference_cells(row: Row, shown: Sequence[Metric], metrics: TaskMetrics) -> list[Cell]:
    cells = []
    for metric in shown:
        if metric not in metrics.compared:
            cells.append(Cell(""))
            continue
        found = standing(row, metric)
        cells.append(Cell(difference(row, metric), kind=found if found in ("better", "worse") else ""))
    return [*cells, Cell(""), Cell("")]
