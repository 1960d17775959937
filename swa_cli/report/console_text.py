"""Make text safe for consoles, and wrap it.

Names come from recipes and files, so no text is parsed as markup, control characters never reach the terminal, and a
character that the encoding lacks is replaced (`±` by `+-`).
"""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Lines = Callable[[Console], list[Text]]  # lays out the same text for any console

NOT_MEASURED = "·"
PLUS_MINUS = "±"
MINUS = "−"
_ASCII = {NOT_MEASURED: ".", PLUS_MINUS: "+-", MINUS: "-", "…": "..."}


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
