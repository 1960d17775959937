"""Render the page of `swa report`: one HTML file without network access, other files or scripts from elsewhere.

The table and the curves of several runs come first; the values of each run are assembled for the template `page.html`.
A chart is inline SVG of `chart.html`: lines over the epochs that differ in dash and marker as well as in color, whose
values the page's script shows under the pointer. Colors are CSS variables, so they follow light and dark; lengths are
pixels at the width of `_AREA`. Text from recipes and files is escaped and stripped of control characters wherever a
template writes it.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
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
from swa_cli.report.tables import SettingTable, columns, line_text, lines
from swa_cli.units import count_text


def render(template: str, **values: Any) -> Markup:
    """Render a template of this folder."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {
        "heading": heading,
        "score_with_error": score_with_error,
        "is_compared": is_compared,
        "difference": difference,
        "standing": standing,
        "count_text": count_text,
        "minus": MINUS,
    }
    return environment


def _printable(value: Any) -> Any:
    """Replace control characters of text; markup has been through this before."""
    return value if isinstance(value, Markup) else printable(str(value))


MOST_UNFOLDED = 3  # runs; more are folded
_DASHES: dict[Any, str] = {
    "-": "",
    "--": "6 4",
    "-.": "7 3 2 3",
    ":": "2 3",
    (0, (6, 1)): "10 2",
    (0, (4, 1, 1, 1, 1, 1)): "7 2 2 2 2 2",
}
_MARKERS = {
    "o": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "s": "M-3-3h6v6h-6z",
    "^": "M0-4l4 7h-8z",
    "v": "M0 4l4-7h-8z",
    "D": "M0-4l4 4l-4 4l-4-4z",
    "P": "M-1-4h2v3h3v2h-3v3h-2v-3h-3v-2h3z",
}
# The drawing, and the area inside its axes, in pixels.
_AREA = {"total_width": 420, "total_height": 250, "left": 52, "top": 8, "width": 358, "height": 206}


@dataclass(frozen=True)
class Line:
    """A line: its name, its CSS variable `color`, its dash and marker as matplotlib names them, and its points."""

    name: str
    color: str
    dash: Any
    marker: str | None
    points: Sequence[tuple[float, float]]  # epoch, value


def chart(
    lines: Sequence[Line],
    *,
    title: str,
    unit: str,
    end: float,
    phase: float | None = None,
    scale: tuple[float, float] | None = None,
) -> Markup:
    """Return the HTML of a chart with its legend and the place for the values.

    Args:
        lines: The lines.
        title: The title, with the unit.
        unit: The text after each value, such as ` %`.
        end: The last epoch.
        phase: The epoch at which averaging begins; the rest is shaded.
        scale: The ends of the scale; None: from 0 to beyond the largest value.
    """
    from matplotlib.ticker import MaxNLocator

    largest = max((value for line in lines for _, value in line.points), default=0.0)
    low, high = scale or (0.0, 1.05 * largest or 1.0)

    def x(epoch: float) -> float:
        return round(_AREA["left"] + _AREA["width"] * epoch / end, 1)

    def y(value: float) -> float:
        return round(_AREA["top"] + _AREA["height"] * (high - value) / (high - low), 1)  # pixels count from the top

    ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])
    series = [
        {"name": line.name, "points": [[epoch, value, f"{value:.4g}"] for epoch, value in line.points]}
        for line in lines
    ]
    values = {"left": _AREA["left"], "width": _AREA["width"], "end": end, "unit": unit, "series": series}
    return render(
        "chart.html",
        title=title,
        area=_AREA,
        values=json.dumps(values, ensure_ascii=False),  # for the page's script
        phase=None if phase is None else {"x": x(phase), "width": round(x(end) - x(phase), 1)},
        x_ticks=[(x(tick), f"{tick:g}") for tick in ticks.tick_values(0, end) if 0 <= tick <= end],
        y_ticks=[(y(tick), f"{tick:.6g}") for tick in ticks.tick_values(low, high) if low <= tick <= high],
        lines=[_drawn(line, [(x(epoch), y(value)) for epoch, value in line.points]) for line in lines],
    )


