"""`swa compare`: one table of runs, repeats and sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, Json, answer, deliver

EPILOG = f"""\b
Examples:
  swa compare runs/*
  swa compare runs/digits-convnet-001 runs/digits-convnet-002
  swa compare runs/a-repeat-001 runs/b-repeat-001 --against b-repeat-001
  swa compare runs/digits-sweep-001 --sort swa.lr
  swa compare runs/a-repeat-001 --weights all --against a-repeat-001:last
  swa compare runs/* --format latex > table.tex

{LOOKING_CODES}"""

FORMATS = ("table", "csv", "markdown", "latex")
SPLITS = ("val", "test")


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN|REPEAT|SWEEP...", help="Folders; what is no such folder is left out.")
    ],
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)}; csv has every metric.")
    ] = "table",
    split: Annotated[
        str | None, typer.Option("--split", metavar="val|test", help="Scores on these images only; default: both.")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", metavar="COLUMN", help="A column of csv; default: the loss on validation images."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="ROW", help="Compare all rows with this one: its label or folder."),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", metavar="NAME|all", help="Weight sets to show; best: that on validation images.")
    ] = "best",
    as_json: Json = False,
) -> None:
    """Show runs, repeats and sweeps in one table, with the recipe keys that differ.

    A row is a run, or the mean over the seeds of a repeat, or of runs whose recipes differ only in the seed.
    """
    if form not in FORMATS:
        raise typer.BadParameter(f"--format {form}: choose {', '.join(FORMATS)}")
    if split is not None and split not in SPLITS:
        raise typer.BadParameter(f"--split {split}: choose val or test")
    if as_json and form != "table":
        raise typer.BadParameter(f"--json and --format {form} are two formats: choose one")
    from swa_cli.analysis import table
    from swa_cli.report.tables import formats
    from swa_cli.report.terminal import Terminal

    terminal = Terminal(json=as_json, quiet=as_json)
    tables, values = table.compare(runs, terminal=terminal, split=split, sort=sort, other=against, weights=weights)
    if as_json:
        answer(values, as_json=True)
    elif form == "table":
        for each in tables:
            terminal.print(formats.terminal_lines(each))
    else:
        write = {"csv": formats.comma_separated, "markdown": formats.markdown, "latex": formats.latex}[form]
        deliver(write(tables), None)
