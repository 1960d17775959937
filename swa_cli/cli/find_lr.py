"""`swa find-lr`: find a learning rate with a range test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import (
    LOOKING_CODES,
    PICTURE_FORMATS,
    Changes,
    Json,
    PictureFormat,
    PictureWidth,
    Quiet,
    Recipe,
    answer,
    importing,
    require_format,
)

EPILOG = f"""\b
Examples:
  swa find-lr digits
  swa find-lr recipe.yaml -o lr.png
  swa find-lr recipe.yaml --width 3.3 -o lr.pdf
  swa find-lr recipe.yaml optimizer.name=AdamW --max 1 --steps 200

{LOOKING_CODES}"""


def find_lr(
    recipe: Recipe,
    changes: Changes = None,
    low: Annotated[float, typer.Option("--min", metavar="RATE", help="Rate of the first step.")] = 1e-6,
    high: Annotated[float, typer.Option("--max", metavar="RATE", help="Rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=20, max=100_000, help="Steps, one per rate.")] = 100,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Draw the losses: a .png, .svg or .pdf.",
        ),
    ] = None,
    form: PictureFormat = None,
    width: PictureWidth = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train some steps at growing learning rates; suggest one, and say where training diverges.

    With --format or --width and without -o, the losses are drawn in find-lr.png (.svg, .pdf).
    The network, data and optimizer are those of the recipe, and its schedule is left out. Weights are not kept, and no
    run is made.
    """
    from swa_cli.recipe import load
    from swa_cli.report.terminal import Terminal

    if not (math.isfinite(high) and 0 < low < high):
        raise typer.BadParameter(f"--min {low:g} --max {high:g}: write two rates above 0, the smaller one first")
    require_format(form)
    if out is None and (form or width):
        out = Path(f"find-lr.{form or PICTURE_FORMATS[0]}")
    loaded = load.load(recipe, changes or [])
    with importing():
        from swa_cli.analysis import find_lr as finding

    result = finding.find_lr(
        loaded,
        low=low,
        high=high,
        steps=steps,
        out=out,
        form=form,
        width=width,
        words=[recipe, *(changes or [])],
        terminal=Terminal(quiet=quiet, json=as_json),
    )
    answer(result, as_json=as_json)
