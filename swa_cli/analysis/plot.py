"""`swa plot`: the pictures of a run, by name, and of a recipe the one that is known before training.

`KINDS` says what each needs and how it is drawn; drawing itself is the room `report/plots`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from swa_cli.analysis import calibration, plane, start_sweep
from swa_cli.analysis.run_data import OpenRun
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.data import sources
from swa_cli.engine.context import build_context
from swa_cli.engine.events import Events
from swa_cli.engine.user_code import make_importable
from swa_cli.errors import RecipeError, UserError
from swa_cli.recipe import load
from swa_cli.recipe.load import Loaded
from swa_cli.recipe.plan import Plan, make_plan
from swa_cli.report.plots import calibration as calibration_picture
from swa_cli.report.plots import calibration as confusion_picture
from swa_cli.report.plots import curves as curves_picture
from swa_cli.report.plots import loss_surface as path_picture
from swa_cli.report.plots import loss_surface as plane_picture
from swa_cli.report.plots import schedule as schedule_picture
from swa_cli.report.plots import schedule as window_picture
from swa_cli.report.plots.style import FORMATS
from swa_cli.report.terminal import Terminal


@dataclass(frozen=True)
class Request:
    """What was asked for beside the kind: numbers of points and samples, weight sets by name or file."""

    size: int | None = None  # of the grid; None for the kind's own
    samples: int | None = 1000  # None for all
    points: tuple[str, ...] | None = None  # three, of a plane
    between: tuple[str, ...] | None = None  # two, of a path
    weights: str | None = None  # of a confusion matrix; None for the first average


@dataclass(frozen=True)
class Picture:
    """Ready to be drawn: `write(file, form)`; `values` go into the answer for programs."""

    write: Callable[[IO[bytes], str], None]
    values: dict[str, Any]


GRID, LINE, STARTS = 15, 21, 12  # points by default


def plot(
    path: Path,
    kind: str,
    overrides: Sequence[str],
    *,
    out: Path | None,
    request: Request,
    terminal: Terminal,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Draw one picture of a run, or the schedule of a recipe.

    Args:
        path: A run folder or a recipe.
        kind: One of `KINDS`.
        overrides: Changes of the recipe; of a run, only of keys that the weights do not depend on.
        out: A .png or .svg file; by default KIND.png in the run folder, or in the working directory.
        request: What else was asked for.
        terminal: Told of everything.
        allow_code: Import what the recipe names.

    Raises:
        RecipeError: Problems of the recipe.
        UserError: The run does not have what the picture takes, or a place that cannot be written to.
    """
    started, is_run = time.monotonic(), path.is_dir()
    if not is_run and kind != "schedule":
        _refuse_file(path, kind)
    target = out or (path if is_run else Path()) / f"{kind}.png"
    _require_writable(target)
    if is_run:
        run = _open(path, overrides, request=request, terminal=terminal, allow_code=allow_code)
        picture = KINDS[kind](run, request)
    else:
        picture = of_recipe(load.load(path, overrides), terminal)
    _write(target, picture)
    terminal.answer(f"{target}: {kind} of {path}")
    return {
        "command": "plot",
        "kind": kind,
        "path": str(target),
        "run": str(path) if is_run else None,
        **picture.values,
        "seconds": round(time.monotonic() - started, 3),
    }


def draw_all(folder: Path, *, terminal: Terminal) -> list[Path]:
    """Draw every picture that the run has what it takes for; one note says which were left out, and why.

    The plane is measured on a grid of the default size, like everything else here.
    """
    run = _open(folder, (), request=Request(), terminal=terminal, allow_code=True)  # the run itself has run it
    drawn, left_out = [], []
    for kind, make in KINDS.items():
        if kind == "curves":
            continue  # the run has drawn them
        try:
            picture = make(run, Request())
        except UserError as error:
            left_out.append(f"{kind} ({error.message.removeprefix(f'{run.folder.path}: ')})")
            continue
        drawn.append(folder / f"{kind}.png")
        _write(drawn[-1], picture)
    terminal.note(f"{folder}: drew {', '.join(path.name for path in drawn)}")
    if left_out:
        terminal.note(f"left out: {'; '.join(left_out)}")
    return drawn


def draw_if_asked(folder: Path, *, terminal: Terminal) -> None:
    """After a run: `draw_all` if its recipe says `output.plots: true`."""
    if load.load(RunFolder(folder).recipe).recipe.output.plots:
        draw_all(folder, terminal=terminal.part())


def _curves(run: OpenRun, _: Request) -> Picture:
    rows = run.rows
    if not rows:
        raise UserError(f"{run.folder.path}: has no epoch yet", hint="let the run end its first one")
    values: dict[str, Any] = {
        "rows": rows,
        "title": run.title,
        "averaging": run.averaging,
        "steps_per_epoch": run.plan.steps_per_epoch,
        "lr": [run.plan.learning_rate(step) for step in range(run.step)],
        "worker_lr": run.plan.worker_rates if len(rows) > run.plan.epochs else [],
        "final": None if run.result is None else run.result["weights"],
        "metrics": run.metrics,
    }
    return Picture(lambda file, form: curves_picture.draw(file, form=form, **values), {})


def _schedule(run: OpenRun, _: Request) -> Picture:
    return _planned(run.title, run.plan)


