"""`swa plot`: draw a picture of a run, or the schedule of a recipe before training.

`KINDS` maps each kind of picture to the function that gathers its values; `report/plots` draws them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from swa_cli.analysis import budgets, loss_surface, open, settings, sources, sweep_picture, table
from swa_cli.analysis.overlay import not_drawn, overlaid
from swa_cli.analysis.run_data import OpenRun, confusion, reliability
from swa_cli.analysis.snapshot_series import snapshot_series
from swa_cli.analysis.trials import Trials
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.checkpoint.run_folder import HOW_TO_NAME_A_RUN, RunFolder
from swa_cli.data.sources import known_num_train
from swa_cli.engine.context import build_context
from swa_cli.engine.events import Events
from swa_cli.engine.run import problems_of_names
from swa_cli.engine.user_code import make_importable
from swa_cli.errors import RecipeError, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.plan import Plan, make_plan
from swa_cli.report import plots
from swa_cli.report.plots import budgets as budget_picture
from swa_cli.report.plots import calibration as calibration_picture
from swa_cli.report.plots import curves as curves_picture
from swa_cli.report.plots import loss_surface as surface_picture
from swa_cli.report.plots import overlay as overlay_picture
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text


@dataclass(frozen=True)
class Request:
    """The options of a picture: numbers of points and samples, weight sets by name or file."""

    size: int | None = None  # points of the grid; None for the default of the kind
    samples: int | None = 1000  # None for all
    points: tuple[str, ...] | None = None  # three, for a plane
    between: tuple[str, ...] | None = None  # two, for a path
    weights: str | None = None  # for a confusion matrix; None for the first average


@dataclass(frozen=True)
class Picture:
    """A picture to draw with `draw(file, form=..., width=...)`; `values` go into the JSON answer."""

    draw: Callable[..., None]
    values: dict[str, Any]
    finding: str = ""  # what it shows, as a sentence


GRID, LINE, STARTS = 15, 21, 12  # points by default


def plot(
    path: Path,
    kind: str,
    overrides: Sequence[str],
    *,
    out: Path | None,
    request: Request,
    form: str | None = None,
    width: float | None = None,
    terminal: Terminal,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Draw one picture of a run, or the schedule of a recipe.

    `overrides` change the recipe; for a run, only keys that the weights do not depend on. `out` is a .png, .svg
    or .pdf file, by default KIND.png in the run folder, or in the working directory; `form` is png, svg or pdf where no
    file is named. `width` is that of the picture in inches.

    Raises:
        RecipeError: Problems of the recipe.
        UserError: The run lacks what the picture needs, or the place cannot be written to.
    """
    started, is_run = time.monotonic(), path.is_dir()
    if not is_run and kind != "schedule":
        _refuse_file(path, kind)
    target = out or (path if is_run else Path()) / f"{kind}.{form or plots.FORMATS[0]}"
    require_picture(target, form)
    if kind == "sweep":
        picture = Picture(*sweep_picture.read_picture(path, terminal=terminal, allow_code=allow_code))
    elif is_run:
        run = OpenRun(path, overrides, terminal=terminal, samples=request.samples, allow_code=allow_code)
        picture = KINDS[kind](run, request)
    else:
        picture = of_recipe(load.load(path, overrides), terminal)
    write_picture(target, picture, width=width, terminal=terminal)
    terminal.answer(f"{target}: {kind} of {path}" + (f"; {picture.finding}" if picture.finding else ""))
    return {
        "command": "plot",
        "kind": kind,
        "path": str(target),
        "run": str(path) if is_run else None,
        **picture.values,
        "seconds": round(time.monotonic() - started, 3),
    }


def holds_runs(path: Path) -> bool:
    """Return whether a folder is that of a repeat or a sweep."""
    folder = RunFolder(path)
    return folder.repeat.is_file() or folder.sweep.is_file()


def plot_several(
    paths: Sequence[Path],
    kind: str,
    overrides: Sequence[str],
    *,
    out: Path | None,
    form: str | None = None,
    width: float | None = None,
    terminal: Terminal,
) -> dict[str, Any]:
    """Draw the validation curves of runs, repeats and sweeps over each other, from their metrics.csv.

    Raises:
        UserError: Another kind of picture, changes, a folder that cannot be read, or none with validation scores.
    """
    started = time.monotonic()
    if kind != "curves":
        raise UserError(f"{kind}: shows one run, and only curves are drawn of several", hint="name one run")
    if overrides:
        raise UserError(f"{overrides[0]}: curves of several runs are drawn as they are", hint="leave it out")
    target = out or (paths[0] if len(paths) == 1 else Path()) / f"{kind}.{form or plots.FORMATS[0]}"
    require_picture(target, form)
    found = settings.find(paths, terminal=terminal)
    tables = table.tabulate(found, warn=lambda text: None)
    if len(tables) > 1:
        raise UserError(
            "the runs are of different tasks, or were scored on different samples: they have no common curves",
            hint="name runs with the same task and data",
        )
    curves, left_out = overlaid(found, tables[0])
    if not curves:
        raise UserError(f"{paths[0]}: has no validation scores to draw", hint="train with dataset.val=10%")
    if left_out:
        terminal.warning(f"not drawn: {not_drawn(left_out)}")
    title = f"validation curves of {count_text(len(curves), 'setting')}"
    draw = partial(overlay_picture.draw, settings=curves, title=title, metrics=tables[0].metrics)
    write_picture(target, Picture(draw, {}), width=width, terminal=terminal)
    terminal.answer(f"{target}: {title}")
    return {
        "command": "plot",
        "kind": kind,
        "path": str(target),
        "run": None,
        "settings": [
            {"label": row.label, "seeds": list(row.seeds), "runs": list(row.runs)}
            for row in tables[0].rows
            if row.label not in left_out
        ],
        "left_out": left_out,
        "seconds": round(time.monotonic() - started, 3),
    }