def ends_of_scale(
    lines: Sequence[Line], *, end: float, is_lower_better: bool, limits: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    """Return the ends of a scale.

    Args:
        lines: The lines.
        end: The last epoch.
        is_lower_better: Which end of the scale cuts off the steep start of a long run.
        limits: The ends of what values can be; the scale leaves them only where a value does.
    """
    points = [point for line in lines for point in line.points]
    values = [value for _, value in points]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if settled := plots.settled(points, end=end):
        low, high = (low, max(settled)) if is_lower_better else (min(settled), high)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return plots.within(low - margin, high + margin, values, limits)


def _drawn(line: Line, places: Sequence[tuple[float, float]]) -> dict[str, object]:
    """Return a line as the template draws it: its path, and the places of its markers."""
    has_marks = line.marker is not None and len(places) <= curves.MAX_MARKERS
    return {
        "name": line.name,
        "color": line.color,
        "dash": _DASHES[line.dash],
        "path": "M" + "L".join(f"{left} {top}" for left, top in places),
        "marker": None if line.marker is None else _MARKERS[line.marker],
        "marks": places if has_marks else [],
    }


Row = Mapping[str, Any]
_COLORS = {look["color"]: f"a{index}" for index, look in enumerate(plots.AVERAGES)}
_COLORS |= {plots.TRAIN["color"]: "train", plots.VAL["color"]: "val"}


@dataclass(frozen=True)
class Drawing:
    """A picture as SVG; a wide one has much detail."""

    title: str
    svg: bytes
    is_wide: bool = False

    @property
    def base64(self) -> str:
        """The SVG as text for a data URL."""
        return base64.b64encode(self.svg).decode()


@dataclass(frozen=True)
class TextTable:
    """A table of texts under its title."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


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
    recipe: str
    versions: Sequence[tuple[str, str]]
    commands: Sequence[str]  # how to run it again
    tables: Sequence[TextTable] = ()
    trained: str | None = None  # the loss that is trained, if it is not that of the task
    tta: str = "none"  # the test-time augmentation, as `eval.tta` names it


def document(
    runs: Sequence[RunOnPage],
    *,
    title: str,
    tables: Sequence[SettingTable] = (),
    overlays: Sequence[Drawing] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return the HTML of the page.

    Args:
        runs: The runs to show one by one.
        title: The title of the page.
        tables: The tables of several runs.
        overlays: Their curves.
        notes: What was left out, and why.
    """
    scales: dict[
        tuple[str, ...], dict[str, tuple[float, float]]
    ] = {}  # metrics of a task -> metric -> ends of the scale
    for run in runs:
        of_task = scales.setdefault(run.metrics.keys, {})
        for metric, shown in _metric_lines(run):
            limits = plots.bounds(metric)
            low, high = ends_of_scale(shown, end=_end(run), is_lower_better=metric.is_lower_better, limits=limits)
            known = of_task.get(metric.key, (low, high))
            of_task[metric.key] = min(low, known[0]), max(high, known[1])
    return render(
        "page.html",
        title=title,
        articles=[(run, _charts(run, scales[run.metrics.keys])) for run in runs],
        is_folded=len(runs) > MOST_UNFOLDED,
        tables=[(table, columns(table), lines(table)) for table in tables],
        line_text=line_text,
        overlays=overlays,
        notes=notes,
        metrics_of=lambda run: shown_metrics(run.weights.values(), run.metrics),
    )


def _end(run: RunOnPage) -> float:
    return max([1.0, len(run.lr) / run.steps_per_epoch, *(row["epoch"] for row in run.rows)])


def _metric_lines(run: RunOnPage) -> list[tuple[Metric, list[Line]]]:
    """Return the lines of the loss and of the primary metric, where there are any."""
    found = []
    for metric in run.metrics.loss, run.metrics.primary:
        is_loss = metric is run.metrics.loss
        drawn = curves.lines(run.rows, names=list(run.averaging), metrics=run.metrics, is_loss=is_loss)
        shown = [
            Line(printable(name), _COLORS[look["color"]], look["linestyle"], look.get("marker"), points)
            for name, look, points in drawn
        ]
        if shown:
            found.append((metric, shown))
    return found


def _charts(run: RunOnPage, scales: Mapping[str, tuple[float, float]]) -> list[Markup]:
    """Draw the loss, the primary metric and the learning rate over the epochs; all runs of a task have one scale."""
    steps = next(iter(run.averaging.values()), ())
    phase = steps[0] / run.steps_per_epoch if steps else None
    charts = []
    for metric, shown in _metric_lines(run):
        is_loss = metric is run.metrics.loss
        title = plots.loss_title(run.metrics, trained=run.trained) if is_loss else plots.axis_title(metric)
        unit = " %" if metric.is_percent else ""
        charts.append(chart(shown, title=title, unit=unit, end=_end(run), phase=phase, scale=scales[metric.key]))
    every = max(1, run.steps_per_epoch // 4)
    points = [(step / run.steps_per_epoch, run.lr[step]) for step in range(0, len(run.lr), every)]
    if points:
        rate = Line("learning rate", "val", "-", None, points)
        charts.append(chart([rate], title="learning rate", unit="", end=_end(run), phase=phase))
    return charts
