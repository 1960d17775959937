"""`swa average`: one weight set made of several, after the run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from swa_cli.cli.shared import EXIT_CODES, AllowCode, Json, Quiet, RecipeOption, answer

EPILOG = f"""\b
Examples:
  swa average runs/latest -o all.pt
  swa average runs/latest --window 20ep:30ep -o window.pt
  swa average runs/latest --search -o best.pt
  swa average runs/latest --weights swa -o swa.pt
  swa average first.pt second.pt --weights 3,1 -o mixed.pt
  swa average theirs/*.pt --recipe recipe.yaml --greedy -o soup.pt

{EXIT_CODES}"""

CHANGE = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)  # a file of such a name is written ./lr=1.pt
AVERAGE = re.compile(r"[A-Za-z_][\w-]*")  # the name of one, and no numbers


def average(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Run folders (their snapshots) and checkpoints, then KEY=VALUE changes to the recipe.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Write the average here.", show_default=False)
    ],
    last: Annotated[
        int | None, typer.Option("--last", metavar="K", min=1, help="Only the last K sources, in their order.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            "--window",
            metavar="A:B",
            help="Snapshots from point A to point B of the run, both included, such as 161ep:300ep. Where each"
            " keeps its running mean (snapshots.cumulative): every step after A, up to B.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="W1,W2,...|NAME",
            help="How much each source counts; they are normalised. Or the name of an average: the one that the resume"
            " point of a run holds, stopped or finished, is taken out of it.",
        ),
    ] = None,
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="Best source first, then each with which validation accuracy does not fall."),
    ] = False,
    search: Annotated[
        bool, typer.Option("--search", help="Find the window of the run of the lowest validation NLL.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="With --search: picture; default beside -o.")
    ] = None,
    no_bn: Annotated[bool, typer.Option("--no-bn", help="Leave BatchNorm stale.")] = False,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Average weights that are on disk, refresh BatchNorm, and write a file like swa.pt.

    A file with several weight sets counts with its raw weights. --greedy and --search choose on the validation split.
    Changes are limited to dataset.*, eval.* and train.{device,precision,threads}.
    """
    given = {"--last": last, "--window": window, "--weights": weights, "--greedy": greedy, "--search": search}
    chosen = [option for option, value in given.items() if value not in (None, False)]
    if len(chosen) > 1:
        raise typer.BadParameter(f"{chosen[0]} and {chosen[1]} are two ways to choose: give one")
    if no_bn and (greedy or search):
        raise typer.BadParameter(f"{chosen[0]} scores what it tries, which stale BatchNorm forbids: no --no-bn")
    if plot is not None and not search:
        raise typer.BadParameter("--plot draws what --search tried")
    sources = [Path(word) for word in words if not CHANGE.fullmatch(word)]
    if not sources:
        raise typer.BadParameter("name a run folder, snapshots or other checkpoints")
    from swa_cli.recipe.plan import Window
    from swa_cli.report.terminal import Terminal

    try:
        stretch = None if window is None else Window.parse(window)
    except ValueError as error:
        raise typer.BadParameter(f"--window: {error}") from error
    changes = [word for word in words if CHANGE.fullmatch(word)]
    if weights is not None and AVERAGE.fullmatch(weights) and not _is_number(weights):
        if len(sources) != 1 or recipe is not None:
            raise typer.BadParameter(f"--weights {weights} takes an average out of one run folder or its last.pt")
        from swa_cli.analysis import average as averaging

        result = averaging.extract_average(
            sources[0],
            changes,
            name=weights,
            out=out,
            terminal=Terminal(quiet=quiet, json=as_json),
            refresh=not no_bn,
            allow_code=allow_code,
        )
        answer(result, as_json=as_json)
        return
    numbers = None if weights is None else _numbers(weights)
    from swa_cli.analysis import average as soups

    result = soups.average_checkpoints(
        sources,
        changes,
        out=out,
        choice=soups.Choice(last=last, window=stretch, weights=numbers, greedy=greedy, search=search),
        terminal=Terminal(quiet=quiet, json=as_json),
        refresh=not no_bn,
        plot=plot,
        recipe=recipe,
        allow_code=allow_code,
    )
    answer(result, as_json=as_json)


def _is_number(text: str) -> bool:
    """Whether it is `nan` or `inf`, which look like a name."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(text: str) -> tuple[float, ...]:
    """Weights of a mean: finite, not negative, and not all 0."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--weights {text}: write numbers, such as 3,1, or the name of an average") from error
    if not all(math.isfinite(number) and number >= 0 for number in numbers) or not _is_positive(numbers):
        raise typer.BadParameter(f"--weights {text}: write finite numbers from 0 on, not all of them 0")
    return numbers


def _is_positive(numbers: Sequence[float]) -> bool:
    return 0 < sum(numbers) < math.inf