def draw_all(folder: Path, *, terminal: Terminal) -> list[Path]:
    """Draw every picture of a run that can be drawn, with default options; say what was left out, and why."""
    run = OpenRun(folder, terminal=terminal, samples=Request().samples, allow_code=True)  # the run executed this code
    drawn, left_out = [], []
    for kind, make in KINDS.items():
        if kind == "curves":
            continue  # drawn by the run
        try:
            picture = make(run, Request())
        except UserError as error:
            left_out.append(f"{kind} ({error.message.removeprefix(f'{run.folder.path}: ')})")
            continue
        drawn.append(folder / f"{kind}.png")
        write_picture(drawn[-1], picture, terminal=terminal)
    terminal.note(f"{folder}: drew {', '.join(path.name for path in drawn)}")
    if left_out:
        terminal.note(f"left out: {'; '.join(left_out)}")
    return drawn


def _curves(run: OpenRun, _: Request) -> Picture:
    rows = run.rows
    if not rows:
        raise UserError(f"{run.folder.path}: has no epoch yet", hint="wait until the run has finished its first one")
    draw = partial(
        curves_picture.draw,
        rows=rows,
        title=run.title,
        averaging=run.averaging,
        steps_per_epoch=run.plan.steps_per_epoch,
        lr=[run.plan.learning_rate(step) for step in range(run.step)],
        worker_lr=run.plan.worker_rates if len(rows) > run.plan.epochs else [],
        trained=run.recipe.train.loss_text,
        final=None if run.result is None else run.result["weights"],
        split="test" if run.result is None else run.result["split"],
        samples=None if run.result is None else run.result["samples"],
        metrics=run.metrics,
    )
    return Picture(draw, {})


def _schedule(run: OpenRun, _: Request) -> Picture:
    return _planned(run.title, run.plan)


def of_recipe(loaded: Loaded, terminal: Terminal) -> Picture:
    """Return the schedule of a recipe; data are opened only where their size is not known otherwise.

    Raises:
        RecipeError: The recipe gives no plan, or has options that its optimizer or network does not take.
        UserError: The data are missing.
    """
    recipe = loaded.recipe
    make_importable(loaded)
    if problems := problems_of_names(recipe):
        raise loaded.locate(problems)
    number = known_num_train(recipe.dataset.name, recipe.dataset.val, args=recipe.dataset.args)
    try:
        if number is None:
            number = len(build_context(recipe, Events([terminal])).split("train"))
        return _planned(recipe.title, make_plan(recipe, num_train=number))
    except RecipeError as error:
        raise loaded.locate(error.problems) from error


def _planned(title: str, plan: Plan) -> Picture:
    draw = partial(
        curves_picture.draw_schedule,
        title=f"{title}: learning rate",
        lr=[plan.learning_rate(step) for step in range(plan.total_steps)],
        averaging={item.name: item.steps for item in plan.averages},
        snapshots=plan.snapshots,
        worker_lr=plan.worker_rates,
        steps_per_epoch=plan.steps_per_epoch,
    )
    answer = {"steps": plan.total_steps, "steps_per_epoch": plan.steps_per_epoch, "snapshots": list(plan.snapshots)}
    answer["averages"] = {item.name: list(item.steps) for item in plan.averages}
    return Picture(draw, answer)


def _plane(run: OpenRun, request: Request) -> Picture:
    surface, cache = loss_surface.score_plane(run, request.points, size=request.size or GRID, samples=request.samples)
    title = f"{run.title}: plane through three weight sets"
    draw = partial(surface_picture.draw_plane, surface=surface, title=title, metrics=run.metrics)
    keys = ("x", "y", "loss", "score", "points", "split", "samples")
    return Picture(draw, {"cache": str(cache), **{key: surface[key] for key in keys}})


def _path(run: OpenRun, request: Request) -> Picture:
    line, cache = loss_surface.score_line(run, request.between, size=request.size or LINE, samples=request.samples)
    first, second = (point["name"] for point in line["points"])
    title = f"{run.title}: the line from {first} to {second}"
    draw = partial(surface_picture.draw_path, line=line, title=title, metrics=run.metrics)
    return Picture(draw, {"cache": str(cache), **line}, _barriers(line))


