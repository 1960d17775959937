"""`swa doctor`: show versions, hardware and data."""

from __future__ import annotations

from typing import Annotated

import typer

from swa_cli import __version__
from swa_cli.cli.shared import LOOKING_CODES, Changes, Json, answer, importing

EPILOG = f"""\b
Examples:
  swa doctor
  swa doctor recipe.yaml
  swa doctor recipe.yaml dataset.root=/data --json

{LOOKING_CODES}"""


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Also look for the data of this recipe.")
    ] = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Show versions, processor, devices, memory, disk and the place of the data, to paste into a bug report.

    Missing things are shown as missing and are no error. Nothing is written or downloaded.
    """
    from swa_cli.recipe import load
    from swa_cli.report.terminal import Terminal

    loaded = None if recipe is None else load.load(recipe, changes or [])
    with importing():
        from swa_cli.analysis.doctor import examine

    answer(examine(loaded, version=__version__, terminal=Terminal(json=as_json, quiet=as_json)), as_json=as_json)
