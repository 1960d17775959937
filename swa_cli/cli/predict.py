"""`swa predict`: predict what image files show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, AllowCode, Json, Quiet, RecipeOption, answer, importing

EPILOG = f"""\b
Examples:
  swa predict runs/latest photos/ -o predictions.csv
  swa predict runs/latest/checkpoints/swa.pt a.jpg b.png --top 3
  swa predict runs/latest photos/ --ensemble --tta flip -o p.parquet
  swa predict runs/scenes-001 photos/ -o masks
  swa predict swa.pt photos/ --json train.device=cpu dataset.workers=4

{LOOKING_CODES}"""

CHANGE = re.compile(r"(dataset|eval|train)(\.\w+)+=.*", re.DOTALL)
TTA = ("none", "flip", "flip_translate")


def predict(
    ckpt: Annotated[Path, typer.Argument(metavar="CKPT|RUN", help="Checkpoint (.pt, .safetensors) or run folder.")],
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Images, and folders that are searched for images.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="A .csv, .json or .parquet file; a new folder for masks; default: stdout.",
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="NAME", help="Weight set; default: the average of the run.")
    ] = None,
    top: Annotated[
        int, typer.Option("--top", metavar="K", min=1, help="Give the K most probable classes of each image.")
    ] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", min=1, help="Images at once; default: the recipe's eval.batch_size."),
    ] = None,
    tta: Annotated[
        str | None,
        typer.Option("--tta", metavar="|".join(TTA), help="Test-time augmentation; default: the recipe's eval.tta."),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Of a run: the mean prediction of its M snapshots, at M times the cost.")
    ] = False,
    allow_stale_bn: Annotated[
        bool, typer.Option("--allow-stale-bn", help="Also take an average with stale BatchNorm statistics.")
    ] = False,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict what image files show: classes, masks or numbers, as the task is.

    Images have any size and mode; they are shown to the network as `swa eval` shows them, by what the checkpoint says.
    Broken files are named and left out. Changes (KEY=VALUE among the paths) are limited to dataset.workers, eval.* and
    train.{device,threads}.
    """
    if tta is not None and tta not in TTA:
        raise typer.BadParameter(f"--tta {tta}: choose {', '.join(TTA)}")
    if ensemble and weights is not None:
        raise typer.BadParameter("--weights names one weight set, and --ensemble takes the snapshots: give one of them")
    changes = [word for word in paths if CHANGE.fullmatch(word) and not Path(word).exists()]
    sources = [Path(word) for word in paths if word not in changes]
    if not sources:
        raise typer.BadParameter("name images, or folders of images")
    if batch_size is not None:
        changes.append(f"eval.batch_size={batch_size}")
    if tta is not None:
        changes.append(f"eval.tta={tta}")
    with importing():
        from swa_cli.analysis.predict import Request, predict_files
    from swa_cli.report.terminal import Terminal

    request = Request(
        ckpt,
        sources,
        out=out,
        weights=weights,
        top=top,
        with_ensemble=ensemble,
        allow_stale_bn=allow_stale_bn,
    )
    terminal = Terminal(quiet=quiet, json=as_json)
    result = predict_files(request, changes, terminal=terminal, as_json=as_json, recipe=recipe, allow_code=allow_code)
    answer(result, as_json=as_json and out is not None)
