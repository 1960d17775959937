"""What went wrong, as a person reads it: the message, the place, the key underlined in its line, one action.

All problems of a recipe are shown at once; nothing here decides what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.errors import Place, Problem
from swa_cli.report.spelling import open_console, safe


def print_problems(problems: Sequence[Problem], *, source: str, file: TextIO | None = None) -> None:
    """Print every problem of the recipe `source`, then how many there are, to `file` or else stderr."""
    console = open_console(file, stderr=file is None)
    lines: list[Text] = []
    for problem in problems:
        subject = f"{problem.key}: " if problem.key else ""
        lines += _error_lines(subject + problem.message, console=console)
        if problem.place is not None:
            lines += _place_lines(problem.place, console=console)
        lines += [_hint_line(problem.hint, indent=3, console=console), Text()]
    num_problems = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines.append(Text(safe(f"{num_problems} in {source}. Nothing was run.", console=console)))
    console.print(Text("\n").join(lines), soft_wrap=True)


def print_user_error(message: str, *, hint: str, file: TextIO | None = None) -> None:
    """Print one error and the one action that mends it, to `file` or else stderr."""
    console = open_console(file, stderr=file is None)
    lines = [*_error_lines(message, console=console), _hint_line(hint, indent=2, console=console)]
    console.print(Text("\n").join(lines), soft_wrap=True)


def _error_lines(message: str, *, console: Console) -> list[Text]:
    """The message; further lines of it are indented, so that none can pass for an error of its own."""
    first, *others = message.split("\n")
    line = Text.assemble(("error: ", "bold red"), (safe(first, console=console), "bold"))
    return [line, *(Text("  " + safe(other, console=console)) for other in others)]


def _place_lines(place: Place, *, console: Console) -> list[Text]:
    where = place.source
    if place.line:
        where += f":{place.line}" + (f":{place.column}" if place.column else "")
    lines = [Text.assemble(("  --> ", "blue"), safe(where, console=console))]
    if not (place.line and place.text):
        return lines
    gutter = f"{place.line:>3}"
    bar = Text(f"{'':>{len(gutter)}}|", style="blue")
    lines += [bar, Text.assemble((f"{gutter}| ", "blue"), safe(place.text, console=console))]
    if place.column:
        before = safe(place.text[: place.column - 1], console=console)
        marked = safe(place.text[place.column - 1 :][: place.length], console=console)
        carets = "^" * max(cell_len(marked), 1)
        lines.append(Text.assemble(bar, f" {' ' * cell_len(before)}", (carets, "bold red")))
    return lines


def _hint_line(hint: str, *, indent: int, console: Console) -> Text:
    return Text.assemble((f"{' ' * indent}= hint: ", "blue"), safe(hint, console=console))
