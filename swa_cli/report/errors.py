"""Print errors: the message, the place, the key underlined in its line, and one action.

All problems of a recipe are printed at once. An error inside a user's network, dataset or task is printed with the
frames of the user's files alone. They are parsed from the text of the traceback, which is all that a data loader
process sends.
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
from swa_cli.report.console_text import open_console, print_lines, safe
from swa_cli.units import count_text


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


_FRAME = re.compile(r'  File "(?P<path>.*)", line \d+')
_BEGINNING = "Traceback (most recent call last):\n"
# Installed packages whose frames are left out: swa calls them itself.
_INTERNAL = (
    *("swa_cli", "torch", "torchvision", "typer", "click", "rich", "yaml", "pydantic", "pydantic_core", "filelock"),
    *("numpy", "PIL", "matplotlib", "jinja2", "safetensors", "simplejpeg", "timm", "datasets", "pyarrow", "optuna"),
    *("tensorboard", "wandb", "mlflow", "onnx", "onnxscript", "onnxruntime"),
)


def user_frames(error: BaseException) -> list[str]:
    """Return the frames of an error in the user's files, the innermost last, each of one or more lines."""
    frames: list[list[str]] = []
    for line in _traceback(error).splitlines():
        if _FRAME.match(line):
            frames.append([line])
        elif frames and line.startswith("    "):
            frames[-1].append(line)
        elif not line.startswith(" "):  # the exception
            break
    return ["\n".join(frame) for frame in frames if _is_users(frame[0])]


def notes_of(error: BaseException) -> list[str]:
    """Return the notes of an error, which say how far the command came."""
    return list(getattr(error, "__notes__", ()))


def _traceback(error: BaseException) -> str:
    """Return the text of an error's last traceback; of an error of a loader process, that of the process."""
    return "".join(traceback.format_exception(error, chain=False)).rpartition(_BEGINNING)[2]


def _exception_text(error: BaseException) -> str:
    """Return the text after the frames, such as `ValueError: ...`, without notes."""
    lines = _traceback(error).rstrip().split("\n")
    begin = next((index for index, line in enumerate(lines) if not line.startswith(" ")), 0)
    return "\n".join(lines[begin : len(lines) - sum(note.count("\n") + 1 for note in notes_of(error))])


def _is_users(frame: str) -> bool:
    match = _FRAME.match(frame)
    assert match is not None, "a frame starts with a line that matches"
    path = Path(match["path"])
    for place, part in enumerate(path.parts):
        if part in ("site-packages", "dist-packages"):
            return path.parts[place + 1] not in _INTERNAL
    ours = (Path(__file__).parents[1], Path(sysconfig.get_path("stdlib")))
    return path.is_absolute() and not any(path.is_relative_to(folder) for folder in ours)
