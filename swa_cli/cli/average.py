"""`swa average`: average weight sets that are on disk."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import EXIT_CODES, AllowCode, Json, Quiet, RecipeOption, answer, importing, sources_and_changes

EPILOG = f"""\b
Examples:
  swa average runs/latest -o all.pt
  swa average runs/latest --window 20ep:30ep -o window.pt
  swa average runs/latest --search -o best.pt
  swa average runs/latest --weights swa -o swa.pt
  swa average first.pt second.pt --weights 3,1 -o mixed.pt
  swa average theirs/*.pt --recipe recipe.yaml --greedy -o soup.pt

{EXIT_CODES}"""

AVERAGE = re.compile(r"[A-Za-z_][\w-]*")  # the name of an average, not numbers


def average(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Run folders (their snapshots) and checkpoints, then KEY=VALUE changes to the recipe.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Write the average here.")],
    last: Annotated[
        int | None, typer.Option("--last", metavar="K", min=1, help="Average only the last K sources.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            "--window",
            metavar="A:B",
            help="Average the snapshots from point A to point B of the run, both included, such as 161ep:300ep. With"
            " running means (snapshots.cumulative): every step after A, up to B.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="W1,W2,...|NAME",
            help="Weights of the sources, which are normalized. Or the name of an average in the resume point of a run,"
            " stopped or finished: it is written to a file of its own.",
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Add sources, best first, while validation accuracy does not fall.")
    ] = False,
    search: Annotated[
        bool, typer.Option("--search", help="Find the window of the run with the lowest validation NLL.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="With --search: the picture; default: beside -o.")
    ] = None,
    no_bn: Annotated[bool, typer.Option("--no-bn", help="Leave BatchNorm statistics stale.")] = False,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Average weight sets on disk, recompute BatchNorm statistics, and write a file like swa.pt.

    A run folder stands for its snapshots; of a file with several weight sets the raw weights count.
    --greedy and --search choose on the validation split.
    Weight sets of different runs are checked for a barrier; `swa soup` takes what runs ship.
    Changes are limited to dataset.*, eval.* and train.{device,precision,threads}.
    """
    given = {"--last": last, "--window": window, "--weights": weights, "--greedy": greedy, "--search": search}
    chosen = [option for option, value in given.items() if value not in (None, False)]
    if len(chosen) > 1:
        raise typer.BadParameter(f"{chosen[0]} and {chosen[1]} exclude each other: give one")
    if no_bn and (greedy or search):
        raise typer.BadParameter(f"{chosen[0]} scores refreshed averages: leave out --no-bn")
    if plot is not None and not search:
        raise typer.BadParameter("--plot goes with --search")
    sources, changes = sources_and_changes(words)
    from swa_cli.recipe.plan import Window
    from swa_cli.report.terminal import Terminal

    try:
        stretch = None if window is None else Window.parse(window)
    except ValueError as error:
        raise typer.BadParameter(f"--window: {error}") from error
    is_name = weights is not None and AVERAGE.fullmatch(weights) is not None and not _is_number(weights)
    if is_name and (len(sources) != 1 or recipe is not None):
        raise typer.BadParameter(f"--weights {weights} needs one run folder or its last.pt, and no --recipe")
    numbers = None if weights is None or is_name else _numbers(weights)
    with importing():
        from swa_cli.analysis import average as averaging

    terminal = Terminal(quiet=quiet, json=as_json)
    if weights is not None and is_name:
        result = averaging.extract_average(
            sources[0], changes, name=weights, out=out, terminal=terminal, refresh=not no_bn, allow_code=allow_code
        )
    else:
        result = averaging.average_checkpoints(
            sources,
            changes,
            out=out,
            choice=averaging.Choice(last=last, window=stretch, weights=numbers, greedy=greedy, search=search),
            terminal=terminal,
            refresh=not no_bn,
            plot=plot,
            recipe=recipe,
            allow_code=allow_code,
        )
    answer(result, as_json=as_json)


def _is_number(text: str) -> bool:
    """Return whether a text is a number such as `nan` or `inf`, which look like names."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(text: str) -> tuple[float, ...]:
    """Parse weights of a mean: finite, not negative, and not all 0."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--weights {text}: write numbers, such as 3,1, or the name of an average") from error
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or not 0 < sum(numbers) < math.inf:
        raise typer.BadParameter(f"--weights {text}: write finite numbers of at least 0, not all of them 0")
    return numbers
