"""`swa compare`: several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, Json, answer

EPILOG = f"""\b
Examples:
  swa compare runs/digits-convnet-001 runs/digits-convnet-002
  swa compare runs/digits-* --json

{LOOKING_CODES}"""


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="At least two run folders.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show where the recipes of runs differ, and their scores in one table."""
    if len(runs) < 2:
        raise typer.BadParameter("one run has nothing to be compared with: name at least two")
    from swa_cli.analysis import compare as comparing
    from swa_cli.report.terminal import Terminal

    answer(comparing.compare(runs, terminal=Terminal(json=as_json, quiet=as_json)), as_json=as_json)
