"""What was tried before an average was chosen, as a table and, for the windows of a run, as a picture.

The picture has the score over where the window starts, so that a person sees how flat the choice is: its error bars
are those of the difference to the chosen window on the same images.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import IO, TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.report.columns import Column, cell_line, count, fit, head_line, with_error
from swa_cli.report.measures import CLASSIFICATION, Measure, Measures
from swa_cli.report.spelling import MINUS, safe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

SIZE_INCHES = (9.0, 7.0)
DPI = 150
_LONGEST_NAME = 40
_TO_END: dict[str, Any] = {"color": "#0072B2", "marker": "o", "linestyle": "--", "linewidth": 1.2}
_SHORTER: dict[str, Any] = {"color": "#E69F00", "marker": "s", "linestyle": "none"}
_CHOSEN: dict[str, Any] = {"color": "#D55E00", "marker": "*", "markersize": 16, "linestyle": "none"}


def tried_table(rows: Sequence[Row], *, console: Console, measures: Measures = CLASSIFICATION) -> list[Text]:
    """A line a trial: windows by where they start, members of a soup in the order in which they were offered."""
    is_window = "start" in rows[0]
    ordered = sorted(rows, key=lambda row: (row["start"], row["end"])) if is_window else rows
    labels = [safe(_label(row), console=console) for row in ordered]
    heading = "--window" if is_window else "offered"
    columns = fit(_columns(heading, labels, measures=measures, is_window=is_window), width=console.width)
    lines = [head_line(columns, console=console)]
    for row, label in zip(ordered, labels, strict=True):
        cells = {
            "label": label,
            "count": count(row["count"]),
            "alone": measures.own.cell(row.get(f"own_{measures.own.key}")),
            "difference": "" if row["chosen"] or not is_window else _difference(row, measures.loss),
            "chosen": ("chosen" if is_window else "kept") if row["chosen"] else "",
        }
        for measure in measures.compared:
            cells[measure.key] = with_error(measure.cell(row[measure.key]), measure.cell(row[f"{measure.key}_se"]))
        styles = {"chosen": "green"}
        lines.append(cell_line(columns, cells, console=console, styles=styles))
    return lines


def picture(
    rows: Sequence[Row],
    *,
    path: str | PathLike[str] | IO[bytes],
    title: str,
    steps_per_epoch: int,
    measures: Measures = CLASSIFICATION,
) -> None:
    """Write a PNG: the loss and the score of the task over the start of the window.

    Args:
        rows: `start`, `end` in updates done, both scores, their `_diff_se` to the chosen one, and `chosen`.
        path: Where it goes; a file open for bytes will do.
        title: What it says on top.
        steps_per_epoch: Updates in an epoch.
        measures: Which scores these are.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context("default"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
        figure.suptitle(title.replace("$", r"\$"), fontsize=13)
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, measure in ((upper, measures.loss), (lower, measures.own)):
            _draw(axes, rows, measure=measure, steps_per_epoch=steps_per_epoch)
            axes.set_ylabel(measure.heading)
        lower.set_xlabel("start of the window (epochs done)")
        upper.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
        figure.savefig(path, format="png", dpi=DPI)


def _draw(axes: Axes, rows: Sequence[Row], *, measure: Measure, steps_per_epoch: int) -> None:
    """One score; the line joins the windows that reach to the end of the run."""
    key, scale = measure.key, 100.0 if measure.is_percent else 1.0
    end = max(row["end"] for row in rows)
    groups = (
        ("up to the end", _TO_END, [row for row in rows if row["end"] == end]),
        ("ends before", _SHORTER, [row for row in rows if row["end"] < end]),
        ("chosen", _CHOSEN, [row for row in rows if row["chosen"]]),
    )
    for label, look, group in groups:
        if group:
            ordered = sorted(group, key=lambda row: row["start"])
            axes.errorbar(
                [row["start"] / steps_per_epoch for row in ordered],
                [scale * row[key] for row in ordered],
                yerr=None if label == "chosen" else [scale * row[f"{key}_diff_se"] for row in ordered],
                label=label,
                capsize=3,
                elinewidth=0.8,
                **look,
            )
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label(row: Row) -> str:
    if "start" in row:
        return f"{row['start']}step:{row['end']}step"  # as the option takes it
    name = str(row["file"])
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _difference(row: Row, measure: Measure) -> str:
    return with_error(measure.difference(row[f"{measure.key}_diff"]), measure.cell(row[f"{measure.key}_diff_se"]))


def _columns(heading: str, labels: Sequence[str], *, measures: Measures, is_window: bool) -> list[Column]:
    width = max(cell_len(label) for label in (*labels, heading))
    columns = [
        Column("label", heading, width, rank=0, left=True),
        Column("count", "n", 6, rank=3),
        Column("alone", "alone %" if measures.own.is_percent else "alone", 9, rank=5),
        replace(measures.own.column, rank=2),
        replace(measures.loss.column, rank=1),
        Column("difference", f"{MINUS} chosen", 16, rank=4),
        Column("chosen", "", 8, rank=3),
    ]
    left_out = "alone" if is_window else "difference"
    return [column for column in columns if column.key != left_out]
