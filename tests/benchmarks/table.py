"""The figures as a table: on a terminal, or as Markdown to paste."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure, number, quantity

HEADINGS = ("what", "ours", "theirs", "result", "bar", "verdict")


def cells(figure: Figure) -> tuple[str, ...]:
    """What stands under the headings."""
    return (
        figure.name,
        quantity(figure.ours, figure.unit),
        quantity(figure.theirs, figure.unit),
        f"{number(figure.value)} {figure.value_unit}",
        figure.spoken_bar,
        figure.verdict,
    )


def print_table(figures: Sequence[Figure], *, title: str, console: Console) -> None:
    """Rows of a topic together, notes under their names."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in HEADINGS[1:4] else "left")
    before = None
    for figure in figures:
        if before is not None and figure.topic != before:
            table.add_section()
            table.add_row()
        before = figure.topic
        name, *rest = cells(figure)
        style = "bold red" if figure.is_missed else None
        table.add_row(name + (f" [dim]({figure.note})[/dim]" if figure.note else ""), *rest, style=style)
    console.print(table)


def markdown(figures: Sequence[Figure], *, title: str) -> str:
    """The same for a README: a title, a table."""
    lines = [title, "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    lines += [f"| {' | '.join(cells(figure))} |" for figure in figures]
    return "\n".join(lines)
