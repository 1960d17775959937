"""Numbers in columns: how they are written, which columns fit a page, and how a line of them looks.

A `Column` owns a slot of fixed width with the space before it, so each line can be printed as soon as its
numbers are known and still stand under its heading. What does not fit is left out by rank, never wrapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.report.console_text import MINUS, NOT_MEASURED, PLUS_MINUS, safe


@dataclass(frozen=True)
class Column:
    """One column; its cells are found by `key`, and the highest `rank` gives way first on a narrow page."""

    key: str
    heading: str
    width: int  # in terminal cells, the space before the column included
    rank: int
    left: bool = False


def fit(columns: Iterable[Column], *, width: int) -> list[Column]:
    """The columns that fit into `width` cells, the important ones first served, in their given order."""
    columns = list(columns)
    kept: list[Column] = []
    for column in sorted(columns, key=lambda column: column.rank):
        if sum(other.width for other in kept) + column.width <= width:
            kept.append(column)
    return [column for column in columns if column in kept]


def head_line(columns: Sequence[Column], *, console: Console) -> Text:
    """The headings over their columns."""
    headings = {column.key: column.heading for column in columns}
    return cell_line(columns, headings, console=console, styles=dict.fromkeys(headings, "bold"))


def cell_line(
    columns: Sequence[Column],
    cells: Mapping[str, str],
    *,
    console: Console,
    styles: Mapping[str, str] | None = None,
) -> Text:
    """One line of cells; a column without a cell stays empty."""
    line = Text()
    for column in columns:
        cell = safe(cells.get(column.key, ""), console=console)
        padding = " " * (column.width - cell_len(cell))
        cell = cell + padding if column.left else padding + cell
        line.append(cell, style=(styles or {}).get(column.key, ""))
    line.rstrip()
    return line


def percent(fraction: float | None) -> str:
    """A fraction as percent with two decimals."""
    return NOT_MEASURED if fraction is None else f"{100 * fraction:.2f}"


def number(value: float | None) -> str:
    """A loss, NLL, ECE or Brier score: three decimals, at most 9 characters."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.2e}"


def rate(value: float | None) -> str:
    """A learning rate: four decimals, or two digits and an exponent where those would hide it."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 100 else f"{value:.1e}"


def count(value: int | None) -> str:
    """How many weights an average holds, in at most 4 characters."""
    if not value:
        return NOT_MEASURED
    if value < 10_000:
        return str(value)
    return f"{value // 1000}k" if value < 1_000_000 else f"{value // 1_000_000}M"


def duration(seconds: float | None) -> str:
    """A time span in at most 7 characters: `0.4 s`, `12 s`, `3m 05s`, `2h 10m`."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def signed(value: float, *, digits: int) -> str:
    """A difference with its sign; one that rounds to nothing counts as plus."""
    return f"{value:+z.{digits}f}".replace("-", MINUS)


def with_error(value: str, error: str | None) -> str:
    """`value ± error`, or the value alone."""
    return value if error is None else f"{value} {PLUS_MINUS} {error}"
