"""Share arguments, options, exit codes and output between the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from swa_cli import __version__
from swa_cli.cli.processes import refuse_torchrun
from swa_cli.errors import UserError


def exit_codes(*, way_on: str) -> str:
    """Return the end of a help text; `way_on` names the command that continues a stopped run."""
    return f"""\b
Exit codes:
  0    done
  1    the run failed
  2    wrong usage, recipe, data or checkpoint: nothing was run
  130  Ctrl-C; continue with {way_on}
  143  SIGTERM; likewise"""


# For commands that train nothing, and have nothing to continue.
LOOKING_CODES = """\b
Exit codes:
  0    done
  1    it failed
  2    wrong usage, recipe, data or checkpoint: nothing was written
  130  Ctrl-C
  143  SIGTERM"""


EXIT_CODES = exit_codes(way_on="`swa train --resume RUN`")

Changes = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and the answer.")]
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
    bool,
    typer.Option("--allow-code", help="Import and run the code that the recipe inside names, because you trust it."),
]
Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint (.pt, .safetensors).", show_default=False)]


NewFile = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="New file to write; default: stdout."),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"swa {__version__}")
        raise typer.Exit


def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    """Declare the options of every command; `run` itself looks for --traceback."""
    if context.invoked_subcommand not in (None, "train"):
        refuse_torchrun(f"swa {context.invoked_subcommand}")


def answer(result: dict[str, Any], *, as_json: bool) -> None:
    """Print the JSON object, if --json was given."""
    if as_json:
        from swa_cli.checkpoint.atomic import json_text

        typer.echo(json_text(result))


def deliver(text: str, out: Path | None) -> None:
    """Print a text, or write it to a new file.

    Raises:
        UserError: The file exists already, or cannot be written.
    """
    if out is None:
        typer.echo(text, nl=False)
        return
    hint = "name another file with -o"
    try:
        with open(out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{out}: already exists and is not overwritten", hint=hint) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{out}: cannot be written ({reason})", hint=hint) from error
    typer.echo(f"wrote {out}", err=True)
