"""Print errors: the message, the place, the key underlined in its line, and one action.

All problems of a recipe are printed at once. An error inside a user's network, dataset or task is printed with the
frames of the user's files alone, see `user_frames`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.errors import Place, Problem
from swa_cli.report.console_text import open_console, print_lines, safe
from swa_cli.units import count_text
from swa_cli.user_frames import traceback_text


def print_problems(problems: Sequence[Problem], *, source: str, file: TextIO | None = None) -> None:
    """Print every problem of the recipe `source`, then their number, to `file` or else stderr."""
    console = _console(file)
    lines: list[Text] = []
    for problem in problems:
        subject = f"{problem.key}: " if problem.key else ""
        lines += _error_lines(subject + problem.message, console=console)
        if problem.place is not None:
            lines += _place_lines(problem.place, console=console)
        lines += [_hint_line(problem.hint, indent=3, console=console), Text()]
    lines.append(Text(safe(f"{count_text(len(problems), 'problem')} in {source}. Nothing was run.", console=console)))
    print_lines(lines, console=console)


def print_user_error(message: str, *, hint: str, file: TextIO | None = None) -> None:
    """Print one error and the one action that fixes it, to `file` or else stderr."""
    console = _console(file)
    print_lines([*_error_lines(message, console=console), _hint_line(hint, console=console)], console=console)


def print_user_code_error(error: BaseException, frames: Sequence[str], *, file: TextIO | None = None) -> None:
    """Print an exception of the user's code, its frames and its notes, to `file` or else stderr."""
    console = _console(file)
    lines = _error_lines(_exception_text(error), console=console)
    lines += [Text(safe(line, console=console)) for frame in frames for line in frame.split("\n")]
    hint = "this is in your own code; `swa --traceback ...` shows the frames of swa and torch too"
    lines.append(_hint_line(hint, console=console))
    lines += [Text(safe(note, console=console)) for note in notes_of(error)]
    print_lines(lines, console=console)


def _console(file: TextIO | None) -> Console:
    """Open a console for errors; a stderr that cannot be written does not change how the command ends."""
    return open_console(file, stderr=file is None, on_loss=lambda _: None)


def _error_lines(message: str, *, console: Console) -> list[Text]:
    """Return the lines of a message; those after the first are indented, so that none looks like another error."""
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


def _hint_line(hint: str, *, console: Console, indent: int = 2) -> Text:
    return Text.assemble((f"{' ' * indent}= hint: ", "blue"), safe(hint, console=console))


def notes_of(error: BaseException) -> list[str]:
    """Return the notes of an error, which say how far the command came."""
    return list(getattr(error, "__notes__", ()))


def _exception_text(error: BaseException) -> str:
    """Return the text after the frames, such as `ValueError: ...`, without notes."""
    lines = traceback_text(error).rstrip().split("\n")
    begin = next((index for index, line in enumerate(lines) if not line.startswith(" ")), 0)
    return "\n".join(lines[begin : len(lines) - sum(note.count("\n") + 1 for note in notes_of(error))])
