"""The picture of a run: losses, scores and learning rate over the epochs, every averaged step marked.

Drawn without any global state of matplotlib or settings of the user, so the same run gives the same picture.
Lines differ in dash and marker as well as in colour.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import IO, TYPE_CHECKING, Any

from swa_cli.report.measures import CLASSIFICATION, Measure, Measures
from swa_cli.report.spelling import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Point = tuple[float, float]  # epoch, value

SIZE_INCHES = (9.0, 10.0)
DPI = 150
MAX_MARKS = 200  # more ticks than this on the rug would be a solid bar
_MAX_MARKERS = 15  # markers along one line
# The steep start of a long run may leave the panel: it would flatten all that matters.
_LONG_RUN = 10  # epochs
_STEEP = 0.2  # of the run

_TRAIN: dict[str, Any] = {"color": "#777777", "linestyle": "-", "linewidth": 1.2}
_VAL: dict[str, Any] = {
    "color": "#0072B2",
    "linestyle": "--",
    "linewidth": 1.5,
    "marker": "o",
    "markersize": 4,
}
# One look for each average, from the palette of Okabe and Ito, which colour-blind people can tell apart.
_AVERAGES: tuple[dict[str, Any], ...] = tuple(
    {"color": color, "linestyle": dash, "linewidth": 1.8, "marker": marker, "markersize": 5}
    for color, dash, marker in (
        ("#D55E00", "-", "s"),
        ("#009E73", "-.", "^"),
        ("#CC79A7", ":", "D"),
        ("#E69F00", "-", "v"),
        ("#56B4E9", "-.", "P"),
    )
)


def curves(
    rows: Sequence[Row],
    *,
    path: str | PathLike[str] | IO[bytes],
    title: str,
    averaging: Mapping[str, Sequence[int]],
    steps_per_epoch: int,
    lr: Sequence[float] | None = None,
    final: Mapping[str, Row] | None = None,
    measures: Measures = CLASSIFICATION,
) -> None:
    """Write `curves.png`: three panels over the epochs, the phase of averaging shaded.

    Args:
        rows: The rows of `metrics.csv`; None where something was not measured.
        path: Where the PNG goes; a file open for bytes will do.
        title: What the run is called.
        averaging: Average to the steps it holds, in optimizer updates done; the first one's phase is shaded.
        steps_per_epoch: Optimizer updates in an epoch.
        lr: The learning rate of each step; without it that of each row is drawn.
        final: Weight set (`last` and the averages) to its final scores.
        measures: What the task scores.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context("default"), warnings.catch_warnings():
        # A name in a script that the font lacks gets empty boxes, which is no reason to alarm anyone.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
        figure.suptitle(_plain(title, longest=80), fontsize=13)
        loss, score, rates = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 2])
        end = max([1.0, len(lr or ()) / steps_per_epoch, *(row["epoch"] for row in rows)])
        _draw_scores(loss, rows, names=list(averaging), final=final or {}, end=end, measures=measures, is_loss=True)
        _draw_scores(score, rows, names=list(averaging), final=final or {}, end=end, measures=measures, is_loss=False)
        _draw_rates(rates, rows, lr=lr, steps_per_epoch=steps_per_epoch)
        _draw_rug(rates, averaging, steps_per_epoch=steps_per_epoch)
        _shade((loss, score, rates), averaging, steps_per_epoch=steps_per_epoch, end=end)
        rates.set_ylabel("learning rate of a step")
        rates.set_xlabel("epoch")
        for panel in (loss, score, rates):
            _finish(panel, end=end, room_for_final=bool(final))
        figure.savefig(path, format="png", dpi=DPI)


def _draw_scores(
    axes: Axes,
    rows: Sequence[Row],
    *,
    names: Sequence[str],
    final: Mapping[str, Row],
    end: float,
    measures: Measures,
    is_loss: bool,
) -> None:
    """The panel of the loss, or of the task's own score."""
    measure = measures.loss if is_loss else measures.own
    points = _draw_lines(axes, rows, names=names, what="loss" if is_loss else measure.key, measure=measure)
    points += _draw_final(axes, final, names=names, measure=measure, end=end)
    settled = [value for epoch, value in points if epoch > end * _STEEP]
    if settled and len(rows) >= _LONG_RUN:
        margin = 0.05 * (max(settled) - min(settled))
        if measure.is_lower_better:
            axes.set_ylim(top=max(settled) + margin)
        else:
            axes.set_ylim(bottom=min(settled) - margin)
    own_axis = f"{measure.name} (%)" if measure.is_percent else measure.name
    axes.set_ylabel(measures.loss_axis if is_loss else own_axis)


