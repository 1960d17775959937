"""`swa plan`: what a run will do, epoch by epoch, and how long it will take."""

from __future__ import annotations

from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, Changes, Json, answer

EPILOG = f"""\b
Examples:
  swa plan recipes/digits.yaml
  swa plan recipe.yaml train.epochs=100 swa.start=60%
  swa plan recipe.yaml --json

{LOOKING_CODES}"""


def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe (YAML).", show_default=False)],
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Show steps, learning rates, averaged epochs, memory and an estimate of the time, from a few timed steps.

    Data are read and a few steps are done; nothing is written.
    """
    from swa_cli.recipe import load
    from swa_cli.report.terminal import Terminal

    loaded = load.load(recipe, changes or [])
    from swa_cli.training import rehearsal, trainer

    terminal = Terminal(json=as_json, quiet=as_json)
    answer(rehearsal.plan(trainer.ready(loaded, terminal=terminal)), as_json=as_json)
