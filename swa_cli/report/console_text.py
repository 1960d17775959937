"""Open consoles that print text literally, and make text safe for them.

Names come from recipes and files, so no text is parsed as markup, control characters never reach the terminal, and a
character that the encoding lacks is replaced (`±` by `+-`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Lines = Callable[[Console], list[Text]]  # lays out the same text for any console

NOT_MEASURED = "·"
PLUS_MINUS = "±"
MINUS = "−"
_ASCII = {NOT_MEASURED: ".", PLUS_MINUS: "+-", MINUS: "-", "…": "..."}


def open_console(file: TextIO | None = None, *, stderr: bool = False) -> Console:
    """Open a console on `file`, or on stdout or stderr as they are when something is printed.

    It prints plain lines in a notebook too, where rich would turn each line into HTML and lose stderr.
    """
    return Console(file=file, stderr=stderr, markup=False, highlight=False, emoji=False, force_jupyter=False)


def in_notebook() -> bool:
    """Return whether this is a notebook's kernel or a command in a cell (`!swa ...`).

    Such a command has a terminal, but the cell that shows its output cannot move the cursor up.
    """
    return "JPY_PARENT_PID" in os.environ


def open_log(file: TextIO, *, width: int) -> Console:
    """Open a console that writes plain text whatever the environment says about colors and terminals."""
    return Console(
        file=file,
        width=width,
        force_terminal=False,
        force_jupyter=False,
        color_system=None,
        markup=False,
        highlight=False,
        emoji=False,
    )


def printable(text: str) -> str:
    """Replace each control character by one harmless character, so that columns stay aligned."""
    return "".join(_replace_control(char) for char in text)


def safe(text: str, *, console: Console) -> str:
    """Return `text` as `console` can print it: no control characters, nothing outside its encoding."""
    text = printable(text)
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return "".join(_encodable(char, encoding=console.encoding) for char in text)
    return text


def hanging(head: Text, text: str, *, console: Console, indent: int = 2) -> list[Text]:
    """Wrap `text` after `head` between words at the console's width, with a hanging indent.

    A word longer than the line stays whole, so that a path can be copied.
    """
    lines = [head.copy()]
    for number, word in enumerate(safe(text, console=console).split(" ")):
        if number and lines[-1].cell_len + 1 + cell_len(word) > console.width:
            lines.append(Text(" " * indent + word))
        else:
            lines[-1].append(f" {word}" if number else word)
    return lines


def _replace_control(char: str) -> str:
    if char.isprintable():
        return char
    return " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"


def _encodable(char: str, *, encoding: str) -> str:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return _ASCII.get(char, "?")
    return char