def _draw_lines(axes: Axes, rows: Sequence[Row], *, names: Sequence[str], what: str, measure: Measure) -> list[Point]:
    """The lines of one score; where training has no such column, it has no line."""
    scale = _scale(measure)
    looks = {f"train_{what}": ("train", _TRAIN), f"val_{what}": ("val", _VAL)}
    for name in names:
        looks[f"{name}_val_{what}"] = (f"{_name(name)}, val", _look(name, names))
    drawn: list[Point] = []
    for key, (label, look) in looks.items():
        points = [(float(row["epoch"]), scale * row[key]) for row in rows if _is_number(row.get(key))]
        if points:
            epochs, values = zip(*points, strict=True)
            every = math.ceil(len(points) / _MAX_MARKERS)
            axes.plot(epochs, values, label=label, markevery=every, **look)
            drawn += points
    return drawn


def _draw_rates(axes: Axes, rows: Sequence[Row], *, lr: Sequence[float] | None, steps_per_epoch: int) -> None:
    if lr:
        epochs = [step / steps_per_epoch for step in range(len(lr) + 1)]
        axes.plot(epochs, [*lr, *lr[-1:]], drawstyle="steps-post", color="black", linewidth=1.2)
    else:
        axes.plot([row["epoch"] for row in rows], [row["lr"] for row in rows], color="black", linewidth=1.2)
    axes.set_ylim(bottom=0)


def _draw_rug(axes: Axes, averaging: Mapping[str, Sequence[int]], *, steps_per_epoch: int) -> None:
    """Mark each averaged step above the learning rate, a row of ticks for each average."""
    axes.set_ylim(top=axes.get_ylim()[1] / (1 - 0.1 * min(len(averaging), 5)))
    for index, (name, steps) in enumerate(averaging.items()):
        if not steps:
            continue
        shown = _thinned(steps)
        label = _name(name) + (": 1 step averaged" if len(steps) == 1 else f": {len(steps):,} steps averaged")
        if len(shown) < len(steps):
            label += f"\n({len(shown)} drawn)"
        height = 0.96 - 0.1 * index
        axes.plot(
            [step / steps_per_epoch for step in shown],
            [height] * len(shown),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker="|",
            markersize=9,
            color=_look(name, list(averaging))["color"],
            label=label,
        )


def _draw_final(
    axes: Axes, final: Mapping[str, Row], *, names: Sequence[str], measure: Measure, end: float
) -> list[Point]:
    """Mark the final score of each weight set to the right of the run, its value in the legend."""
    key, drawn = measure.key, list[Point]()
    for name, scores in final.items():
        if not _is_number(scores.get(key)):
            continue
        look = _look(name, names)
        point = (1.03 * end, _scale(measure) * scores[key])
        axes.plot(
            *point,
            linestyle="none",
            marker=look["marker"],
            markersize=9,
            markerfacecolor="none",
            markeredgewidth=1.8,
            color=look["color"],
            label=f"{_name(name)}, final: {measure.said(scores[key])}",
        )
        drawn.append(point)
    return drawn


def _scale(measure: Measure) -> float:
    return 100.0 if measure.is_percent else 1.0


def _shade(panels: Sequence[Axes], averaging: Mapping[str, Sequence[int]], *, steps_per_epoch: int, end: float) -> None:
    name, steps = next(iter(averaging.items()), ("", ()))
    if not steps:
        return
    for panel in panels:
        panel.axvspan(steps[0] / steps_per_epoch, end, color="#f3e9dd", zorder=0, label=f"phase of {_name(name)}")


def _finish(axes: Axes, *, end: float, room_for_final: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, end * (1.06 if room_for_final else 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def _look(name: str, averages: Sequence[str]) -> dict[str, Any]:
    """How a weight set is drawn: each average in its own way, the raw weights as their validation line."""
    return _AVERAGES[averages.index(name) % len(_AVERAGES)] if name in averages else _VAL


def _thinned(steps: Sequence[int]) -> list[int]:
    """At most `MAX_MARKS` of the steps, evenly taken, the first and the last among them."""
    if len(steps) <= MAX_MARKS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(index * last / (MAX_MARKS - 1))] for index in range(MAX_MARKS)]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _name(text: str) -> str:
    """The name of an average in a legend."""
    return _plain(text, longest=20)


def _plain(text: str, *, longest: int) -> str:
    """`text` as matplotlib draws it literally: a dollar sign would start a formula."""
    return printable(text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")
