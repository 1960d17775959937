"""Lay out columns and metrics: headings, values and differences as text, and one line per epoch.

A `Column` has a fixed width that includes the space before it, so each line can be printed as soon as its numbers are
known and still stands under its heading. Columns that do not fit are left out by rank; lines never wrap. Fractions
become percent here, and nowhere below `report/`. Epoch rows fit 80 cells with one average. With more, the primary
metric of each further average takes precedence over the learning rate and the validation loss; averages that still do
not fit are counted in the heading (`+2 more`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.metrics.metric import CLASSIFICATION, Metric, TaskMetrics
from swa_cli.report.console_text import MINUS, NOT_MEASURED, PLUS_MINUS, safe


@dataclass(frozen=True)
class Column:
    """A column; `key` finds its cells, and the column with the highest `rank` is left out first on a narrow page."""

    key: str
    heading: str
    width: int  # in terminal cells, the space before the column included
    rank: int
    left: bool = False


def fit(columns: Iterable[Column], *, width: int) -> list[Column]:
    """Return the columns that fit into `width` cells, chosen by rank, in their given order."""
    columns = list(columns)
    kept: list[Column] = []
    for column in sorted(columns, key=lambda column: column.rank):
        if sum(other.width for other in kept) + column.width <= width:
            kept.append(column)
    return [column for column in columns if column in kept]


def head_line(columns: Sequence[Column], *, console: Console) -> Text:
    """Return the line of headings."""
    headings = {column.key: column.heading for column in columns}
    return cell_line(columns, headings, console=console, styles=dict.fromkeys(headings, "bold"))


def cell_line(
    columns: Sequence[Column],
    cells: Mapping[str, str],
    *,
    console: Console,
    styles: Mapping[str, str] | None = None,
) -> Text:
    """Return one line of cells; a column without a cell stays empty."""
    line = Text()
    for column in columns:
        cell = safe(cells.get(column.key, ""), console=console)
        padding = " " * (column.width - cell_len(cell))
        cell = cell + padding if column.left else padding + cell
        line.append(cell, style=(styles or {}).get(column.key, ""))
    line.rstrip()
    return line


def percent(fraction: float | None) -> str:
    """Return a fraction in percent with two decimals."""
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.2f}"


def number(value: float | None) -> str:
    """Return a loss, NLL, ECE or Brier score: three decimals, at most 9 characters."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.2e}"


def rate(value: float | None) -> str:
    """Return a learning rate: four decimals, or two digits and an exponent for a small or large one."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.1e}"


def count(value: int | None) -> str:
    """Return how many weight sets an average holds, in at most 4 characters."""
    if not value:
        return NOT_MEASURED
    if value < 10_000:
        return str(value)
    return f"{value // 1000}k" if value < 1_000_000 else f"{value // 1_000_000}M"


def duration(seconds: float | None) -> str:
    """Return a time span in at most 7 characters: `0.4 s`, `12 s`, `3m 05s`, `2h 10m`."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def signed(value: float, *, digits: int) -> str:
    """Return a difference with its sign; one that rounds to zero has a plus."""
    return f"{value:+z.{digits}f}".replace("-", MINUS)


def with_error(value: str, error: str | None) -> str:
    """Return `value ± error`, or the value alone."""
    return value if error is None else f"{value} {PLUS_MINUS} {error}"


_LONGEST_NAME = 12


def heading(metric: Metric) -> str:
    """Return the heading of a metric's column."""
    return f"{metric.name} %" if metric.is_percent else metric.name


def cell(metric: Metric, value: float | None) -> str:
    """Return a value as a table shows it."""
    return percent(value) if metric.is_percent else number(value)


def value_with_unit(metric: Metric, value: float | None) -> str:
    """Return a value as a sentence or a legend shows it."""
    return f"{percent(value)} %" if metric.is_percent else number(value)


def difference_text(metric: Metric, value: float) -> str:
    """Return the difference of two values with its sign."""
    return signed(100 * value, digits=2) if metric.is_percent else signed(value, digits=3)


def metric_column(metric: Metric, *, metrics: TaskMetrics) -> Column:
    """Return a metric's column in a table of scores, wide enough for a value with its error."""
    widest = 0 if not metric.has_error else 15 if metric.is_percent else 16
    text = heading(metric)
    return Column(metric.key, text, max(widest, len(text) + 2, 7), rank=_rank(metric, metrics))


def _rank(metric: Metric, metrics: TaskMetrics) -> int:
    """Return the rank of a metric's column; the number of weight sets has 4, BatchNorm 5."""
    if metric == metrics.primary:
        return 1
    if metric == metrics.loss:
        return 2
    if metric.is_headline:
        return 3
    return 6 if metric == metrics.training else 7


def epoch_columns(averages: Sequence[str], *, width: int, metrics: TaskMetrics = CLASSIFICATION) -> list[Column]:
    """Return the columns of epoch rows on a page of `width` cells, with as many of the averages as fit."""
    for num_shown in range(len(averages), 0, -1):
        columns = _columns_for(averages, num_shown=num_shown, width=width, metrics=metrics)
        if sum(column.key.endswith(f"_val_{metrics.primary.key}") for column in columns) == num_shown:
            return columns
    return _columns_for(averages, num_shown=0, width=width, metrics=metrics)


def epoch_cells(
    row: Mapping[str, Any], *, averages: Sequence[str], metrics: TaskMetrics = CLASSIFICATION
) -> dict[str, str]:
    """Return the cells of one row of `metrics.csv`; a column that is missing or None was not measured."""
    training, primary = metrics.training, metrics.primary
    cells = {
        "epoch": str(row["epoch"]),
        "lr": rate(row.get("lr")),
        "train_loss": number(row.get("train_loss")),
        f"train_{training.key}": cell(training, row.get(f"train_{training.key}")),
        "val_loss": number(row.get("val_loss")),
        f"val_{primary.key}": cell(primary, row.get(f"val_{primary.key}")),
        "seconds": duration(row.get("seconds")),
    }
    for name in averages:
        cells[f"{name}_val_{primary.key}"] = cell(primary, row.get(f"{name}_val_{primary.key}"))
        cells[f"{name}_count"] = count(row.get(f"{name}_count"))
    return cells


def _columns_for(averages: Sequence[str], *, num_shown: int, width: int, metrics: TaskMetrics) -> list[Column]:
    training, primary = metrics.training, metrics.primary
    columns = [
        Column("epoch", "epoch", 5, rank=0),
        Column("lr", "lr", 9, rank=6),
        Column("train_loss", "train loss", 12, rank=3),
        _epoch_column(f"train_{training.key}", training, prefix="train", rank=9),
        Column("val_loss", "val loss", 10, rank=7),
        _epoch_column(f"val_{primary.key}", primary, prefix="val", rank=1),
    ]
    for index, name in enumerate(averages[:num_shown]):
        prefix = name.upper()[:_LONGEST_NAME]
        key = f"{name}_val_{primary.key}"
        columns.append(_epoch_column(key, primary, prefix=prefix, rank=2 if index == 0 else 5))
        columns.append(Column(f"{name}_count", "n", 5, rank=8))
    columns.append(Column("seconds", "time", 8, rank=4))
    if num_shown < len(averages):
        more = f"+{len(averages) - num_shown} more"
        columns.append(Column("more", more, len(more) + 2, rank=1))
    return fit(columns, width=width)


def _epoch_column(key: str, metric: Metric, *, prefix: str, rank: int) -> Column:
    text = f"{prefix} {metric.short_name or metric.name}"
    return Column(key, text, max(len(text) + 2, 9), rank=rank)
