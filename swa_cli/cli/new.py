"""`swa new`: write a recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, NewFile, deliver

PHOTOS = "photos"
EPILOG = f"""\b
Examples:
  swa new -o recipe.yaml
  swa new --task segmentation -o masks.yaml
  swa new --task photos --data pets -o pets.yaml
  swa train recipe.yaml

{LOOKING_CODES}"""


def new(
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="classification, segmentation, regression, or photos.")
    ] = "classification",
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="photos: the folder, with a subfolder per class.")
    ] = None,
    out: NewFile = None,
) -> None:
    """Write a recipe that trains as it is, with every key, its meaning and its default.

    For photos it looks at the folder: image size, epochs and batch size follow from what it finds.
    """
    from swa_cli.recipe.templates import STARTS, template_of

    if (task == PHOTOS) != (data is not None):
        raise typer.BadParameter("--task photos and --data DIR go together: swa new --task photos --data DIR")
    if data is not None:
        from swa_cli.analysis.new import photos_recipe
        from swa_cli.report.terminal import Terminal

        deliver(photos_recipe(data, terminal=Terminal()), out)
        return
    if task not in STARTS:
        choices = ", ".join([*STARTS, PHOTOS])
        raise typer.BadParameter(f"--task {task}: choose {choices}; a task of your own is set in the recipe")
    deliver(template_of(task), out)
