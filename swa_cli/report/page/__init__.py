"""Render the page of `swa report`: one HTML file without network access, other files or scripts from elsewhere.

The values of one run, or of several side by side, are assembled for the template `page.html`. A chart is inline SVG of
`chart.html`: lines over the epochs that differ in dash and marker as well as in color, whose values the page's script
shows under the pointer. Colors are CSS variables, so they follow light and dark; lengths are pixels at the width of
`_AREA`. Text from recipes and files is escaped and stripped of control characters wherever a template writes it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from swa_cli.metrics.metric import Metric, TaskMetrics
from swa_cli.report import plots
from swa_cli.report.console_text import MINUS, printable
from swa_cli.report.plots import curves
from swa_cli.report.scores import difference, heading, is_compared, score_with_error, shown_metrics, standing


def render(template: str, **values: Any) -> Markup:
    """Render a template of this folder."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )


def _printable(value: Any) -> Any:
    """Replace control characters of text; markup has been through this before."""
    return value if isinstance(value, Markup) else printable(str(value))


_MAX_MARKERS = 12
_STEEP, _LONG_RUN = 0.2, 10  # see `plots/curves.py`
_DASHES = {"-": "", "--": "6 4", "-.": "7 3 2 3", ":": "2 3"}
_MARKERS = {
    "o": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "s": "M-3-3h6v6h-6z",
    "^": "M0-4l4 7h-8z",
    "v": "M0 4l4-7h-8z",
    "D": "M0-4l4 4l-4 4l-4-4z",
    "P": "M-1-4h2v3h3v2h-3v3h-2v-3h-3v-2h3z",
}


@dataclass(frozen=True)
class _Area:
    """The drawing, and the area inside its axes."""

    total_width: int = 420
    total_height: int = 250
    left: int = 52
    right: int = 410
    top: int = 8
    height: int = 206

    @property
    def width(self) -> int:
        return self.right - self.left


_AREA = _Area()


@dataclass(frozen=True)
class Line:
    """A line: its name, its CSS variable `color`, its dash and marker as matplotlib names them, and its points."""

    name: str
    color: str
    dash: str
    marker: str | None
    points: Sequence[tuple[float, float]]  # epoch, value


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    unit: str,
    end: float,
    phase: float | None = None,
    is_lower_better: bool = True,
    from_zero: bool = False,
) -> Markup:
    """Return the HTML of a chart with its legend and the place for the values.

    Args:
        lines: The lines.
        title: The title, with the unit.
        unit: The text after each value, such as ` %`.
        end: The last epoch.
        phase: The epoch at which averaging begins; the rest is shaded.
        is_lower_better: Which end of the scale cuts off the steep start of a long run.
        from_zero: Start the scale at 0.
    """
    low, high = _scale(lines, end=end, is_lower_better=is_lower_better, from_zero=from_zero)

    def x(epoch: float) -> float:
        return _AREA.left + _AREA.width * epoch / end

    def y(value: float) -> float:
        return _AREA.top + _AREA.height * (1 - (value - low) / (high - low))  # pixels count from the top

    return render(
        "chart.html",
        title=title,
        area=_AREA,
        values=_values(lines, end=end, unit=unit),
        phase=None if phase is None else {"x": f"{x(phase):.1f}", "width": f"{x(end) - x(phase):.1f}"},
        x_ticks=[{"at": f"{x(tick):.1f}", "text": f"{tick:g}"} for tick in _ticks(0, end)],
        y_ticks=[
            {"at": f"{y(tick):.1f}", "text_at": f"{y(tick) + 4:.1f}", "text": f"{tick:.6g}"}
            for tick in _ticks(low, high)
        ],
        lines=[_drawn(line, x, y) for line in lines],
    )


def _values(lines: Sequence[Line], *, end: float, unit: str) -> str:
    """Return what the page's script needs, as JSON."""
    series = [
        {"name": line.name, "points": [[epoch, value, f"{value:.4g}"] for epoch, value in line.points]}
        for line in lines
    ]
    values = {"left": _AREA.left, "width": _AREA.width, "end": end, "unit": unit, "series": series}
    return json.dumps(values, ensure_ascii=False)


def _drawn(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> dict[str, object]:
    """Return a line as the template draws it: its path, and the places of its markers."""
    places = [(f"{x(epoch):.1f}", f"{y(value):.1f}") for epoch, value in line.points]
    every = max(1, math.ceil(len(places) / _MAX_MARKERS))
    return {
        "name": line.name,
        "color": line.color,
        "dash": _DASHES[line.dash],
        "path": "M" + "L".join(f"{left} {top}" for left, top in places),
        "marker": None if line.marker is None else _MARKERS[line.marker],
        "marks": [] if line.marker is None else places[::every],
    }


def _scale(lines: Sequence[Line], *, end: float, is_lower_better: bool, from_zero: bool) -> tuple[float, float]:
    """Return the ends of the scale, which may cut off the steep start of a long run."""
    every = [value for line in lines for _, value in line.points]
    settled = [value for line in lines for epoch, value in line.points if epoch > end * _STEEP]
    low, high = min(every, default=0.0), max(every, default=1.0)
    if settled and end >= _LONG_RUN and not from_zero:
        low, high = (low, max(settled)) if is_lower_better else (min(settled), high)
    low = 0.0 if from_zero else low
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if from_zero else low - margin), high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers from `low` to `high`."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


Row = Mapping[str, Any]
_COLORS = {look["color"]: f"a{index}" for index, look in enumerate(plots.AVERAGES)}
_COLORS |= {plots.TRAIN["color"]: "train", plots.VAL["color"]: "val"}


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
            title = run.metrics.loss_axis if is_loss else plots.axis_title(metric)
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
