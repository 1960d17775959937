"""The score of an average over where it starts, so that a person sees how flat the choice is.

The error bars are those of the difference to the best window on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from swa_cli.report.measures import CLASSIFICATION, Measure, Measures
from swa_cli.report.plots import style
from swa_cli.report.plots.style import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (9.0, 7.0)
_TO_END: dict[str, Any] = {"color": "#0072B2", "marker": "o", "linestyle": "--", "linewidth": 1.2}
_SHORTER: dict[str, Any] = {"color": "#E69F00", "marker": "s", "linestyle": "none"}
_CHOSEN: dict[str, Any] = {"color": "#D55E00", "marker": "*", "markersize": 16, "linestyle": "none"}


def draw(
    target: style.Target,
    *,
    rows: Sequence[Row],
    title: str,
    steps_per_epoch: int,
    chosen: str = "chosen",
    reference: tuple[str, Row] | None = None,
    measures: Measures = CLASSIFICATION,
    form: str = "png",
) -> None:
    """Write the picture: the loss and the score of the task over the start of the window.

    Args:
        target: Where it goes; a file open for bytes will do.
        rows: `start`, `end` in updates done, both scores, their `_diff_se` to the chosen one, and `chosen`.
        title: What it says on top.
        steps_per_epoch: Updates in an epoch.
        chosen: What the chosen one is called.
        reference: The raw weights that averages are judged against: their name, and their scores on the same images.
        measures: Which scores these are.
        form: png or svg.
    """
    with style.sheet(target, size=SIZE_INCHES, title=title, form=form) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, measure in ((upper, measures.loss), (lower, measures.own)):
            _draw(axes, rows, measure=measure, steps_per_epoch=steps_per_epoch, chosen=chosen)
            if reference is not None and style.is_number(reference[1].get(measure.key)):
                level = style.scale(measure) * reference[1][measure.key]
                axes.axhline(level, color=style.VAL["color"], linestyle=":", label=f"{reference[0]}, the reference")
            axes.set_ylabel(style.axis_title(measure))
        lower.set_xlabel("start of the window (epochs done)")
        style.legend(upper)


def _draw(axes: Axes, rows: Sequence[Row], *, measure: Measure, steps_per_epoch: int, chosen: str) -> None:
    """One score; the line joins the windows that reach to the end of the run."""
    key, scale = measure.key, style.scale(measure)
    end = max(row["end"] for row in rows)
    groups = (
        ("up to the end", _TO_END, [row for row in rows if row["end"] == end]),
        ("ends before", _SHORTER, [row for row in rows if row["end"] < end]),
        (chosen, _CHOSEN, [row for row in rows if row["chosen"]]),
    )
    for label, look, group in groups:
        if group:
            ordered = sorted(group, key=lambda row: row["start"])
            axes.errorbar(
                [row["start"] / steps_per_epoch for row in ordered],
                [scale * row[key] for row in ordered],
                yerr=None if label == chosen else [scale * row[f"{key}_diff_se"] for row in ordered],
                label=label,
                capsize=3,
                elinewidth=0.8,
                **look,
            )
    style.tidy(axes)
