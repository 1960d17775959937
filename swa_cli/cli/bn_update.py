"""`swa bn-update`: recompute the BatchNorm statistics of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import EXIT_CODES, AllowCode, Changes, Checkpoint, Json, Quiet, RecipeOption, answer, importing

EPILOG = f"""\b
Examples:
  swa bn-update runs/latest/checkpoints/last.pt
  swa bn-update runs/latest/checkpoints/swa.pt --samples 10000 -o quick.pt
  swa bn-update runs/latest/checkpoints/last.pt --weights swa -o swa.pt
  swa bn-update theirs.pt --recipe recipe.yaml -o fresh.pt

{EXIT_CODES}"""


def bn_update(
    ckpt: Checkpoint,
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write here, and leave CKPT as it is.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="NAME", help="Weight set; default: every average in the file.")
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option("--samples", metavar="N|auto|all", help="Training samples of the pass; default: the recipe's."),
    ] = None,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Recompute the BatchNorm statistics of a checkpoint over the training set, in place and atomically.

    Changes are limited to dataset.*, eval.* and train.{device,precision,threads}.
    """
    with importing():
        from swa_cli.analysis.bn_update import update_checkpoint
    from swa_cli.report.terminal import Terminal

    result = update_checkpoint(
        ckpt,
        changes or [],
        terminal=Terminal(quiet=quiet, json=as_json),
        out=out,
        weights=weights,
        samples=samples,
        recipe=recipe,
        allow_code=allow_code,
    )
    answer(result, as_json=as_json)
