"""What may be printed where: consoles that take text literally, and text made harmless for them.

Names come from recipes and files, so no text is read as markup, control characters never reach the terminal,
and a character which the page's encoding lacks is spelled with those that it has (`±` becomes `+-`).
"""

from __future__ import annotations

import os
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

NOT_MEASURED = "·"
PLUS_MINUS = "±"
MINUS = "−"
_ASCII = {NOT_MEASURED: ".", PLUS_MINUS: "+-", MINUS: "-", "…": "..."}


def open_console(file: TextIO | None = None, *, stderr: bool = False) -> Console:
    """A console on `file`, or on whatever stdout or stderr is when something is printed.

    In a notebook too: there rich would print each line as a page of HTML of its own, and lose what is on stderr.
    """
    return Console(file=file, stderr=stderr, markup=False, highlight=False, emoji=False, force_jupyter=False)


def in_notebook() -> bool:
    """Whether this is a notebook's kernel or a command in a cell (`!swa ...`).

    Such a command has a terminal of its own, but the cell that shows it cannot move the cursor up.
    """
    return "JPY_PARENT_PID" in os.environ


def open_log(file: TextIO, *, width: int) -> Console:
    """A console that writes plain text whatever the environment says about colours and terminals."""
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
    """`text` with each control character replaced by one harmless character, so columns stay in place."""
    return "".join(_harmless(char) for char in text)


def safe(text: str, *, console: Console) -> str:
    """`text` as `console` can print it: no control characters, nothing outside its encoding."""
    text = printable(text)
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return "".join(_spell(char, encoding=console.encoding) for char in text)
    return text


def hanging(head: Text, text: str, *, console: Console, indent: int = 2) -> list[Text]:
    """`text` after `head`, wrapped between words at the console's width, its later lines indented.

    A word longer than the line stays whole, so that a path can be copied.
    """
    lines = [head.copy()]
    for number, word in enumerate(safe(text, console=console).split(" ")):
        if number and lines[-1].cell_len + 1 + cell_len(word) > console.width:
            lines.append(Text(" " * indent + word))
        else:
            lines[-1].append(f" {word}" if number else word)
    return lines


def _harmless(char: str) -> str:
    if char.isprintable():
        return char
    return " " if char.isspace() else "\N{REPLACEMENT CHARACTER}"


def _spell(char: str, *, encoding: str) -> str:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return _ASCII.get(char, "?")
    return char
