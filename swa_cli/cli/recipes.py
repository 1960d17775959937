"""`swa new`, `swa recipes`, `swa schema`: a recipe to start from, those that come with swa, and their JSON Schema."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, Json, NewFile, answer, deliver, importing

PHOTOS = "photos"
NEW_EPILOG = f"""\b
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
        with importing():
            from swa_cli.analysis.new import photos_recipe
        from swa_cli.report.terminal import Terminal

        text = photos_recipe(data, terminal=Terminal())
    elif task in STARTS:
        text = template_of(task)
    else:
        choices = ", ".join([*STARTS, PHOTOS])
        raise typer.BadParameter(f"--task {task}: choose {choices}; a task of your own is set in the recipe")
    deliver(text.replace("swa train recipe.yaml", f"swa train {shlex.quote(str(out or 'recipe.yaml'))}", 1), out)


RECIPES_EPILOG = f"""\b
Examples:
  swa recipes
  swa recipes digits
  swa recipes paper/cifar100_vgg16 -o vgg.yaml
  swa train vgg.yaml

{LOOKING_CODES}"""


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Recipe to print; default: list all.")] = None,
    out: NewFile = None,
    as_json: Json = False,
) -> None:
    """List the recipes that come with swa and their measured results, or print one of them."""
    from swa_cli.recipe import templates

    if name is not None:
        if as_json:
            raise typer.BadParameter("--json goes with the list: leave out NAME")
        deliver(templates.shipped(name).text, out)
        return
    if out is not None:
        raise typer.BadParameter("-o goes with NAME: name a recipe")
    from swa_cli.report.terminal import Terminal

    terminal, found = Terminal(json=as_json, quiet=as_json), templates.all_shipped()
    for item in found:
        about = [("about", item.about)] if item.about else []
        rows = [
            ("task", item.recipe.task),
            ("data", item.recipe.dataset.name),
            ("model", item.recipe.model.name),
            *about,
            ("result", item.result or "not measured"),
        ]
        terminal.facts(item.name, rows)
    listed = [
        {
            "name": item.name,
            "task": item.recipe.task,
            "dataset": item.recipe.dataset.name,
            "model": item.recipe.model.name,
            "about": item.about,
            "result": item.result,
        }
        for item in found
    ]
    answer({"command": "recipes", "recipes": listed}, as_json=as_json)


SCHEMA_EPILOG = f"""\b
Examples:
  swa schema -o recipe.schema.json
  echo '# yaml-language-server: $schema=recipe.schema.json' > recipe.yaml
  swa new >> recipe.yaml

{LOOKING_CODES}"""


def schema(out: NewFile = None) -> None:
    """Print the JSON Schema of recipes, with which editors complete and explain keys and mark mistakes."""
    from swa_cli.recipe.templates import json_schema

    deliver(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", out)
