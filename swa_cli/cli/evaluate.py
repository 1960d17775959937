"""`swa eval`: score a checkpoint or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import EXIT_CODES, AllowCode, Changes, Json, Quiet, RecipeOption, answer, importing

EPILOG = f"""\b
Examples:
  swa eval runs/latest
  swa eval runs/latest --ensemble
  swa eval runs/latest --weights swa --per-class --predictions samples.csv
  swa eval runs/latest/checkpoints/last.pt --weights last --split val
  swa eval runs/latest/checkpoints/swag.pt --draws 30
  swa eval runs/digits-repeat-001 --ensemble --draws 30
  swa eval theirs.safetensors --recipe recipe.yaml --json

{EXIT_CODES}"""


def evaluate(
    ckpt: Annotated[
        Path, typer.Argument(metavar="CKPT|RUN|REPEAT", help="Checkpoint (.pt, .safetensors) or run folder.")
    ],
    changes: Changes = None,
    weights: Annotated[str, typer.Option("--weights", metavar="NAME|all", help="Weight sets to score.")] = "all",
    split: Annotated[
        str | None,
        typer.Option(
            "--split", metavar="test|val|train", help="Split to score; default: test, or val without a test split."
        ),
    ] = None,
    allow_stale_bn: Annotated[
        bool, typer.Option("--allow-stale-bn", help="Also score averages with stale BatchNorm statistics.")
    ] = False,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws", metavar="N", min=1, help="Score a swag average by the mean prediction of N draws from it."
        ),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            metavar="N|auto|all",
            help="With --draws: training samples of the BatchNorm pass of each; default: the recipe's.",
        ),
    ] = None,
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble",
            help="Also score the mean prediction of the M snapshots of a run, or of the M runs of a repeat.",
        ),
    ] = False,
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help="Also the scores of each class (precision, recall, F1, ...) and their means."),
    ] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", metavar="FILE.csv", help="Write path, label, prediction and loss of each sample."
        ),
    ] = None,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score the weight sets of a checkpoint or a run folder, with sampling errors.

    A run folder is only read, so the run may still train.
    Changes are limited to dataset.*, eval.* and train.{device,precision,threads}.
    """
    if split not in (None, "train", "val", "test"):
        raise typer.BadParameter(f"--split {split}: choose test, val or train")
    if samples is not None and draws is None:
        raise typer.BadParameter("--samples goes with --draws; other BatchNorm passes follow the recipe")
    with importing():
        from swa_cli.analysis.evaluate import evaluate_checkpoint
    from swa_cli.report.terminal import Terminal

    result = evaluate_checkpoint(
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
        with_ensemble=ensemble,
        with_classes=per_class,
        predictions=predictions,
    )
    answer(result, as_json=as_json)
