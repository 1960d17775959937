"""`swa compare`: compare runs side by side."""

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
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="At least two run folders.")],
    as_json: Json = False,
) -> None:
    """Show which recipe keys differ between runs, and all scores in one table."""
    if len(runs) < 2:
        raise typer.BadParameter("name at least two run folders")
    from swa_cli.analysis import compare as comparing
    from swa_cli.report.terminal import Terminal

    answer(comparing.compare(runs, terminal=Terminal(json=as_json, quiet=as_json)), as_json=as_json)
