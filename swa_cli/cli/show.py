"""`swa show`: show what a checkpoint or a run folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, Json, answer, importing

EPILOG = f"""\b
Examples:
  swa show runs/latest
  swa show runs/latest/checkpoints/swa.pt
  swa show theirs.safetensors --json

{LOOKING_CODES}"""


def show(
    path: Annotated[Path, typer.Argument(metavar="CKPT|RUN", help="Checkpoint (.pt, .safetensors) or run folder.")],
    as_json: Json = False,
) -> None:
    """Show the recipe, weight sets, averages and BatchNorm freshness of a file or a run.

    The file is read as untrusted input and runs no code; no network is built and no data are opened.
    """
    with importing():
        from swa_cli.analysis import show as showing
    from swa_cli.report.terminal import Terminal

    answer(showing.show(path, terminal=Terminal(json=as_json, quiet=as_json)), as_json=as_json)
