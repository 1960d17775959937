"""The recipes that come with swa: by name, with what they are and what was measured with them.

They are the files of the folder `recipes/` of the repository, to which `shipped` beside this file is a link; an
installed package has copies in its place. What is told of a recipe stands in the comment that it begins with.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from swa_cli.errors import UserError
from swa_cli.recipe import load
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.source import SHIPPED, shipped_names

COMMAND = re.compile(r"(\w+: )?swa \w+ ")  # how a line of the comment begins that is to be typed

SENTENCE_END = re.compile(r"(?<=\.)(?<!et al\.)\s+(?=[A-Z0-9])")


@dataclass(frozen=True)
class Shipped:
    """One of our recipes; `result` is what was measured, None where nothing was."""

    name: str
    text: str
    recipe: Recipe
    about: str
    result: str | None


def all_shipped() -> list[Shipped]:
    """Every recipe by name."""
    return [_read(name) for name in shipped_names()]


def shipped(name: str) -> Shipped:
    """The recipe of a name, which may be written as its path is: `recipes/digits.yaml`.

    Raises:
        UserError: There is none.
    """
    wanted, names = name.removeprefix("recipes/").removesuffix(".yaml"), shipped_names()
    if wanted in names:
        return _read(wanted)
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {close[0]}?" if close else "`swa recipes` lists them"
    raise UserError(f"{name}: swa comes with no such recipe", hint=hint)


def _read(name: str) -> Shipped:
    path = SHIPPED / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    told = [line[1:].strip() for line in text.splitlines()[: _length_of_comment(text)]]
    words = " ".join(line for line in told if not COMMAND.match(line))
    sentences = SENTENCE_END.split(words) if words else []
    measured = [sentence for sentence in sentences if "±" in sentence or "measured" in sentence]
    about = " ".join(sentence for sentence in sentences if sentence not in measured)
    return Shipped(name, text, load.load(path).recipe, about, " ".join(measured) or None)


def _length_of_comment(text: str) -> int:
    lines = text.splitlines()
    return next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
