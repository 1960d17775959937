"""A person's own code, named in a recipe as `package.module:attribute`: where it is found, and who allows it.

Nothing of a checkpoint runs code unless it is allowed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from swa_cli import models
from swa_cli.errors import UserError
from swa_cli.recipe.schema import Recipe
from swa_cli.training.run_folder import about


def import_from(folder: Path) -> None:
    """Let `package.module:attribute` be found beside the recipe and in the working directory.

    A recipe or checkpoint inside a run folder was written there by a run: run.json says where its recipe lay.
    """
    folders = [folder, Path.cwd()]
    for record in (folder / "run.json", folder.parent / "run.json"):
        if record.is_file():
            folders.append(Path(about(record)["recipe_folder"]))
    for path in map(str, folders):
        if path not in sys.path:
            sys.path.append(path)


def require_trust(recipe: Recipe, *, source: str, allow_code: bool) -> None:
    """Opening a file runs no code: a recipe inside a checkpoint may name some.

    Raises:
        UserError: It does, and nobody has allowed it.
    """
    names = named_code(recipe)
    if names and not allow_code:
        raise UserError(
            f"{source}: its recipe would import and run code: {', '.join(names)}",
            hint="if you know that code, say --allow-code",
        )


def named_code(recipe: Recipe) -> list[str]:
    """Each key of a recipe that names code to import, and the name."""
    keys = {"model.name": recipe.model.name, "dataset.name": recipe.dataset.name, "task": recipe.task}
    return [f"{key} {name}" for key, name in keys.items() if is_own_code(name)]


def is_own_code(name: str) -> bool:
    """Whether a name of a recipe is `package.module:attribute`."""
    source, colon, _ = name.partition(":")
    return bool(colon) and source not in models.LIBRARIES
