"""The page: one HTML document of one run or of several side by side.

The only places where text becomes HTML are here and in `chart.py`; all of it goes through `escape`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from swa_cli.metrics.metric import Metric, TaskMetrics
from swa_cli.report.console_text import MINUS, printable
from swa_cli.report.page.assets import POLICY, SCRIPT, STYLE
from swa_cli.report.page.chart import Line, chart
from swa_cli.report.plots import curves, style
from swa_cli.report.tables.scores import difference, is_compared, score_with_error, standing

Row = Mapping[str, Any]
_COLORS = {look["color"]: f"a{index}" for index, look in enumerate(style.AVERAGES)}
_COLORS |= {style.TRAIN["color"]: "train", style.VAL["color"]: "val"}


@dataclass(frozen=True)
class Drawing:
    """A picture as SVG."""

    title: str
    svg: bytes


@dataclass(frozen=True)
class RunOnPage:
    """What the page says of a run, as plain values."""

    title: str
    said: Sequence[tuple[str, str]]  # what was run: label and value
    metrics: TaskMetrics
    rows: Sequence[Row]  # of metrics.csv
    averaging: Mapping[str, Sequence[int]]
    steps_per_epoch: int
    lr: Sequence[float]  # of each step
    split: str
    samples: int
    weights: Mapping[str, Row]  # final scores; empty where the run has not ended
    verdict: Sequence[str]
    drawings: Sequence[Drawing]
    notes: Sequence[str]  # what was left out, and why
    recipe: str
    versions: Sequence[tuple[str, str]]
    commands: Sequence[str]  # how to run it again


def document(runs: Sequence[RunOnPage], *, differences: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The whole file.

    Args:
        runs: At least one.
        differences: Of several runs: keys in which their recipes differ, with the value of each run.
    """
    title = runs[0].title if len(runs) == 1 else f"{len(runs)} runs"
    parts = [f"<h1>{_text(title)}</h1>"]
    if len(runs) > 1:
        parts.append("<h2>All scores</h2>" + "".join(_scores(group) for group in _comparable(runs)))
        if differences:
            parts.append(_differences(runs, differences))
    parts.append(f'<div class="runs">{"".join(_article(run, is_alone=len(runs) == 1) for run in runs)}</div>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{_text(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _article(run: RunOnPage, *, is_alone: bool) -> str:
    parts = [] if is_alone else [f"<h2>{_text(run.title)}</h2>"]
    parts.append("<h3>What was run</h3>" + _list(run.said))
    parts.append("<h3>Scores</h3>" + (_scores([run]) if run.weights else "<p>The run has not ended.</p>"))
    parts += [f"<p>{_text(sentence)}</p>" for sentence in run.verdict]
    parts.append(f'<h3>Curves</h3><div class="pair">{_curves(run)}</div>')
    if run.drawings:
        figures = "".join(map(_figure, run.drawings))
        parts.append(f'<h3>Pictures</h3><div class="pair">{figures}</div>')
    parts += [f'<p class="soft">{_text(note)}</p>' for note in run.notes]
    commands = "\n".join(run.commands)
    parts.append(
        "<h3>How to run it again</h3><p>Save the recipe below as <code>recipe.yaml</code>, then:</p>"
        f"<pre>{_lines(commands)}</pre>{_list(run.versions)}"
    )
    parts.append(
        f"<details><summary>Recipe, complete with its defaults</summary><pre>{_lines(run.recipe)}</pre></details>"
    )
    return f"<article>{''.join(parts)}</article>"


def _curves(run: RunOnPage) -> str:
    steps = next(iter(run.averaging.values()), ())
    phase = steps[0] / run.steps_per_epoch if steps else None
    end = max([1.0, len(run.lr) / run.steps_per_epoch, *(row["epoch"] for row in run.rows)])
    names, charts = list(run.averaging), []
    for is_loss in (True, False):
        metric = run.metrics.loss if is_loss else run.metrics.primary
        lines = [
            Line(printable(name), _COLORS[look["color"]], look["linestyle"], look.get("marker"), points)
            for name, look, points in curves.lines(run.rows, names=names, metrics=run.metrics, is_loss=is_loss)
        ]
        if lines:
            charts.append(
                chart(
                    lines,
                    title=run.metrics.loss_axis if is_loss else style.axis_title(metric),
                    unit=" %" if metric.is_percent else "",
                    end=end,
                    phase=phase,
                    is_lower_better=metric.is_lower_better,
                )
            )
    every = max(1, run.steps_per_epoch // 4)
    points = [(step / run.steps_per_epoch, run.lr[step]) for step in range(0, len(run.lr), every)]
    if points:
        rate = Line("learning rate", "val", "-", None, points)
        charts.append(chart([rate], title="learning rate of a step", unit="", end=end, phase=phase, from_zero=True))
    return "".join(charts)


def _comparable(runs: Sequence[RunOnPage]) -> list[list[RunOnPage]]:
    """Ended runs by what they are scored on, each group in one table."""
    groups: dict[tuple[Any, ...], list[RunOnPage]] = {}
    for run in runs:
        if run.weights:
            groups.setdefault((run.split, run.samples, run.metrics), []).append(run)
    return list(groups.values())


def _scores(runs: Sequence[RunOnPage]) -> str:
    """A row for each weight set, and under each average its paired difference to the reference of its run."""
    metrics, several = runs[0].metrics, len(runs) > 1
    shown = [
        metric
        for metric in metrics.all
        if not metric.is_optional
        or any(row.get(metric.key) is not None for run in runs for row in run.weights.values())
    ]
    heads = [*(["run"] if several else []), "weights", *(metric.heading for metric in shown), "n", "BatchNorm"]
    rows = []
    for run in runs:
        for name, values in run.weights.items():
            rows.append(_row([*([run.title] if several else []), name], values, shown))
            if is_compared(values, metrics):
                label = [*([""] if several else []), f"{MINUS} {values['reference']}"]
                rows.append(_difference_row(label, values, shown, compared=metrics.compared))
    caption = f"{runs[0].split}: {runs[0].samples:,} samples, ± one standard error; differences are paired"
    return _table(heads, rows, caption=caption)


def _row(labels: Sequence[str], values: Row, shown: Sequence[Metric]) -> str:
    count = values.get("members", values.get("count"))
    cells = [score_with_error(values, metric) for metric in shown]
    cells += ["" if count is None else f"{count:,}", str(values.get("batchnorm", ""))]
    return f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in (*labels, *cells))}</tr>"


