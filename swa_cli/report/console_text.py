"""Lay out text for consoles: safe characters, wrapped paragraphs, numbers, and tables.

Names come from recipes and files, so no text is parsed as markup, control characters never reach the terminal, and a
character that the encoding lacks is replaced (`±` by `+-`). A `Column` has a fixed width that includes the space before
it, so each line can be printed as soon as its numbers are known and still stands under its heading. Columns that do not
fit are left out by rank; lines of a table never wrap.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from swa_cli.units import Command

Lines = Callable[[Console], list[Text]]  # lays out the same text for any console
Cells = Mapping[str, str | tuple[str, str]]  # key of a column -> text, or text and style

NOT_MEASURED = "·"
PLUS_MINUS = "±"
MINUS = "−"
_WORD = re.compile(r"(?:`[^`]*`|[^ ])*")  # a lone backtick is a character like others
_ASCII = {NOT_MEASURED: ".", PLUS_MINUS: "+-", MINUS: "-", "…": "..."}


class _Console(Console):
    """A console that goes on when its stream fails; rich would end the process where the reader of a pipe has gone."""

    on_loss: Callable[[OSError], None] | None = None

    def on_broken_pipe(self) -> None:
        """Raise the error, like every other error of writing."""
        raise

    def __exit__(self, *raised: Any) -> None:
        """Write what was printed inside the block; all printing, also that of a live bar, ends here."""
        try:
            super().__exit__(*raised)
        except OSError as error:
            if self.on_loss is None:
                raise
            with open(os.devnull, "w") as nowhere:  # takes what the stream still holds, too
                os.dup2(nowhere.fileno(), self.file.fileno())
            self.on_loss(error)


def open_console(
    file: TextIO | None = None,
    *,
    stderr: bool = False,
    on_loss: Callable[[OSError], None] | None = None,
    **options: Any,
) -> Console:
    """Open a console on `file`, or on stdout or stderr as they are when something is printed.

    It prints plain lines in a notebook too, where rich would turn each line into HTML and lose stderr.

    Args:
        file: The file to print to.
        stderr: Whether to print to stderr and not to stdout, if there is no file.
        on_loss: Called when the stream fails, because its reader has gone or a disk is full; what is printed after that
            is lost. Without it, printing raises the error.
        options: Further options of rich's console.
    """
    console = _Console(
        file=file, stderr=stderr, markup=False, highlight=False, emoji=False, force_jupyter=False, **options
    )
    console.on_loss = on_loss
    return console


def print_lines(lines: Iterable[Text], *, console: Console) -> None:
    """Print lines as they are: rich wraps none of them."""
    console.print(Text("\n").join(lines), soft_wrap=True)


def printable(text: str) -> str:
    """Replace each control character by one harmless character, so that columns stay aligned."""
    return "".join(_replace_control(char) for char in text)


def _replace_control(char: str) -> str:
    if char.isprintable():
        return char
    return " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"


def safe(text: str, *, console: Console) -> str:
    """Return `text` as `console` can print it: no control characters, nothing outside its encoding."""
    text = printable(text)
    encodable = text.encode(console.encoding, "replace").decode(console.encoding)
    pairs = zip(text, encodable, strict=True)
    return "".join(_ASCII.get(char, "?") if replaced == "?" else char for char, replaced in pairs)


def hanging(head: Text, text: str, *, console: Console, indent: int = 2) -> list[Text]:
    """Wrap `text` after `head` between words at the console's width, with a hanging indent.

    A word longer than the line stays whole, so that a path can be copied, and so does a command, alone or in backticks.
    """
    lines = [head.copy()]
    words = [text] if isinstance(text, Command) else _words(text)
    for number, word in enumerate(safe(word, console=console) for word in words):
        if number and lines[-1].cell_len + 1 + cell_len(word) > console.width:
            lines.append(Text(" " * indent + word))
        else:
            lines[-1].append(f" {word}" if number else word)
    return lines


def _words(text: str) -> list[str]:
    """Split a text at each space outside of backticks."""
    words, at = [""], 0
    while at < len(text):
        found = _WORD.match(text, at)
        assert found is not None, "it may be empty"
        words[-1], at = found[0], found.end() + 1
        if at <= len(text):
            words.append("")
    return words


def block(*parts: str | Lines) -> Lines:
    """Lay out paragraphs and tables below each other."""

    def lines(console: Console) -> list[Text]:
        laid_out = (
            hanging(Text(), part, console=console) if isinstance(part, str) else part(console) for part in parts
        )
        return [line for found in laid_out for line in found]

    return lines


GAP = 2  # terminal cells before a column of texts, unless it is the first


@dataclass(frozen=True)
class Column:
    """A column; `key` finds its cells, and the column with the highest `rank` is left out first on a narrow page."""

    key: str
    heading: str
    width: int  # in terminal cells, the space before the column included
    rank: int
    left: bool = False


def table(columns: Sequence[Column], rows: Iterable[Cells]) -> Lines:
    """Lay out rows of cells under headings."""
    rows = list(rows)

    def lines(console: Console) -> list[Text]:
        fitting = fit(columns, width=console.width)
        return [head_line(fitting, console=console), *(cell_line(fitting, row, console=console) for row in rows)]

    return lines


def fit(columns: Sequence[Column], *, width: int) -> list[Column]:
    """Return the columns that fit into `width` cells, chosen by rank, in their given order."""
    kept: list[Column] = []
    for column in sorted(columns, key=lambda column: column.rank):
        if sum(other.width for other in kept) + column.width <= width:
            kept.append(column)
    return [column for column in columns if column in kept]


def head_line(columns: Sequence[Column], *, console: Console) -> Text:
    """Return the line of headings."""
    return cell_line(columns, {column.key: (column.heading, "bold") for column in columns}, console=console)


def cell_line(columns: Sequence[Column], cells: Cells, *, console: Console) -> Text:
    """Return one line of cells; a column without a cell stays empty."""
    line = Text()
    for column in columns:
        cell = cells.get(column.key, "")
        text, style = (cell, "") if isinstance(cell, str) else cell
        text = safe(text, console=console)
        padding = " " * (column.width - cell_len(text))
        if column.left:
            gap = " " * GAP if line else ""
            line.append(gap + text + padding[len(gap) :], style=style)
        else:
            line.append((padding or " " * bool(line)) + text, style=style)  # a wide number stays apart
    line.rstrip()
    return line


def width_of(text: str) -> int:
    """Return the columns of a terminal that a text takes: two for each wide character."""
    return cell_len(text)


def cut_to(text: str, width: int) -> str:
    """Return a text of at most this width; one that is longer ends in `…`."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def widest(key: str, heading: str, rows: Iterable[Cells]) -> int:
    """Return the width of the widest cell of a column, its heading included."""
    cells = [heading, *(row.get(key, "") for row in rows)]
    return max(cell_len(cell if isinstance(cell, str) else cell[0]) for cell in cells)


def number(value: float | None, *, scale: float | None = None, least: float = 0.5e-3, sign: str = "-") -> str:
    """Return a loss, NLL, ECE or Brier score in three decimals, at most 9 characters; nothing is a negative zero.

    Args:
        value: The number.
        scale: The largest magnitude that it is shown with, such as that of its error; its own, if there is none.
        least: A smaller scale is shown with three digits that count.
        sign: `+` gives positive numbers a sign, too.
    """
    if value is None:
        return NOT_MEASURED
    scale = abs(value if scale is None else scale)
    if scale == 0 or least <= scale < 1e4 or not math.isfinite(scale):
        return f"{value:{sign}z.3f}"
    return f"{value:{sign}z.{2 - math.floor(math.log10(scale))}f}" if 1e-4 <= scale < least else f"{value:{sign}z.2e}"


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
