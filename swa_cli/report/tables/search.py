"""What was tried before an average was chosen, as a table; `plots/window.py` draws the windows of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report.console_text import MINUS, safe
from swa_cli.report.tables.columns import Column, cell_line, count, fit, head_line, with_error

Row = Mapping[str, Any]

_LONGEST_NAME = 40


def tried_table(rows: Sequence[Row], *, console: Console, metrics: TaskMetrics = CLASSIFICATION) -> list[Text]:
    """A line a trial: windows by where they start, members of a soup in the order in which they were offered."""
    is_window = "start" in rows[0]
    ordered = sorted(rows, key=lambda row: (row["start"], row["end"])) if is_window else rows
    labels = [safe(_label(row), console=console) for row in ordered]
    heading = "--window" if is_window else "offered"
    columns = fit(_columns(heading, labels, metrics=metrics, is_window=is_window), width=console.width)
    lines = [head_line(columns, console=console)]
    for row, label in zip(ordered, labels, strict=True):
        cells = {
            "label": label,
            "count": count(row["count"]),
            "alone": metrics.primary.cell(row.get(f"own_{metrics.primary.key}")),
            "difference": "" if row["chosen"] or not is_window else _difference(row, metrics.loss),
            "chosen": ("chosen" if is_window else "kept") if row["chosen"] else "",
        }
        for metric in metrics.compared:
            cells[metric.key] = with_error(metric.cell(row[metric.key]), metric.cell(row[f"{metric.key}_se"]))
        styles = {"chosen": "green"}
        lines.append(cell_line(columns, cells, console=console, styles=styles))
    return lines


def _label(row: Row) -> str:
    if "start" in row:
        return f"{row['start']}step:{row['end']}step"  # as the option takes it
    name = str(row["file"])
    return name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"


def _difference(row: Row, metric: Metric) -> str:
    return with_error(metric.difference(row[f"{metric.key}_diff"]), metric.cell(row[f"{metric.key}_diff_se"]))


def _columns(heading: str, labels: Sequence[str], *, metrics: TaskMetrics, is_window: bool) -> list[Column]:
    width = max(cell_len(label) for label in (*labels, heading))
    columns = [
        Column("label", heading, width, rank=0, left=True),
        Column("count", "n", 6, rank=3),
        Column("alone", "alone %" if metrics.primary.is_percent else "alone", 9, rank=5),
        replace(metrics.primary.column, rank=2),
        replace(metrics.loss.column, rank=1),
        Column("difference", f"{MINUS} chosen", 16, rank=4),
        Column("chosen", "", 8, rank=3),
    ]
    left_out = "alone" if is_window else "difference"
    return [column for column in columns if column.key != left_out]
