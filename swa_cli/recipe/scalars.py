"""Parsing of a single value: the field decides its type, not YAML.

One idea: unquoted text arrives as `Plain`, so that a number field can read `1e-4` and a text field can refuse `no`,
which YAML readers take for a truth value. Ambiguous text is an error.
Every `ValueError` here is `what is wrong: what to do`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

TRUTH_WORDS = ("true", "false", "yes", "no", "on", "off")
NULL_WORDS = ("", "~", "null")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[-+]?\d+", re.ASCII)
_LEADING_ZERO = re.compile(r"[-+]?0+\d+", re.ASCII)
_NUMBER_ELSEWHERE = re.compile(r"[-+]?(0x[0-9a-f]+|0o[0-7]+|0b[01]+|\d[\d_]*(\.[\d_]*)?)", re.ASCII | re.IGNORECASE)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
MAX_DIGITS = 18  # whole numbers up to 10^18 fit into 64 bits


class Plain(str):
    """Text without quotes in a recipe or on the command line."""


class Word(Plain):
    """Text without quotes on the command line, where the shell removes a pair of quotes."""


def is_null(value: object) -> bool:
    """Return whether a value is empty or one of YAML's words for null."""
    return value is None or (isinstance(value, Plain) and value.lower() in NULL_WORDS)


def shown(value: object) -> str:
    """Write a value as a message names it."""
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"


def quoted(value: object) -> str:
    """Write a value as text in quotes; on the command line in a second pair, which the shell removes."""
    return f"'\"{value}\"'" if isinstance(value, Word) else f'"{value}"'


def written(value: object) -> str:
    """Return the text of a single value, whatever its type will be; refuse a section, a list and null."""
    if value == "" and isinstance(value, Plain):
        raise ValueError("has no value: write one, or leave the key out")
    if is_null(value):
        raise ValueError(f"{shown(value)} is not a value: leave the key out, or write {quoted(value)} for text")
    if isinstance(value, (Mapping, list, tuple)):
        raise ValueError(f"takes a single value, not {shown(value)}: write one value")
    if "\0" in str(value):
        raise ValueError("has a character that no text can have: remove the \\0")
    return str(value).lower() if isinstance(value, bool) else str(value)


def text(value: object) -> str:
    """Parse text; refuse unquoted words that YAML takes for truth values."""
    word = written(value)
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not text: put it in quotes")
    if isinstance(value, Plain) and word.lower() in TRUTH_WORDS:
        raise ValueError(f"{shown(value)} is not text in YAML: write {quoted(value)}")
    return word


def flag(value: object) -> bool:
    """Parse true or false; refuse anything else, `yes` and `True` included."""
    if isinstance(value, bool):
        return value
    word = written(value)
    if isinstance(value, Plain) and word in ("true", "false"):
        return word == "true"
    meant = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
    raise ValueError(f"{shown(value)} is not a truth value: write {meant.get(word.lower(), 'true or false')}")


def number(value: object) -> float:
    """Parse a finite number: `1`, `.1`, `0.1`, `5e-4`; refuse quoted and ambiguous ones."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        found: float = value
    else:
        word = written(value)
        _refuse_quoted(value)
        if not _NUMBER.fullmatch(word) or _LEADING_ZERO.fullmatch(word):
            raise ValueError(_why_no_number(word))
        found = float(word)
    if not math.isfinite(found):
        raise ValueError(f"{shown(value)} is not finite: write a smaller number")
    return found


def whole(value: object) -> int:
    """Parse a whole number of digits alone; refuse `1.0`, `012`, `0x10`, `1_000` and `1e3`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    word = written(value)
    _refuse_quoted(value)
    if _WHOLE.fullmatch(word) and not _LEADING_ZERO.fullmatch(word):
        if len(word) > MAX_DIGITS:
            raise ValueError(f"{shown(value)} is too large: write at most {MAX_DIGITS} digits")
        return int(word)
    if _NUMBER.fullmatch(word) and not _LEADING_ZERO.fullmatch(word):
        exact = float(word)
        action = f"write {exact:.0f}" if abs(exact) < 1e15 and exact.is_integer() else "write it without a fraction"
        raise ValueError(f"{shown(value)} is not a whole number: {action}")
    raise ValueError(_why_no_number(word, kind="a whole number"))


def free(value: object, *, takes_null: bool = False) -> object:
    """Parse a value of a section with open keys, typed by its form; with `takes_null`, null is Python's None."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("has a key that is not text: put it in quotes")
        return {str(key): free(item, takes_null=takes_null) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [free(item, takes_null=takes_null) for item in value]
    if takes_null and value != "" and is_null(value):
        return None
    if isinstance(value, Plain):
        return _by_form(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (bool, int, str)):
        return value
    raise ValueError(f"{shown(value)} is not a value of a recipe: write a number, true, false or text")


def is_utf8(text: str) -> bool:
    """Return whether text can be encoded: Python decodes other bytes of a word or file name as lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def is_text(word: str) -> bool:
    """Return whether unquoted text is text in YAML too, not a number, truth value or null."""
    try:
        return _by_form(Plain(word)) == word
    except ValueError:
        return False


def _by_form(value: Plain) -> bool | float | str:
    word = written(value)
    if word in ("true", "false"):
        return word == "true"
    if word.lower() in TRUTH_WORDS:
        raise ValueError(f"{shown(value)} is ambiguous: write true or false, or {quoted(value)} for text")
    if _WHOLE.fullmatch(word):
        return whole(value)
    if _NUMBER.fullmatch(word) or _NUMBER_ELSEWHERE.fullmatch(word) or _NOT_FINITE.fullmatch(word):
        return number(value)
    return word


def _refuse_quoted(value: object) -> None:
    if isinstance(value, str) and not isinstance(value, Plain) and _NUMBER.fullmatch(value):
        raise ValueError(f'`"{value}"` is text: remove the quotes')


def _why_no_number(word: str, *, kind: str = "a number") -> str:
    """Say what is wrong with text in place of a number, and what to write."""
    name = shown(word)
    if _LEADING_ZERO.fullmatch(word):
        digits = word.lstrip("+-0") or "0"
        meant = word[0] + digits if word[0] == "-" else digits
        if len(word) <= MAX_DIGITS and re.fullmatch("[0-7]+", digits) and int(digits, 8) != int(digits):
            return f"{name} may be {digits} or, as octal, {int(digits, 8)}: write {meant}"
        return f"{name} begins with a zero: write {shown(meant)[1:-1]}"
    if _NOT_FINITE.fullmatch(word):
        return f"{name} is not finite: write a finite number"
    if len(word) <= MAX_DIGITS and _NUMBER_ELSEWHERE.fullmatch(word):
        based = re.fullmatch("[-+]?0[xob].+", word, re.IGNORECASE)
        plain = str(int(word, 0)) if based else word.replace("_", "")
        return f"{name} is not how a recipe writes {kind}: write {plain}"
    return f"{name} is not {kind}: write digits, such as {'10' if 'whole' in kind else '0.1 or 1e-4'}"
