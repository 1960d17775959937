"""`swa sweep`: try values of a recipe's keys, and choose on validation images."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from swa_cli import signals
from swa_cli.cli.repeat import parse_seeds
from swa_cli.cli.shared import Json, Quiet, Recipe, answer, exit_codes, importing, root_change
from swa_cli.errors import UserError

EPILOG = f"""\b
Values of a key:
  swa.lr=0.02,0.05,0.1       a list; without --trials, every combination
  optimizer.lr=log(1e-3,1)   a range, even in the logarithm
  swa.start=50%..90%         a range, also linear(50%,90%); the unit stays
  model.args.depth=int(1,4)  whole numbers
  swa=null,{{start: 75%}}      without the section, or with it

\b
Examples:
  swa sweep digits swa.lr=0.02,0.05,0.1 swa.start=50%,75% train.epochs=5
  swa sweep recipe.yaml 'optimizer.lr=log(1e-3,1)' --trials 30 --pruner asha
  swa sweep recipe.yaml swa=null,'{{start: 75%}}' --seeds 0-4 --top 2
  swa sweep recipe.yaml swa.lr=0.02,0.05 --storage /shared/sweep

{exit_codes(way_on="the same command")}"""


def sweep(
    recipe: Recipe,
    changes: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUES...", help="Values to try, and changes to the recipe.")
    ],
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", min=1, max=100_000, help="Trials; default: the whole grid.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", metavar="COLUMN", help="Validation column of metrics.csv; default: loss of the first average."
        ),
    ] = None,
    sampler: Annotated[
        Literal["grid", "tpe", "random"] | None,
        typer.Option("--sampler", help="How values are drawn; default: grid for lists without --trials, else tpe."),
    ] = None,
    pruner: Annotated[
        Literal["none", "asha"], typer.Option("--pruner", help="asha: end trials early that lag behind.")
    ] = "none",
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="SEEDS", help="Repeat the best trials with these seeds, as 0-4.")
    ] = None,
    top: Annotated[int | None, typer.Option("--top", metavar="N", min=1, help="With --seeds: how many (3).")] = None,
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="DIR|URL", help="Folder of the sweep that all machines see, or a database."),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, max=1024, help="Processes on this machine.")
    ] = 1,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="Begin no trial after this time, as 90min or 2h.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for the sweep folders (output.root).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the plan and check all values, make no run.")
    ] = False,
    worker: Annotated[Path | None, typer.Option("--worker", hidden=True)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Try values of a recipe's keys, and choose the best by validation images.

    Each trial is an ordinary run in a folder of the sweep. The same command continues after a stop; given again in
    another terminal, or on another machine with the same --storage, it shares the work. Test scores are not looked at.
    """
    from swa_cli.recipe import space
    from swa_cli.recipe.values import TimeSpan
    from swa_cli.report.terminal import Terminal

    if worker is not None:  # the process that has started this one hears Ctrl-C too, and passes it on as SIGTERM
        signals.ignore([signal.SIGINT])
    wanted = () if seeds is None else tuple(parse_seeds(seeds))
    if top is not None and seeds is None:
        raise typer.BadParameter("--top goes with --seeds: it is the number of trials that are repeated")
    try:
        timeout_s = None if timeout is None else TimeSpan.parse(timeout).seconds
    except ValueError as error:
        message, _, hint = str(error).partition(": ")
        raise UserError(f"--timeout: {message}", hint=hint) from error
    loaded, found, recipes = space.read(recipe, [*changes, *root_change(out)])
    with importing():
        from swa_cli.analysis import sweep as sweeping

    options = sweeping.Options(
        trials=trials,
        metric=metric,
        sampler=sampler,
        pruner=pruner,
        storage=storage,
        timeout_s=timeout_s,
        seeds=wanted,
        top=3 if top is None else top,
        processes=processes,
        worker=worker,
    )
    given = {"--trials": trials, "--metric": metric, "--sampler": sampler, "--storage": storage, "--timeout": timeout}
    given |= {"--seeds": seeds, "--top": top}
    words = ["sweep", recipe, *changes, *root_change(out), "--pruner", pruner]
    words += [f"{name}={value}" for name, value in given.items() if value is not None]
    terminal = Terminal(quiet=quiet, json=as_json)
    result = sweeping.sweep(loaded, found, recipes, options=options, words=words, terminal=terminal, dry_run=dry_run)
    if worker is None:
        answer(result, as_json=as_json)
