"""`swa train`: run a recipe, or continue a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import (
    EXIT_CODES,
    AllowCode,
    Changes,
    Json,
    Quiet,
    answer,
    importing,
    is_rank0,
    no_option,
    one_a_machine,
    root_change,
    start,
)

EPILOG = f"""\b
Examples:
  swa train digits
  swa train cifar10_preresnet20 dataset.root=/data seed=1
  swa train recipe.yaml averages.ema.kind=ema swa.start=60%
  swa train recipe.yaml --dry-run
  swa train --resume runs/latest
  swa train recipe.yaml --processes 4
  torchrun --nnodes 2 --nproc-per-node 8 ... -m swa_cli train recipe.yaml

{EXIT_CODES}"""


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Recipe (YAML); leave it out with --resume.",
            callback=lambda recipe: no_option(recipe),
        ),
    ] = None,
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for the run folders (output.root).")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", "-r", metavar="RUN", help="Continue this run folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the plan, do one real step, make no run.")
    ] = False,
    extend_to: Annotated[
        int | None,
        typer.Option("--extend-to", metavar="EPOCHS", min=1, help="With --resume: train to this many epochs."),
    ] = None,
    processes: Annotated[
        str | None, typer.Option("--processes", metavar="N|auto", help="Processes on this machine; auto: one per GPU.")
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts", metavar="K", min=0, help="With --processes: restart up to K times after a kill."
        ),
    ] = 0,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train by a recipe, average the weights, recompute BatchNorm, compare and ship.

    A change such as optimizer.lr=0.2 is checked like the recipe itself; the last change of a key wins.
    A stopped run continues with --resume to the same end, bit for bit (CPU).
    """
    from swa_cli.recipe import load
    from swa_cli.report.terminal import Terminal

    terminal = Terminal(quiet=quiet, json=as_json)
    if not is_rank0():
        terminal.mute()
    flags = [flag for flag, on in (("--allow-code", allow_code), ("--quiet", quiet), ("--json", as_json)) if on]
    if max_restarts and processes is None:
        raise typer.BadParameter("--max-restarts goes with --processes; torchrun has its own")
    overrides = [*(changes or []), *root_change(out)]
    if resume is not None:
        if recipe is not None and "=" not in recipe:
            raise typer.BadParameter("leave the recipe out with --resume: the run folder holds it")
        if dry_run or out is not None:
            raise typer.BadParameter("--resume continues in the folder of the run: leave out --dry-run and --out")
        overrides = [*([recipe] if recipe else []), *overrides]
        more = [f"--extend-to={extend_to}"] if extend_to is not None else []
        words = ["--resume", str(resume), *overrides, *more, *flags]
    else:
        if extend_to is not None:
            raise typer.BadParameter("--extend-to goes with --resume; for a new run write train.epochs=N")
        if recipe is None:
            raise typer.BadParameter("name a recipe, or a run folder with --resume")
        with one_a_machine():
            loaded = load.load(recipe, overrides)
        words = [recipe, *overrides, *(["--dry-run"] if dry_run else []), *flags]
    if processes is not None:
        start(words, processes=processes, max_restarts=max_restarts, terminal=terminal)
    with importing():
        from swa_cli.analysis.run_output import RunOutput
        from swa_cli.engine import resume as resuming

    output = RunOutput(terminal)
    if resume is not None:
        result = resuming.resume(resume, overrides, listeners=[output], allow_code=allow_code, extend_to=extend_to)
    else:
        result = resuming.train_or_continue(loaded, listeners=[output], dry_run=dry_run)
    if terminal.is_mute:  # rank 0 draws and answers
        return
    if output.wants_plots and "run" in result:  # a dry run has no folder
        from swa_cli.analysis import plot

        plot.draw_all(Path(result["run"]), terminal=terminal.part())
    answer(result, as_json=as_json)
