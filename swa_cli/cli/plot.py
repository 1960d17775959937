"""`swa plot`: draw a picture of a run, or of a recipe before training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from swa_cli.cli.shared import (
    CHANGE,
    EXIT_CODES,
    AllowCode,
    Changes,
    Json,
    PictureFormat,
    PictureWidth,
    Quiet,
    answer,
    importing,
    require_format,
)

EPILOG = f"""\b
Pictures:
  curves       losses, scores and learning rate over the epochs; of several
               runs, repeats and sweeps the validation curves, overlaid
  schedule     learning rate, averaged steps and snapshots; also of a recipe
  plane        loss and score over the plane through three weight sets
  path         loss and score along the line through two weight sets
  calibration  confidence against accuracy of each weight set (ECE)
  confusion    true class against predicted class
  window       score of an average against its start, from snapshots
  budget       score by budget, of `swa average RUN --decay linear --at ...`
  sweep        the trials of `swa sweep`, and how much each key matters

\b
Examples:
  swa plot runs/latest
  swa plot runs/a-repeat-001 runs/b-repeat-001 curves -o curves.png
  swa plot digits schedule swa.start=50%
  swa plot runs/latest plane
  swa plot runs/latest plane --grid 25 --samples all -o plane.svg
  swa plot runs/latest plane --points other.pt last swa
  swa plot runs/latest path --between last swa
  swa plot runs/latest confusion --weights swa
  swa plot runs/latest curves --width 3.3 -o curves.pdf

{EXIT_CODES}"""

KINDS = ("curves", "schedule", "plane", "path", "calibration", "confusion", "window", "budget", "sweep")
GRID_KINDS = ("plane", "path", "window")
LARGEST_GRID = 201


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN...|RECIPE", help="Run folders; for schedule, also a recipe.")],
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"One of {', '.join(KINDS)}.")] = "curves",
    changes: Changes = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="A .png, .svg or .pdf; default: KIND.png in the run folder."),
    ] = None,
    form: PictureFormat = None,
    width: PictureWidth = None,
    grid: Annotated[
        int | None,
        typer.Option(
            "--grid",
            metavar="N",
            min=3,
            max=LARGEST_GRID,
            help="Points: N x N for a plane (15), N for a path (21), N starts for a window (12).",
        ),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            metavar="N|all",
            help="Training samples of BatchNorm and loss at each point, and at most as many scored; default: 1000.",
        ),
    ] = None,
    points: Annotated[
        tuple[str, str, str] | None,
        typer.Option(
            "--points",
            metavar="A B C",
            help="For a plane: files, or names such as last; default: start of averaging, last, average.",
        ),
    ] = None,
    between: Annotated[
        tuple[str, str] | None,
        typer.Option("--between", metavar="A B", help="For a path: likewise; default: last, average."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="NAME", help="For confusion; default: the first average.")
    ] = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw a picture of a run as PNG, SVG or PDF; the same run gives the same bytes.

    The points of a plane or a path are kept in the run folder (plane-*.json): the same command continues them.
    For a run, changes are limited to dataset.*, eval.* and train.{device,precision,threads}.
    """
    runs, kind, changes = _sorted_words([kind, *(changes or [])])
    require_format(form)
    _require_fitting(kind, points=points, between=between, weights=weights, grid=grid, samples=samples)
    with importing():
        from swa_cli.analysis import plot as plotting
    from swa_cli.report.terminal import Terminal

    request = plotting.Request(
        size=grid, samples=parse_samples(samples), points=points, between=between, weights=weights
    )
    terminal = Terminal(quiet=quiet, json=as_json)
    shape: dict[str, Any] = {"out": out, "form": form, "width": width}
    if runs or (kind == "curves" and plotting.holds_runs(run)):
        result = plotting.plot_several([run, *runs], kind, changes, **shape, terminal=terminal)
    else:
        result = plotting.plot(run, kind, changes, **shape, request=request, terminal=terminal, allow_code=allow_code)
    answer(result, as_json=as_json)


def _sorted_words(words: list[str]) -> tuple[list[Path], str, list[str]]:
    """Tell what follows the first run: further runs, the kind of picture, and changes; a run may be ./curves."""
    changes = [word for word in words if CHANGE.fullmatch(word)]
    kinds = [word for word in words if word in KINDS]
    others = [word for word in words if word not in changes and word not in KINDS]
    for word in others:
        if "/" not in word and not Path(word).is_dir():
            raise typer.BadParameter(f"unknown picture {word}: choose {', '.join(KINDS)}")
    if len(set(kinds)) > 1:
        raise typer.BadParameter(f"name one picture, not {' and '.join(kinds)}")
    return [Path(word) for word in others], (kinds or ["curves"])[0], changes


def parse_samples(text: str | None) -> int | None:
    """Parse a number of samples: 1000 by default, None for all."""
    if text == "all":
        return None
    if text is not None and (re.fullmatch(r"[0-9]{1,9}", text) is None or int(text) < 1):
        raise typer.BadParameter(f"--samples {text}: write a number of at least 1, or all")
    return 1000 if text is None else int(text)


def _require_fitting(kind: str, **given: object) -> None:
    """Refuse options that do not go with the kind of picture."""
    owners = {
        "points": ("plane",),
        "between": ("path",),
        "weights": ("confusion",),
        "grid": GRID_KINDS,
        "samples": GRID_KINDS,
    }
    for name, value in given.items():
        if value is not None and kind not in owners[name]:
            raise typer.BadParameter(f"--{name} goes with {' or '.join(owners[name])}, not with {kind}")
