"""A recipe to begin with: every key that there is, with its meaning, its choices and its default.

One idea: it is written from the schema. Only what a task begins with is chosen here; all else is commented out
with its default, so that the text says what the shortest recipe says.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from swa_cli.recipe.schema import SGD_DEFAULTS, Recipe
from swa_cli.recipe.sections import Key, keys

WIDTH = 100
INDENT = "  "
NAME = "NAME"  # stands for a name of the user's own
# What is written out, by dotted key. The data lie in the package, or are drawn from a seed.
COMMON = {"schedule.name": "cosine", "swa.start": "75%", "swa.every": "1ep", "output.root": "runs"}
STARTS: Mapping[str, Mapping[str, str]] = {
    "classification": {
        "model.name": "convnet",
        "model.args": "{width: 16}",
        "dataset.name": "digits",
        "optimizer.lr": "0.1",
        "swa.lr": "0.05",
        "train.epochs": "20",
        "train.batch_size": "64",
    },
    "segmentation": {
        "model.name": "unet",
        "model.args": "{depth: 2, width: 8}",
        "dataset.name": "shapes",
        "dataset.args": "{size: 32, train: 600, test: 200, classes: 2}",
        "optimizer.lr": "0.1",
        "swa.lr": "0.05",
        "train.epochs": "10",
        "train.batch_size": "16",
    },
    "regression": {
        "model.name": "convnet",
        "model.args": "{width: 16}",
        "dataset.name": "rotated_digits",
        "optimizer.lr": "0.01",
        "swa.lr": "0.005",
        "train.epochs": "20",
        "train.batch_size": "64",
    },
}
HEAD = """\
# swa train recipe.yaml
# Every key that a recipe can have. What begins with #key: is left out and has that default: to set it, remove the #,
# and that of its section. Durations carry their unit: 75% of the run, 23ep, 0.25ep, 200step, 1cycle.
"""


def template(task: str) -> str:
    """The text of a recipe for one of the tasks in `STARTS`, which trains in seconds."""
    written = {"task": task, **COMMON, **STARTS[task]}
    return HEAD + "".join(f"{line}\n" for line in _section(keys(Recipe), "", written, depth=0))


def _section(
    found: list[Key], path: str, written: Mapping[str, str], *, depth: int, hidden: bool = False
) -> Iterator[str]:
    """The lines of a section's keys; all of them commented out if `hidden`."""
    for key in found:
        own = f"{path}{key.name}"
        indent = INDENT * depth
        is_written = any(name == own or name.startswith(f"{own}.") for name in written)
        mark = "" if is_written and not hidden else "#"
        if depth == 0 and key.section is not None:
            yield ""
        yield from _comment(key, indent)
        if key.section is None:
            yield f"{mark}{indent}{key.name}: {written.get(own) or _text(key.default)}".rstrip()
            continue
        yield f"{mark}{indent}{key.name}:"
        inner = keys(key.section)
        if key.many == "named":
            yield f"#{indent}{INDENT}{NAME}:"
            yield from _section(inner, f"{own}.{NAME}.", {}, depth=depth + 2, hidden=True)
        elif key.many == "listed":
            yield from _listed(inner, f"{own}.", depth=depth)
        else:
            yield from _section(inner, f"{own}.", written, depth=depth + 1, hidden=bool(mark))
        if own == "optimizer":
            yield f"{indent}{INDENT}# any option of the class; of SGD:"
            yield from (f"#{indent}{INDENT}{name}: {_text(value)}" for name, value in SGD_DEFAULTS.items())


def _listed(inner: list[Key], path: str, *, depth: int) -> Iterator[str]:
    """One item of a list, its first key behind the dash."""
    is_first = True
    for line in _section(inner, path, {}, depth=depth + 2, hidden=True):
        if is_first and line.startswith("#"):
            line = line.replace(INDENT * (depth + 2), f"{INDENT * (depth + 1)}- ", 1)
            is_first = False
        yield line


def _comment(key: Key, indent: str) -> list[str]:
    choices = f" ({' | '.join(key.choices)})" if key.choices else ""
    lines = textwrap.wrap(key.description + choices, WIDTH - len(indent), break_long_words=False)
    return [f"{indent}# {line}" for line in lines]


def _text(value: Any) -> str:
    """A value as a recipe has it; nothing where there is no default."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
