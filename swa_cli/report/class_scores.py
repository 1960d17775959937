"""Show the scores of each class, and their means over classes for each weight set. Fractions become percent here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swa_cli.report.console_text import NOT_MEASURED, Cells, Column, Lines, block, printable, table, widest
from swa_cli.report.scores import short, with_error

Row = Mapping[str, Any]
Named = Sequence[tuple[str, str]]  # key and name of each score
_WIDTH = 16  # of a percentage with its error, and the space before it


def class_table(title: str, rows: Sequence[Row], scores: Named) -> Lines:
    """Return a line for each class: its name, the number of its samples, and its scores."""
    cells: list[Cells] = [
        {"class": short(printable(row["class"])), "support": f"{row['support']:,}", **_percents(row, scores)}
        for row in rows
    ]
    columns = [
        Column("class", "class", widest("class", "class", cells), rank=0, left=True),
        *_columns(scores),
        Column("support", "samples", 9, rank=len(scores) + 1),
    ]
    return block(title, table(columns, cells))


def means_table(means: Mapping[str, Row], scores: Named) -> Lines:
    """Return a line for each weight set: the means of its scores over the classes."""
    cells: list[Cells] = [{"name": short(name), **_percents(row, scores)} for name, row in means.items()]
    columns = [Column("name", "weights", widest("name", "weights", cells), rank=0, left=True), *_columns(scores)]
    return table(columns, cells)


def _columns(scores: Named) -> list[Column]:
    return [
        Column(key, f"{name} %", max(_WIDTH, len(name) + 4), rank=rank)
        for rank, (key, name) in enumerate(scores, start=1)
    ]


def _percents(row: Row, scores: Named) -> dict[str, str]:
    return {key: percent(row[key], row[f"{key}_se"]) for key, _ in scores}


def percent(value: float | None, error: float | None) -> str:
    """Return a fraction as percent with its standard error; a dot where it is not defined."""
    if value is None:
        return NOT_MEASURED
    return with_error(f"{100 * value:.2f}", None if error is None else f"{100 * error:.2f}")
