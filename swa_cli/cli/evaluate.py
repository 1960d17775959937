"""`swa eval`: the scores of a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from swa_cli.cli.shared import EXIT_CODES, AllowCode, Changes, Checkpoint, Json, Quiet, RecipeOption, answer

EPILOG = f"""\b
Examples:
  swa eval runs/latest/checkpoints/swa.pt
  swa eval runs/latest/checkpoints/last.pt --weights last --split val
  swa eval runs/latest/checkpoints/swag.pt --draws 30
  swa eval theirs.safetensors --recipe recipe.yaml --json

{EXIT_CODES}"""


def evaluate(
    ckpt: Checkpoint,
    changes: Changes = None,
    weights: Annotated[str, typer.Option("--weights", metavar="NAME|all", help="Weight sets to score.")] = "all",
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="test|val|train", help="Default: test, or val where there is none."),
    ] = None,
    allow_stale_bn: Annotated[
        bool,
        typer.Option("--allow-stale-bn", help="Score averaged weights whose BatchNorm was not refreshed."),
    ] = False,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            metavar="N",
            min=1,
            help="Score a swag average by N weights drawn from it, averaging predictions.",
        ),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            metavar="N|all",
            help="With --draws: training samples for BatchNorm of each; default: the recipe's.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score the weight sets of a checkpoint, with sampling errors.

    Changes are limited to dataset.*, train.device, train.precision, train.eval_batch_size and train.threads.
    """
    if split not in (None, "train", "val", "test"):
        raise typer.BadParameter(f"--split {split}: choose test, val or train")
    if samples is not None and draws is None:
        raise typer.BadParameter("--samples goes with --draws: nothing else here measures BatchNorm")
    from swa_cli.report.terminal import Terminal
    from swa_cli.training import rescore

    result = rescore.evaluate_checkpoint(
        ckpt,
        changes or [],
        terminal=Terminal(quiet=quiet, json=as_json),
        weights=weights,
        split=split,
        allow_stale_bn=allow_stale_bn,
        num_draws=draws,
        samples=samples,
        recipe=recipe,
        allow_code=allow_code,
    )
    answer(result, as_json=as_json)
