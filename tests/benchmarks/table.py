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
    """Rows of a topic together; notes follow below."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        is_number = heading in HEADINGS[1:4]
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=heading != HEADINGS[0])
    before = None
    for figure in figures:
        if before is not None and figure.topic != before:
            table.add_row()
        before = figure.topic
        table.add_row(*cells(figure), style="bold red" if figure.is_missed else None)
    console.print(title, highlight=False)
    console.print()
    console.print(table)
    console.print()
    for figure in figures:
        if figure.note:
            console.print(f"{figure.name}: {figure.note}", highlight=False, style="dim")


def markdown(figures: Sequence[Figure], *, title: str) -> str:
    """The same for a README: a title, a table."""
    lines = [title, "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    lines += [f"| {' | '.join(cells(figure))} |" for figure in figures]
    return "\n".join(lines)
