"""What the commands share: words, options and exit codes, and how an answer is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from swa_cli import __version__


def exit_codes(*, way_on: str) -> str:
    """The end of each help; `way_on` continues what was stopped."""
    return f"""\b
Exit codes:
  0    done
  1    the run failed
  2    wrong usage, recipe, data or checkpoint: nothing was run
  130  Ctrl-C; continue with {way_on}
  143  SIGTERM; likewise"""


EXIT_CODES = exit_codes(way_on="`swa train --resume RUN`")

Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and the answer.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="Recipe of a checkpoint that swa did not write.",
        show_default=False,
    ),
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Import the model or dataset code that the recipe inside names.")
]
Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint (.pt, .safetensors).", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"swa {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command; `main` looks at --traceback itself when something goes wrong."""


def answer(result: dict[str, Any], *, as_json: bool) -> None:
    """Print the one JSON object, if it was asked for."""
    if as_json:
        from swa_cli.report.answer import json_text

        typer.echo(json_text(result))