def _difference_row(labels: Sequence[str], values: Row, shown: Sequence[Metric], *, compared: Sequence[Metric]) -> str:
    cells = [f"<td>{_text(label)}</td>" for label in labels]
    for metric in shown:
        if metric not in compared:
            cells.append("<td></td>")
            continue
        judged = standing(values, metric)
        kind = f' class="{judged}"' if judged in ("better", "worse") else ""
        cells.append(f"<td{kind}>{_text(difference(values, metric))}</td>")
    return f'<tr class="difference">{"".join(cells)}<td></td><td></td></tr>'


def _differences(runs: Sequence[RunOnPage], differences: Sequence[tuple[str, Sequence[str]]]) -> str:
    heads = ["key", *(run.title for run in runs)]
    rows = [f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in (key, *values))}</tr>" for key, values in differences]
    return "<h2>Where the recipes differ</h2>" + _table(heads, rows, caption="", kind="words")


def _table(heads: Sequence[str], rows: Sequence[str], *, caption: str, kind: str = "") -> str:
    head = "".join(f'<th scope="col">{_text(text)}</th>' for text in heads)
    above = f"<caption>{_text(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}">{above}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure(drawing: Drawing) -> str:
    data = base64.b64encode(drawing.svg).decode()
    title = _text(drawing.title)
    image = f'<img alt="{title}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{title}</figcaption></figure>"


def _list(pairs: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{_text(label)}</dt><dd>{_text(value)}</dd>' for label, value in pairs)}</dl>"


def _text(text: str) -> str:
    """One line of text, harmless."""
    return escape(printable(text))


def _lines(text: str) -> str:
    return "\n".join(_text(line) for line in text.splitlines())
