"""`swa recipes`: list or print the recipes that come with swa."""

from __future__ import annotations

from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, Json, NewFile, answer, deliver

EPILOG = f"""\b
Examples:
  swa recipes
  swa recipes digits
  swa recipes paper/cifar100_vgg16 -o vgg.yaml
  swa train vgg.yaml

{LOOKING_CODES}"""


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Recipe to print; default: list all.")] = None,
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
