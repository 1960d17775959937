"""The text of a recipe file, or why it cannot be had.

The one idea: a file that is no recipe (a folder, a checkpoint) is refused before anything parses it.
"""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path

from swa_cli.errors import UserError
from swa_cli.recipe import scalars

MAX_BYTES = 1 << 20
SHIPPED = Path(__file__).parent / "shipped"  # the folder `recipes` of the repository; installed, its files


def shipped_names() -> list[str]:
    """The names of the recipes that come with swa."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml"))


def recipe_path(word: Path | str) -> Path | str:
    """The file of a recipe that comes with swa, where a word is its name and there is no such file; else the word."""
    name = str(word)
    return SHIPPED / f"{name}.yaml" if name in shipped_names() and not os.path.isfile(name) else word


def file_text(path: Path | str) -> str:
    """The text of a recipe file.

    Raises:
        UserError: It is missing, cannot be read, is larger than `MAX_BYTES` or is not text.
    """
    hint = "name a recipe, a YAML file"
    if not scalars.is_utf8(str(Path(path).absolute())):  # a run records where its recipe lay
        raise UserError(f"{path}: its path has bytes that are not UTF-8", hint="rename the file or its folder")
    try:
        # O_NONBLOCK: to open a pipe that nobody writes to would wait for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: is no regular file", hint=hint)
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file", hint=_similar_recipe(Path(path)) or hint) from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder", hint=f"{hint} in it") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: cannot be read ({reason})", hint=hint) from error
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: is larger than any recipe ({MAX_BYTES >> 20} MiB)", hint=hint)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: is not text in UTF-8 (line {line})", hint=f"{hint} in UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path}: is not a text file", hint=hint)
    return text


def _similar_recipe(path: Path) -> str | None:
    """A hint at a recipe beside the one that is missing, or at one that comes with swa."""
    try:
        names = [item.name for item in path.parent.iterdir() if item.suffix in (".yaml", ".yml")]
    except (OSError, ValueError):
        names = []
    if close := difflib.get_close_matches(path.name, names, n=1):
        return f"did you mean {path.parent / close[0]}?"
    close = difflib.get_close_matches(path.stem, shipped_names(), n=1)
    return f"did you mean {close[0]}, which comes with swa?" if close else None
