"""`swa plan`: show what a run will do, epoch by epoch, and estimate its time."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from swa_cli.cli.shared import LOOKING_CODES, Changes, Json, Recipe, answer, importing

EPILOG = f"""\b
Examples:
  swa plan digits
  swa plan recipe.yaml train.epochs=100 swa.start=60%
  swa plan recipe.yaml --processes 8 --machines 2 --gigabits 25
  swa plan recipe.yaml --json

{LOOKING_CODES}"""


def plan(
    recipe: Recipe,
    changes: Changes = None,
    processes: Annotated[
        int | None, typer.Option("--processes", metavar="N", min=1, help="Estimate the time with this many processes.")
    ] = None,
    machines: Annotated[int, typer.Option(metavar="M", min=1, help="Machines that run the processes.")] = 1,
    gigabits: Annotated[
        float, typer.Option(metavar="G", min=0.001, help="Gbit/s of the slowest link between two machines.")
    ] = 10.0,
    as_json: Json = False,
) -> None:
    """Show steps, learning rates, averaged epochs and memory, and estimate the time from a few timed steps.

    The data are read, a dataset that is missing is downloaded, and a few steps are run. Nothing else is written but the
    index of a folder with many images.
    """
    from swa_cli.recipe import load

    if processes is None and (machines, gigabits) != (1, 10.0):
        raise typer.BadParameter("--machines and --gigabits go with --processes")
    if not math.isfinite(gigabits):
        raise typer.BadParameter(f"--gigabits: write a finite rate, not {gigabits}")
    if machines > (processes or 1):
        raise typer.BadParameter(f"--machines: {machines} machines need at least as many --processes")
    loaded = load.load(recipe, changes or [])
    with importing():
        from swa_cli.analysis.plan import show_plan
        from swa_cli.engine.estimate import Cluster
        from swa_cli.report.terminal import Terminal

    cluster = None if processes is None else Cluster(processes, machines, gigabits)
    answer(show_plan(loaded, cluster=cluster, terminal=Terminal(json=as_json, quiet=as_json)), as_json=as_json)
