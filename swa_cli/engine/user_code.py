"""Code of a user, named in a recipe as `package.module:attribute`: find it, and ask for permission.

Every text of a recipe that reads like an import path is code, unless its key is known to hold something else: new keys
of the schema are guarded from the start, and so are `args` of a library. Code in a recipe file, or in a change on the
command line, is the user's. Code inside a checkpoint or a run folder is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from swa_cli import units
from swa_cli.checkpoint.run_folder import about
from swa_cli.data import datasets
from swa_cli.errors import UserError
from swa_cli.models import build_model
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.schema import Recipe
from swa_cli.recipe.yaml_document import KeyPath

IMPORTED = ("task", "optimizer.name", "train.loss")  # any colon in them makes them an import path
PATHS = (
    "dataset.root",
    "output.root",
    "train.init",
    "model.pretrained",
)  # a colon is part of a file name, as in C:data


def make_importable(loaded: Loaded) -> None:
    """Let Python import the code that a recipe names from beside the recipe and the working directory.

    `sys.path` is unchanged where the recipe names none: a file that lies there by chance must not take the place of a
    package that is not installed.
    """
    if named_code(loaded.recipe):
        _search(_folders_of(loaded.folder))


def admit(loaded: Loaded, *, source: str, folder: Path, allow_code: bool) -> None:
    """Refuse the code that a recipe inside a checkpoint or a run folder names, or make it importable.

    Code in a change on the command line is the user's: it needs no permission, and is not looked for in `folder`.

    Raises:
        UserError: The recipe, which stands in `source`, names code that was not allowed.
    """
    found = named_code(loaded.recipe)
    foreign = {path: text for path, text in found.items() if not loaded.is_changed(path)}
    if foreign and not allow_code:
        names = ", ".join(f"{'.'.join(map(str, path))} {text}" for path, text in foreign.items())
        raise UserError(
            f"{source}: its recipe would import and run code: {names}",
            hint="add --allow-code if you know and trust this code",
        )
    if found:
        _search(_folders_of(folder) if foreign else [Path.cwd()])


def named_code(recipe: Recipe) -> dict[KeyPath, str]:
    """Return every text of a recipe that names code to import, by its path."""
    texts = _texts(recipe.values(), ())
    return {path: text for path, text in texts if _is_code(".".join(map(str, path)), text)}


def command(words: Iterable[object], recipe: Recipe) -> units.Command:
    """Return a command on files that carry a recipe, as it works: with --allow-code where that names code."""
    return units.command([*words, *["--allow-code"] * bool(named_code(recipe))])


def is_own_code(name: str) -> bool:
    """Return whether `model.name` is `package.module:Attribute`."""
    source, colon, _ = name.partition(":")
    return bool(colon) and source not in build_model.LIBRARIES


def _is_code(key: str, text: str) -> bool:
    if key == "model.name":
        return is_own_code(text)
    if key == "dataset.name":
        return datasets.is_user_code(text)
    if key in IMPORTED:
        return ":" in text
    return key not in PATHS and _is_import_path(text)


def _is_import_path(text: str) -> bool:
    module, colon, attribute = text.strip().partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *attribute.split(".")])


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))


def _folders_of(folder: Path) -> list[Path]:
    """Return the folders that may hold the code of a recipe in `folder`; run.json records where its recipe was."""
    folders = [folder, Path.cwd()]
    for record in (folder / "run.json", folder.parent / "run.json"):
        if record.is_file():
            folders.append(Path(about(record)["recipe_folder"]))
    return folders


def _search(folders: list[Path]) -> None:
    for path in (str(folder.absolute()) for folder in folders):  # Python remembers what `.` was at first
        if path not in sys.path:
            sys.path.append(path)