def of_recipe(loaded: Loaded, terminal: Terminal) -> Picture:
    """The schedule of a recipe; data are opened only where their size is not known without.

    Raises:
        RecipeError: The recipe does not make a plan.
        UserError: The data are missing.
    """
    recipe = loaded.recipe
    number = sources.known_num_train(recipe.dataset.name, recipe.dataset.val, args=recipe.dataset.args)
    if number is None:
        make_importable(loaded)
        number = len(build_context(recipe, Events([terminal])).split("train"))
    try:
        return _planned(recipe.title, make_plan(recipe, num_train=number))
    except RecipeError as error:
        raise loaded.locate(error.problems) from error


def _planned(title: str, plan: Plan) -> Picture:
    values: dict[str, Any] = {
        "title": f"{title}: learning rate",
        "lr": [plan.learning_rate(step) for step in range(plan.total_steps)],
        "averaging": {item.name: item.steps for item in plan.averages},
        "snapshots": plan.snapshots,
        "worker_lr": plan.worker_rates,
        "steps_per_epoch": plan.steps_per_epoch,
    }
    said = {"steps": plan.total_steps, "steps_per_epoch": plan.steps_per_epoch, "snapshots": list(plan.snapshots)}
    said["averages"] = {item.name: list(item.steps) for item in plan.averages}
    return Picture(lambda file, form: schedule_picture.draw_schedule(file, form=form, **values), said)


def _plane(run: OpenRun, request: Request) -> Picture:
    surface, cache = plane.surface(run, request.points, size=request.size or GRID, samples=request.samples)
    title = f"{run.title}: plane through three weight sets"

    def write(file: IO[bytes], form: str) -> None:
        plane_picture.draw_plane(file, surface=surface, title=title, metrics=run.metrics, form=form)

    said = {key: surface[key] for key in ("x", "y", "loss", "score", "points", "split", "samples")}
    return Picture(write, {"cache": str(cache), **said})


def _path(run: OpenRun, request: Request) -> Picture:
    line, cache = plane.line(run, request.between, size=request.size or LINE, samples=request.samples)
    first, second = (point["name"] for point in line["points"])
    title = f"{run.title}: the line from {first} to {second}"

    def write(file: IO[bytes], form: str) -> None:
        path_picture.draw_path(file, line=line, title=title, metrics=run.metrics, form=form)

    return Picture(write, {"cache": str(cache), **line})


def _calibration(run: OpenRun, _: Request) -> Picture:
    sets = calibration.reliability(run)
    title = f"{run.title}: calibration on {run.opened[0].scoring_split()}"
    return Picture(
        lambda file, form: calibration_picture.draw_reliability(file, sets=sets, title=title, form=form),
        {"weights": sets},
    )


def _confusion(run: OpenRun, request: Request) -> Picture:
    calibration.require_classes(run, "confusion")
    name = request.weights or run.best
    matrix, classes = calibration.confusion(run, name), list(run.opened[0].source.class_names)
    title = f"{run.title}: classes of {name} on {run.opened[0].scoring_split()}"

    def write(file: IO[bytes], form: str) -> None:
        confusion_picture.draw_confusion(file, matrix=matrix, classes=classes, title=title, form=form)

    return Picture(write, {"weights": name, "classes": classes, "matrix": matrix})


def _window(run: OpenRun, request: Request) -> Picture:
    rows = start_sweep.rows(run, size=request.size or STARTS)
    values: dict[str, Any] = {
        "rows": rows,
        "title": f"{run.title}: start of averaging, scored on validation images",
        "steps_per_epoch": run.plan.steps_per_epoch,
        "chosen": "best",
        "reference": _reference(run),
        "metrics": run.metrics,
    }
    return Picture(lambda file, form: window_picture.draw_search(file, form=form, **values), {"windows": rows})


def _reference(run: OpenRun) -> tuple[str, Mapping[str, Any]] | None:
    """The raw weights that averages are judged against, and their validation scores; None where there are none."""
    if run.result is None:
        return None
    name = run.result["reference"]
    val = run.result["weights"][name].get("val")
    return None if val is None else (name, val)


KINDS: dict[str, Callable[[OpenRun, Request], Picture]] = {
    "curves": _curves,
    "schedule": _schedule,
    "plane": _plane,
    "path": _path,
    "calibration": _calibration,
    "confusion": _confusion,
    "window": _window,
}


def _open(path: Path, overrides: Sequence[str], *, request: Request, terminal: Terminal, allow_code: bool) -> OpenRun:
    samples = None if request.samples is None else str(request.samples)
    return OpenRun(path, overrides, terminal=terminal, samples=samples, allow_code=allow_code)


def _write(target: Path, picture: Picture) -> None:
    form = target.suffix.lower().removeprefix(".")
    write_atomic(target, lambda file: picture.write(file, form))


def _refuse_file(path: Path, kind: str) -> None:
    if path.is_file():
        raise UserError(
            f"{path}: is a file, and {kind} is drawn of a run folder",
            hint=f"train it first, then `swa plot runs/latest {kind}`; of a recipe there is `schedule`",
        )
    raise UserError(f"{path}: no such run folder", hint="name one, such as runs/latest")


def _require_writable(target: Path) -> None:
    """The picture can be written where it is to go.

    Raises:
        UserError: It cannot.
    """
    if target.suffix.lower().removeprefix(".") not in FORMATS:
        raise UserError(f"{target}: pictures are PNG or SVG", hint="name a .png or .svg file with -o FILE")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder", hint="make it, or name another file with -o FILE")
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise UserError(f"{target}: is no file that may be replaced", hint="name another file with -o FILE")
