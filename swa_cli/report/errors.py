"""What went wrong, as a person reads it: the message, the place, the key underlined in its line, one action.

All problems of a recipe are shown at once; nothing here decides what is wrong.

An error inside a person's own network, dataset or task: the frames that are theirs, and nothing of ours or torch's.

A traceback is read as the text that Python makes of it, which is all that a loader process sends of its own.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from swa_cli.errors import Place, Problem
from swa_cli.report.console_text import open_console, safe


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


_FRAME = re.compile(r'  File "(?P<path>.*)", line \d+')
_BEGINNING = "Traceback (most recent call last):\n"
_MACHINERY = ("swa_cli", "torch", "torchvision", "typer", "click")  # installed, and no place to look


def own_frames(error: BaseException) -> list[str]:
    """The frames of an error that lie in a person's own files, the innermost last, each of one or more lines."""
    frames: list[list[str]] = []
    for line in _traceback(error).splitlines():
        if _FRAME.match(line):
            frames.append([line])
        elif frames and line.startswith("    "):
            frames[-1].append(line)
        elif not line.startswith(" "):  # the error itself
            break
    return ["\n".join(frame) for frame in frames if _is_own(frame[0])]


def print_own_error(error: BaseException, frames: Sequence[str], *, file: TextIO | None = None) -> None:
    """Print what was raised and a person's own frames, then how far the command came, to `file` or else stderr."""
    console = open_console(file, stderr=file is None)
    first, *others = _words(error).split("\n")
    lines = [Text.assemble(("error: ", "bold red"), (safe(first, console=console), "bold"))]
    lines += [Text("  " + safe(line, console=console)) for line in others]
    lines += [Text(safe(line, console=console)) for frame in frames for line in frame.split("\n")]
    hint = "this is in your own code; `swa --traceback ...` shows the frames of swa and torch too"
    lines.append(Text.assemble(("  = hint: ", "blue"), safe(hint, console=console)))
    lines += [Text(safe(note, console=console)) for note in notes_of(error)]
    console.print(Text("\n").join(lines), soft_wrap=True)


def notes_of(error: BaseException) -> list[str]:
    """What was added to an error on its way: how far the command came."""
    return list(getattr(error, "__notes__", ()))


def _traceback(error: BaseException) -> str:
    """Frames and message, of an error that came from a loader process those which it had there."""
    return "".join(traceback.format_exception(error, chain=False)).rpartition(_BEGINNING)[2]


def _words(error: BaseException) -> str:
    """`ValueError: ...`, which follows the frames, without notes."""
    lines = _traceback(error).rstrip().split("\n")
    begin = next((index for index, line in enumerate(lines) if not line.startswith(" ")), 0)
    return "\n".join(lines[begin : len(lines) - sum(note.count("\n") + 1 for note in notes_of(error))])


def _is_own(frame: str) -> bool:
    match = _FRAME.match(frame)
    assert match is not None, "only lines that match begin a frame"
    path = Path(match["path"])
    for place, part in enumerate(path.parts):
        if part in ("site-packages", "dist-packages"):
            return path.parts[place + 1] not in _MACHINERY
    ours = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))
    return path.is_absolute() and not any(path.is_relative_to(folder) for folder in ours)
