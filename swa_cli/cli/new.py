"""`swa new`: write a recipe to start from."""

from __future__ import annotations

from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, NewFile, deliver

EPILOG = f"""\b
Examples:
  swa new -o recipe.yaml
  swa new --task segmentation -o masks.yaml
  swa train recipe.yaml

{LOOKING_CODES}"""


def new(
    task: Annotated[
        str, typer.Option("--task", metavar="TASK", help="classification, segmentation or regression.")
    ] = "classification",
    out: NewFile = None,
) -> None:
    """Write a recipe that trains as it is, with every key, its meaning and its default."""
    from swa_cli.recipe.templates import STARTS, template

    if task not in STARTS:
        raise typer.BadParameter(f"--task {task}: choose {', '.join(STARTS)}; a task of your own is set in the recipe")
    deliver(template(task), out)
