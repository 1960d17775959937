"""`swa average`: average weight sets that are on disk."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swa_cli.cli.shared import EXIT_CODES, AllowCode, Json, Quiet, RecipeOption, answer, importing, sources_and_changes

if TYPE_CHECKING:
    from swa_cli.recipe.values import Duration

EPILOG = f"""\b
Examples:
  swa average runs/latest -o all.pt
  swa average runs/latest --window 20ep:30ep -o window.pt
  swa average runs/latest --search --passes 20 -o best.pt
  swa average runs/latest --ema 2ep -o ema.pt
  swa average runs/latest --decay 1-sqrt --share 40% -o merged.pt
  swa average runs/latest --decay linear --at 25%,50%,100%
  swa average runs/latest --weights swa -o swa.pt
  swa average first.pt second.pt --weights 3,1 -o mixed.pt
  swa average theirs/*.pt --recipe recipe.yaml --greedy -o soup.pt

{EXIT_CODES}"""

DECAYS = ("linear", "cosine", "1-sqrt")  # of `averaging.profiles`, which imports torch
AVERAGE = re.compile(r"[A-Za-z_][\w-]*")  # the name of an average, not numbers


def average(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help="Run folders (their snapshots) and checkpoints, then KEY=VALUE changes to the recipe.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write the average here; with --at, one file for each point."),
    ] = None,
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
    ema: Annotated[
        str | None,
        typer.Option(
            "--ema", metavar="HALF_LIFE", help="The EMA of every step that training would have kept, such as 2ep."
        ),
    ] = None,
    power_ema: Annotated[
        str | None,
        typer.Option("--power-ema", metavar="S", help="The power-function EMA of relative width S, such as 0.1."),
    ] = None,
    decay: Annotated[
        str | None,
        typer.Option("--decay", metavar="|".join(DECAYS), help="The merge that stands for this decay of the rate."),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            "--share",
            metavar="P%",
            help="With one of these three: only the last P% of the steps, in place of --window; default: the whole run,"
            " with --decay --at 40%.",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="P1,P2,...",
            help="With one of these three: the network of each of these points of the run, such as 25%,50%,100%,"
            " scored on validation and test.",
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Add sources, best first, while validation accuracy does not fall.")
    ] = False,
    search: Annotated[
        bool,
        typer.Option("--search", help="Find the window, decay or half-life with the lowest validation NLL."),
    ] = False,
    passes: Annotated[
        int | None,
        typer.Option("--passes", metavar="N", min=1, help="With --search: at most N BatchNorm passes; default: 12."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="With --search or --at: the picture; default: beside -o."),
    ] = None,
    no_bn: Annotated[bool, typer.Option("--no-bn", help="Leave BatchNorm statistics stale.")] = False,
    recipe: RecipeOption = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Average weight sets on disk, recompute BatchNorm statistics, and write a file like swa.pt.

    A run folder stands for its snapshots; of a file with several weight sets the raw weights count.
    --greedy and --search choose on the validation split; --at chooses nothing.
    Weight sets of different runs are checked for a barrier; `swa soup` takes what runs ship.
    Changes are limited to dataset.*, eval.* and train.{device,precision,threads}.
    """
    ways = {"--last": last, "--weights": weights, "--greedy": greedy, "--search": search}
    by_profile = {"--ema": ema, "--power-ema": power_ema, "--decay": decay}
    details = {"--window": window, "--share": share, "--at": at, "--no-bn": no_bn}
    has_profile = _require_one_way(_given(ways), _given(by_profile), _given(details))
    if plot is not None and not (search or at):
        raise typer.BadParameter("--plot goes with --search or --at")
    if passes is not None and not search:
        raise typer.BadParameter("--passes goes with --search")
    sources, changes = sources_and_changes(words)
    if out is None and at is None:
        raise typer.BadParameter("Missing option '-o': name the file to write, such as -o FILE.pt")
    if at is not None and (len(sources) != 1 or recipe is not None):
        raise typer.BadParameter("--at needs one run folder, and no --recipe")
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
    half_life = None if ema is None else _duration("--ema", ema)
    width = None if power_ema is None else _width(power_ema)
    if decay is not None and decay not in DECAYS:
        raise typer.BadParameter(f"--decay {decay}: choose {', '.join(DECAYS)}")
    percent = None if share is None else _percent(share)
    points = None if at is None else [_duration("--at", word) for word in at.split(",")]
    with importing():
        from swa_cli.analysis import average as averaging
        from swa_cli.analysis import budgets, extract
        from swa_cli.analysis.search import PASSES
        from swa_cli.analysis.snapshot_series import ProfileOption

    terminal = Terminal(quiet=quiet, json=as_json)
    profile = ProfileOption(half_life, width, decay) if has_profile else None
    if points is not None and profile is not None:
        result = budgets.average_at(
            sources[0],
            changes,
            profile=profile,
            points=points,
            share=percent,
            out=out,
            plot=plot,
            terminal=terminal,
            allow_code=allow_code,
        )
        answer(result, as_json=as_json)
        return
    assert out is not None, "without --at a file is named"
    if weights is not None and is_name:
        result = extract.extract_average(
            sources[0], changes, name=weights, out=out, terminal=terminal, refresh=not no_bn, allow_code=allow_code
        )
    else:
        result = averaging.average_checkpoints(
            sources,
            changes,
            out=out,
            choice=averaging.Choice(
                last=last,
                window=stretch,
                weights=numbers,
                greedy=greedy,
                search=search,
                passes=passes or PASSES,
                profile=profile,
                share=percent,
            ),
            terminal=terminal,
            refresh=not no_bn,
            plot=plot,
            recipe=recipe,
            allow_code=allow_code,
        )
    answer(result, as_json=as_json)


def _given(options: Mapping[str, object]) -> list[str]:
    return [option for option, value in options.items() if value not in (None, False)]


def _require_one_way(ways: Sequence[str], by_profile: Sequence[str], details: Sequence[str]) -> bool:
    """Refuse options that exclude each other; return whether a profile weighs the snapshots.

    Args:
        ways: Those given that say which sources count, and how much.
        by_profile: Those given that weigh every step of a run.
        details: Those given of `--window`, which with a profile is a detail of it, `--share`, `--at` and `--no-bn`.
    """
    is_way = "--window" in details and not by_profile
    chosen = [*ways, *by_profile, *["--window"] * is_way]
    if len(chosen) > 1:
        raise typer.BadParameter(f"{chosen[0]} and {chosen[1]} exclude each other: give one")
    scoring = [option for option in ("--at", "--greedy", "--search") if option in (*details, *ways)]
    if "--no-bn" in details and scoring:
        raise typer.BadParameter(f"{scoring[0]} scores refreshed averages: leave out --no-bn")
    for option in ("--share", "--at"):
        if option in details and not by_profile:
            raise typer.BadParameter(f"{option} goes with --decay, --ema or --power-ema: add --decay linear")
        if option in details and "--window" in details:
            raise typer.BadParameter(f"{option} and --window exclude each other: give one")
    return bool(by_profile)


def _duration(option: str, text: str) -> Duration:
    """Parse a length or a point of the run."""
    from swa_cli.recipe.values import Duration

    try:
        return Duration.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def _width(text: str) -> float:
    """Parse the relative width of a power-function EMA."""
    from swa_cli.recipe.kinds import WIDEST

    if not _is_number(text) or not 0 < float(text) <= WIDEST:
        raise typer.BadParameter(f"--power-ema {text}: write a number above 0 and at most {WIDEST}, such as 0.1")
    return float(text)


def _percent(text: str) -> float:
    """Parse a share of the run: above 0 % and at most 100 %."""
    number = text.removesuffix("%")
    if number == text or not _is_number(number) or not 0 < float(number) <= 100:
        raise typer.BadParameter(f"--share {text}: write a percentage above 0% and up to 100%, such as 40%")
    return float(number)


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
