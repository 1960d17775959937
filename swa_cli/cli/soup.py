"""`swa soup`: one network from several fine-tunings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from swa_cli.cli.shared import (
    LOOKING_CODES,
    AllowCode,
    Json,
    Quiet,
    RecipeOption,
    answer,
    importing,
    sources_and_changes,
)

EPILOG = f"""\b
Methods:
  greedy       candidates are added, best first, while the validation score
               does not fall (Wortsman et al. 2022)
  uniform      the mean of all
  model_stock  per tensor between the pretrained weights and the mean, by the
               angle of the moves (Jang et al. 2024)

\b
Examples:
  swa repeat recipe.yaml dataset.val_seed=0 --seeds 0-4
  swa soup runs/name-repeat-001 -o soup.pt
  swa soup runs/name-repeat-001 --method model_stock -o stock.pt
  swa soup runs/a-001 runs/b-001 --method model_stock \\
    --pretrained weights.pth -o stock.pt
  swa soup first.pt second.pt --method uniform -o mean.pt

{LOOKING_CODES}"""


def soup(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Finished runs (the weights they ship), folders of a repeat (all its runs) and checkpoints, then"
            " KEY=VALUE changes to the recipe.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Write the network here.")],
    method: Annotated[
        Literal["greedy", "uniform", "model_stock"], typer.Option("--method", help="See below.")
    ] = "greedy",
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--pretrained",
            metavar="FILE",
            help="With model_stock: the weights that the runs started from; default: those that their recipe names.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make one network from several fine-tunings, recompute BatchNorm statistics, and write a file like swa.pt.

    Candidates and soup are scored on validation images that no run was trained on, never on test images. Runs of
    several seeds hold out the same images with dataset.val_seed; the greedy soup needs them.
    Weights of one run are averaged by `swa average`.
    Changes are limited to dataset.*, eval.* and train.{device,precision,threads}.
    """
    if pretrained is not None and method != "model_stock":
        raise typer.BadParameter(f"--pretrained goes with --method model_stock, not with {method}")
    sources, changes = sources_and_changes(words)
    with importing():
        from swa_cli.analysis.soup import make_soup
    from swa_cli.report.terminal import Terminal

    result = make_soup(
        sources,
        changes,
        out=out,
        method=method,
        terminal=Terminal(quiet=quiet, json=as_json),
        pretrained=pretrained,
        recipe=recipe,
        allow_code=allow_code,
    )
    answer(result, as_json=as_json)