def _barriers(line: Mapping[str, Any]) -> str:
    """Return the barriers of a line as text: of training images, and of the images that were scored."""
    splits = {"train": line["barrier"]["train_loss"], line["split"]: line["barrier"]["loss"]}
    known = [f"{found['height']:.3g} on {split}" for split, found in splits.items() if found is not None]
    return f"barrier of the loss: {', '.join(known)}" if known else ""


def _calibration(run: OpenRun, _: Request) -> Picture:
    sets = reliability(run)
    title = f"{run.title}: calibration on the {plots.SPLITS[run.opened[0].scoring_split()]} set"
    return Picture(partial(calibration_picture.draw_reliability, sets=sets, title=title), {"weights": sets})


def _confusion(run: OpenRun, request: Request) -> Picture:
    name, matrix = confusion(run, request.weights)
    classes = list(run.opened[0].source.class_names)
    title = f"{run.title}: confusion matrix of {name} on the {plots.SPLITS[run.opened[0].scoring_split()]} set"
    draw = partial(calibration_picture.draw_confusion, matrix=matrix, classes=classes, title=title)
    return Picture(draw, {"weights": name, "classes": classes, "matrix": matrix})


def _window(run: OpenRun, request: Request) -> Picture:
    rows = start_sweep(run, size=request.size or STARTS)
    result = run.result or {}
    name = result.get("reference", "")
    val = result["weights"][name].get("val") if result else None
    draw = partial(
        curves_picture.draw_starts,
        rows=rows,
        title=f"{run.title}: averages by the start of their window, on the validation set",
        steps_per_epoch=run.plan.steps_per_epoch,
        reference=None if val is None else (name, val),
        metrics=run.metrics,
    )
    return Picture(draw, {"windows": rows})


def _budget(run: OpenRun, _: Request) -> Picture:
    series = budgets.require(run.folder, metrics=run.metrics)
    raw = budgets.raw_scores(run.rows, series, metrics=run.metrics)
    title = f"{run.title}: scores by budget"
    draw = partial(budget_picture.draw, series=series, raw=raw, title=title, metrics=run.metrics)
    return Picture(draw, {"series": series})


def start_sweep(run: OpenRun, *, size: int) -> list[dict[str, Any]]:
    """Score the means of the last snapshots of a run, from different starts up to the last snapshot.

    There are at most `size` starts, evenly spaced, the first and the last snapshot among them. Per start, return
    `start`, `end`, scores on validation images, differences to the best, `chosen`.

    Raises:
        UserError: The run has fewer than two snapshots, or no validation split.
    """
    paths = run.folder.snapshot_files
    if len(paths) < 2:
        has = count_text(len(paths), "snapshot")
        raise UserError(
            f"{run.folder.path}: has {has}, and starts are compared with at least 2",
            hint="train with snapshots.every=1ep",
        )
    context, model = run.opened
    if context.source.val is None:
        raise UserError(
            f"{run.folder.path}: has no validation split to score starts on", hint="train with dataset.val=10%"
        )
    gathered = sources.of_run(paths, context, model)
    series, trials = snapshot_series(gathered, option="window"), Trials(gathered)
    last, most = len(paths) - 1, min(len(paths), size)
    for first in (round(index * last / (most - 1)) for index in range(most)):
        trials.note_window(series, first, last)
    key = trials.metrics.loss_key
    trials.compare_to(min(range(len(trials.rows)), key=lambda index: trials.rows[index][key]))
    return trials.rows


KINDS: dict[str, Callable[[OpenRun, Request], Picture]] = {
    "curves": _curves,
    "schedule": _schedule,
    "plane": _plane,
    "path": _path,
    "calibration": _calibration,
    "confusion": _confusion,
    "window": _window,
    "budget": _budget,
}


def require_picture(target: Path, form: str | None) -> None:
    """Check that a picture can be written to `target`, in the `form` that was asked for if any.

    Raises:
        UserError: Another ending, or no permission.
    """
    ending = target.suffix.lower().removeprefix(".")
    if ending not in plots.FORMATS:
        raise UserError(f"{target}: pictures are PNG, SVG or PDF", hint="name a .png, .svg or .pdf file with -o FILE")
    if form not in (None, ending):
        raise UserError(f"{target}: does not end in .{form}", hint=f"leave out --format, or write -o FILE.{form}")
    open.require_writable(target)


def write_picture(target: Path, picture: Picture, *, terminal: Terminal, width: float | None = None) -> None:
    """Write a picture in the form of the ending of `target`, `width` inches wide."""
    form = target.suffix.lower().removeprefix(".")
    with plots.telling(terminal.warning):
        write_atomic(target, lambda file: picture.draw(file, form=form, width=width))


def _refuse_file(path: Path, kind: str) -> None:
    if path.is_file():
        raise UserError(
            f"{path}: is a file, and {kind} needs a run folder",
            hint=f"train it first, then `swa plot runs/latest {kind}`; a recipe alone has `schedule`",
        )
    raise UserError(f"{path}: no such run folder", hint=HOW_TO_NAME_A_RUN)
