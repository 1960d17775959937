"""The door: each command parses its words, calls one function, and prints one answer.

Nothing here computes. Heavy rooms are imported inside the commands, so `--help` and recipe errors come without
torch. `main` alone turns exceptions into a message and an exit code.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback as traceback_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from swa_cli import __version__
from swa_cli.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    RecipeError,
    Terminated,
    UserError,
)

EXIT_CODES = """\b
Exit codes:
  0    done
  1    the run failed
  2    wrong usage, recipe, data or checkpoint: nothing was run
  130  Ctrl-C; continue with `swa train --resume RUN`
  143  SIGTERM; likewise"""

app = typer.Typer(
    name="swa",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train image models with Stochastic Weight Averaging, from one YAML recipe.",
    epilog=f"""\b
Examples:
  swa train recipes/digits.yaml
  swa train recipes/digits.yaml optimizer.lr=0.2 train.epochs=30
  swa eval runs/latest/checkpoints/swa.pt

{EXIT_CODES}""",
)

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


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command; `main` looks at --traceback itself when something goes wrong."""


@app.command(
    epilog=f"""\b
Examples:
  swa train recipes/digits.yaml
  swa train recipes/cifar10_preresnet20.yaml dataset.root=/data seed=1
  swa train recipe.yaml averages.ema.kind=ema swa.start=60%
  swa train recipe.yaml --dry-run
  swa train --resume runs/latest

{EXIT_CODES}"""
)
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Recipe (YAML); left out with --resume.", show_default=False),
    ] = None,
    changes: Changes = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the run folders (output.root)."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", "-r", metavar="RUN", help="Go on with this run folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the plan, do one real step, write nothing.")
    ] = False,
    extend_to: Annotated[
        int | None,
        typer.Option("--extend-to", metavar="EPOCHS", min=1, help="With --resume: more epochs; says what that moves."),
    ] = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train by a recipe, average the weights, refresh BatchNorm, compare and ship.

    A change such as optimizer.lr=0.2 is checked like the recipe itself; of several for one key the last holds.
    A run that was stopped goes on with --resume to the same end, bit for bit (CPU).
    """
    from swa_cli.recipe import load
    from swa_cli.report.terminal import Terminal

    overrides = list(changes or [])
    if out is not None:
        overrides.append(f"output.root={json.dumps(str(out), ensure_ascii=False)}")
    if resume is not None:
        if recipe is not None and "=" not in recipe:
            raise typer.BadParameter("leave the recipe out with --resume: the run folder holds it")
        if dry_run or out is not None:
            raise typer.BadParameter("--resume goes on in its own folder: it takes neither --dry-run nor --out")
        overrides = [*([recipe] if recipe else []), *overrides]
        from swa_cli.training import trainer

        result = trainer.resume(
            resume,
            overrides,
            terminal=Terminal(quiet=quiet, json=as_json),
            allow_code=allow_code,
            extend_to=extend_to,
        )
        _answer(result, as_json)
        return
    if extend_to is not None:
        raise typer.BadParameter("--extend-to goes with --resume; for a new run write train.epochs=N")
    if recipe is None:
        raise typer.BadParameter("name a recipe, or a run folder with --resume")
    loaded = load.load(recipe, overrides)
    from swa_cli.training import trainer

    _answer(trainer.train(loaded, terminal=Terminal(quiet=quiet, json=as_json), dry_run=dry_run), as_json)


@app.command(
    "bn-update",
    epilog=f"""\b
Examples:
  swa bn-update runs/latest/checkpoints/last.pt
  swa bn-update runs/latest/checkpoints/swa.pt --samples 10000 -o quick.pt
  swa bn-update theirs.pt --recipe recipe.yaml -o fresh.pt

{EXIT_CODES}""",
)
def bn_update(
    ckpt: Checkpoint,
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write here and leave CKPT as it is.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="NAME", help="Weight set; default: every average in the file."),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option("--samples", metavar="N|all", help="Training samples of the pass; default: the recipe's."),
    ] = None,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Recompute BatchNorm statistics of a checkpoint over the training set, in place and atomically.

    Changes are limited to dataset.*, train.device, train.precision, train.eval_batch_size and train.threads.
    """
    from swa_cli.report.terminal import Terminal
    from swa_cli.training import revisit

    result = revisit.update_checkpoint(
        ckpt,
        changes or [],
        terminal=Terminal(quiet=quiet, json=as_json),
        out=out,
        weights=weights,
        samples=samples,
        recipe=recipe,
        allow_code=allow_code,
    )
    _answer(result, as_json)


@app.command(
    "eval",
    epilog=f"""\b
Examples:
  swa eval runs/latest/checkpoints/swa.pt
  swa eval runs/latest/checkpoints/last.pt --weights last --split val
  swa eval theirs.safetensors --recipe recipe.yaml --json

{EXIT_CODES}""",
)
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
    from swa_cli.report.terminal import Terminal
    from swa_cli.training import revisit

    result = revisit.evaluate_checkpoint(
        ckpt,
        changes or [],
        terminal=Terminal(quiet=quiet, json=as_json),
        weights=weights,
        split=split,
        allow_stale_bn=allow_stale_bn,
        recipe=recipe,
        allow_code=allow_code,
    )
    _answer(result, as_json)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """Run one command; every way to end becomes an exit code, and a traceback is shown only on request."""
    from swa_cli.report.problems import print_problems, print_user_error

    try:
        app(words)
        return EXIT_DONE
    except SystemExit as end:  # typer's own ends: help, wrong usage (2), Ctrl-C (130)
        return end.code if isinstance(end.code, int) else EXIT_DONE
    except Terminated:
        return EXIT_TERMINATED
    except Exception as error:
        if "--traceback" in words:
            traceback_module.print_exception(error)
        if isinstance(error, RecipeError):
            print_problems(error.problems, source=error.source)
            return EXIT_USAGE
        if isinstance(error, UserError):
            print_user_error(error.message, hint=error.hint)
            return error.exit_code
        if isinstance(error, OSError) and error.strerror:
            print_user_error(f"{error.filename or 'file'}: {error.strerror}", hint="free space, or use another folder")
            return EXIT_FAILED
        hint = "this is a mistake of swa or of your own code: see `swa --traceback ...`"
        print_user_error(f"{type(error).__name__}: {error}", hint=hint)
        return EXIT_FAILED


def _answer(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        from swa_cli.report.answer import json_text

        typer.echo(json_text(result))


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated
