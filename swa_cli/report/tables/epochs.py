"""One line an epoch: which columns of `metrics.csv` a page shows, and their cells.

Everything fits 80 cells with one average. With more, the task's own score of each further average comes before the
learning rate and the validation loss; those that still find no room are counted in the heading (`+2 more`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swa_cli.metrics.metric import CLASSIFICATION, TaskMetrics
from swa_cli.report.tables.columns import Column, count, duration, fit, number, rate

_TIME = Column("seconds", "time", 8, rank=4)
_LONGEST_NAME = 12


def epoch_columns(averages: Sequence[str], *, width: int, metrics: TaskMetrics = CLASSIFICATION) -> list[Column]:
    """The columns for these averages on a page of `width` cells: as many of their scores as fit."""
    for num_shown in range(len(averages), 0, -1):
        columns = _columns_for(averages, num_shown=num_shown, width=width, metrics=metrics)
        if sum(column.key.endswith(f"_val_{metrics.primary.key}") for column in columns) == num_shown:
            return columns
    return _columns_for(averages, num_shown=0, width=width, metrics=metrics)


def epoch_cells(
    row: Mapping[str, Any], *, averages: Sequence[str], metrics: TaskMetrics = CLASSIFICATION
) -> dict[str, str]:
    """The cells of one row of `metrics.csv`; a column that is missing or None was not measured."""
    training, own = metrics.training, metrics.primary
    cells = {
        "epoch": str(row["epoch"]),
        "lr": rate(row.get("lr")),
        "train_loss": number(row.get("train_loss")),
        f"train_{training.key}": training.cell(row.get(f"train_{training.key}")),
        "val_loss": number(row.get("val_loss")),
        f"val_{own.key}": own.cell(row.get(f"val_{own.key}")),
        "seconds": duration(row.get("seconds")),
    }
    for name in averages:
        cells[f"{name}_val_{own.key}"] = own.cell(row.get(f"{name}_val_{own.key}"))
        cells[f"{name}_count"] = count(row.get(f"{name}_count"))
    return cells


def _columns_for(averages: Sequence[str], *, num_shown: int, width: int, metrics: TaskMetrics) -> list[Column]:
    training, own = metrics.training, metrics.primary
    columns = [
        Column("epoch", "epoch", 5, rank=0),
        Column("lr", "lr", 9, rank=6),
        Column("train_loss", "train loss", 12, rank=3),
        _score_column(f"train_{training.key}", f"train {training.short}", rank=9),
        Column("val_loss", "val loss", 10, rank=7),
        _score_column(f"val_{own.key}", f"val {own.short}", rank=1),
    ]
    for index, name in enumerate(averages[:num_shown]):
        heading = f"{name.upper()[:_LONGEST_NAME]} {own.short}"
        columns.append(_score_column(f"{name}_val_{own.key}", heading, rank=2 if index == 0 else 5))
        columns.append(Column(f"{name}_count", "n", 5, rank=8))
    columns.append(_TIME)
    if num_shown < len(averages):
        more = f"+{len(averages) - num_shown} more"
        columns.append(Column("more", more, len(more) + 2, rank=1))
    return fit(columns, width=width)


def _score_column(key: str, heading: str, *, rank: int) -> Column:
    return Column(key, heading, max(len(heading) + 2, 9), rank=rank)
