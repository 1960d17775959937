"""`swa report`: write one self-contained HTML page of runs, repeats and sweeps.

The table of `swa compare` and the curves of all settings over each other come first, then each run.
Calibration needs the predictions of each weight set, so it opens the data. A plane is shown if one was measured
before, or measured on request; scores by budget are shown if `swa average --at` has made some. The page says what was
left out, and why.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swa_cli.analysis import budgets, loss_surface, open, plot, settings, table
from swa_cli.analysis.overlay import not_drawn, overlaid
from swa_cli.analysis.plot import GRID
from swa_cli.analysis.run_data import OpenRun, confusion, hardest, reliability
from swa_cli.analysis.settings import Setting
from swa_cli.checkpoint.atomic import write_atomic
from swa_cli.checkpoint.run_folder import about
from swa_cli.checkpoint.schema import ENDED_BY
from swa_cli.engine.plan_text import describe_averages, describe_schedule
from swa_cli.engine.user_code import command
from swa_cli.errors import UserError
from swa_cli.metrics.per_class import OUTCOMES, class_scores
from swa_cli.recipe import load
from swa_cli.recipe.swap import describe_swap
from swa_cli.report.class_scores import percent
from swa_cli.report.page import Drawing, RunOnPage, TextTable, document
from swa_cli.report.plots import SPLITS
from swa_cli.report.plots import budgets as budget_picture
from swa_cli.report.plots import calibration as calibration_picture
from swa_cli.report.plots import loss_surface as surface_picture
from swa_cli.report.plots import overlay as overlay_picture
from swa_cli.report.plots import samples as sheet_of_images
from swa_cli.report.scores import budget_cells, verdict
from swa_cli.report.tables import SettingTable
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text, some_of

MOST_WITH_DATA = 12  # runs of a page whose data are opened

COLUMN = 4.0  # inches of a picture in a column of the page


def write_page(
    paths: Sequence[Path],
    *,
    out: Path,
    version: str,
    terminal: Terminal,
    with_plane: bool = False,
    with_data: bool = True,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Write the page of runs, repeats and sweeps to an .html file.

    `with_plane`: measure the plane of each run; `with_data`: open the data, for calibration and confusion. Each run is
    read in turn, and of several a part that cannot be made is left out and named.

    Raises:
        UserError: No run folder, one that cannot be read, or a place that cannot be written to.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out}: the name must end in .html", hint="name an .html file with -o FILE")
    open.require_writable(out)
    is_single = len(paths) == 1 and not plot.holds_runs(paths[0])
    found = [] if is_single else settings.find(paths, terminal=terminal)
    places = list(paths) if is_single else [run.path for setting in found for run in setting.runs]
    tables = table.tabulate(found, warn=terminal.warning) if found else []
    if with_data and len(places) > MOST_WITH_DATA:
        terminal.warning(
            f"what needs the data, such as calibration, is left out: {len(places)} runs are more than"
            f" {MOST_WITH_DATA}; name fewer for it"
        )
        with_data = False
    shown, left_out = [], []
    for place, (path, title) in enumerate(zip(places, settings.titles(places), strict=True), start=1):
        if len(places) > 1:
            terminal.note(f"{path}: run {place} of {len(places)}")
        try:
            run = OpenRun(path, terminal=terminal, samples=1000, allow_code=allow_code)
            page, missing = _on_page(run, title=title, version=version, with_plane=with_plane, with_data=with_data)
        except UserError as error:
            if is_single:
                raise
            left_out.append(LeftOut(path, "everything but its scores", error))
            continue
        shown.append(page)
        left_out += missing
    notes = _told(left_out, num_runs=len(places), terminal=terminal)
    overlays = [drawing for each in tables for drawing in _overlay(found, each, terminal)]
    number = count_text(len(places), "run")
    what = f"{found[0].label}: {number}" if len(found) == 1 else f"{number} of {count_text(len(found), 'setting')}"
    page_title = shown[0].title if is_single else what
    content = document(shown, title=page_title, tables=tables, overlays=overlays, notes=notes).encode()
    write_atomic(out, lambda file: file.write(content))
    terminal.answer(f"{out}: {number}, {len(content) / 1e6:.1f} MB; open it in a browser")
    return {
        "command": "report",
        "path": str(out),
        "runs": [str(path) for path in places],
        "bytes": len(content),
        "left_out": {str(path): [each.note for each in left_out if each.path == path] for path in places},
    }


@dataclass(frozen=True)
class LeftOut:
    """A part of a page that a run lacks."""

    path: Path
    part: str
    error: UserError

    @property
    def reason(self) -> str:
        """Why, and what to do, without the name of the run."""
        return self.error.message.removeprefix(f"{self.path}: ") + f"; {self.error.hint}"

    @property
    def note(self) -> str:
        """What is left out, and why."""
        return f"Left out: {self.part} ({self.reason})"

    @property
    def kind(self) -> tuple[str, str]:
        """What is equal where the same is left out of several runs."""
        path = str(self.path)
        return self.part, self.reason.replace(shlex.quote(path), "RUN").replace(path, "RUN")


def _told(left_out: Sequence[LeftOut], *, num_runs: int, terminal: Terminal) -> list[str]:
    """Warn of what is left out, once for all runs with the same reason; return the notes of the page."""
    kinds: dict[tuple[str, str], list[LeftOut]] = {}
    for each in left_out:
        kinds.setdefault(each.kind, []).append(each)
    notes = []
    for (part, reason), same in kinds.items():
        if num_runs == 1:
            notes.append(same[0].note)
            terminal.warning(f"{same[0].path}: {part} is left out: {same[0].reason}")
            continue
        of = "every run" if len(same) == num_runs else some_of([each.path for each in same])
        notes.append(f"Left out: {part} of {of} ({reason})")
        terminal.warning(f"{part} is left out of {of}: {reason}")
    return notes


def _overlay(found: Sequence[Setting], shown: SettingTable, terminal: Terminal) -> list[Drawing]:
    """Draw the validation curves of the settings of a table over each other."""
    curves, left_out = overlaid(found, shown)
    if not curves:
        return []
    if left_out:
        terminal.warning(f"not in the curves: {not_drawn(left_out)}")
    caption = f"of {count_text(len(curves), 'setting')}"
    if any(len(row.seeds) > 1 for row in shown.rows):
        caption += ": a thin line per seed, their mean, and a band of one standard deviation"
    caption += f"; not drawn: {not_drawn(left_out)}" if left_out else ""
    return [
        Drawing(
            f"Validation {each.name} {caption}",
            _svg(overlay_picture.draw, settings=curves, metrics=shown.metrics, panels=(each.key,), width=COLUMN),
        )
        for each in shown.metrics.compared[::-1]
        if any(each.key in curve.raw for curve in curves)
    ]


def _on_page(
    run: OpenRun, *, title: str, version: str, with_plane: bool, with_data: bool
) -> tuple[RunOnPage, list[LeftOut]]:
    """Return what the page shows of a run, and what it leaves out."""
    made: list[Drawing | TextTable] = []
    left_out: list[LeftOut] = []
    makers: list[tuple[str, Callable[[], Sequence[Drawing | TextTable]]]] = [
        ("plane", lambda: _plane(run, measure=with_plane))
    ]
    if run.folder.budget.is_file():
        makers.append(("scores by budget", lambda: _budgets(run)))
    if with_data and run.recipe.task == "classification":
        makers += [("calibration", lambda: _calibration(run)), ("confusion", lambda: _confusion(run))]
    if with_data and run.recipe.task in OUTCOMES:
        makers += [
            ("scores of classes", lambda: [_classes(run)]),
            ("the hardest images", lambda: _hardest(run)),
        ]
    for name, make in makers:
        try:
            made += make()
        except UserError as error:
            left_out.append(LeftOut(run.folder.path, name, error))
    result = run.result or {}
    weights = result.get("weights", {})
    page = RunOnPage(
        title=title,
        facts=_facts(run),
        metrics=run.metrics,
        trained=run.recipe.train.loss_text,
        rows=run.rows,
        averaging=run.averaging,
        steps_per_epoch=run.plan.steps_per_epoch,
        lr=[run.plan.learning_rate(step) for step in range(run.step)],
        split=result.get("split", ""),
        samples=result.get("samples", 0),
        tta=run.recipe.eval.tta,
        weights=weights,
        verdict=verdict(weights, metrics=run.metrics) if weights else [],
        drawings=[each for each in made if isinstance(each, Drawing)],
        tables=[each for each in made if isinstance(each, TextTable)],
        recipe=load.dump(run.recipe),
        versions=_versions(run, version),
        commands=_commands(run),
    )
    return page, left_out


def _facts(run: OpenRun) -> list[tuple[str, str]]:
    recipe, point, input_ = run.recipe, run.point.content, run.point.content["input"]
    classes = f", {len(input_['classes'])} classes" if input_["classes"] else ""
    size = " x ".join(map(str, [input_["channels"], *input_["size"]])) if input_["channels"] else "no images"
    pairs = [
        ("task", recipe.task),
        ("model", recipe.model.name),
        ("data", f"{recipe.dataset.name}: {point['num_train']:,} training samples, {size}{classes}"),
        ("schedule", describe_schedule(recipe, run.plan)),
        *([("swap", phases)] if (phases := describe_swap(recipe)) is not None else []),
        *(("" if index else "averaging", text) for index, text in enumerate(describe_averages(recipe, run.plan))),
        ("seed", str(recipe.seed)),
    ]
    seconds = sum(row["seconds"] for row in point["history"])
    stopped = f", ended by {ENDED_BY[point['stopped']]}" if point["stopped"] else ""
    pairs.append(("done", f"{run.step:,} of {run.plan.total_steps:,} steps in {seconds:,.0f} s{stopped}"))
    return pairs


def _versions(run: OpenRun, version: str) -> list[tuple[str, str]]:
    known = dict(run.point.content["environment"])
    known |= {"python": about(run.folder.about).get("python")} if run.folder.about.is_file() else {}
    names = ("torch", "python", "device", "precision", "threads", "processor")
    return [("swa", version), *((name, str(known[name])) for name in names if known.get(name) is not None)]


def _commands(run: OpenRun) -> list[str]:
    environment = run.point.content["environment"]
    device, processes = str(environment["device"]), environment["processes"]
    pinned = [f"train.precision={environment['precision']}", f"train.threads={environment['threads']}"]
    pinned.append(f"train.device={device if processes == 1 else device.partition(':')[0]}")  # each has its own card
    pinned += ["--processes", str(processes)] if processes > 1 else []
    return [
        shlex.join(["swa", "train", "recipe.yaml", *pinned]),
        command(("swa", "eval", Path(run.recipe.output.root) / "latest"), run.recipe),
    ]


def _plane(run: OpenRun, *, measure: bool) -> list[Drawing]:
    """Draw the newest complete plane, or measure one of the default size.

    Raises:
        UserError: There is none, or the run lacks the weights of the default one.
    """
    surface = None
    if measure:
        surface, _ = loss_surface.score_plane(run, None, size=GRID, samples=1000)
    else:
        for path in sorted(run.folder.path.glob("plane-*.json"), key=lambda path: -path.stat().st_mtime):
            surface = loss_surface.read_plane(path)
            if surface is not None:
                break
    if surface is None:
        loss_surface.snapshots_of_plane(run)  # else no hint to measure one would help
        raise UserError(
            f"{run.folder.path}: no plane was measured",
            hint=f"run `{command(('swa', 'plot', run.folder.path, 'plane'), run.recipe)}` first, or add --plane",
        )
    names = ", ".join(point["name"] for point in surface["points"])
    drawings = []
    for key in surface_picture.PANELS:
        what = surface_picture.panel_title(run.metrics, key, split=surface["split"])
        drawn = _svg(surface_picture.draw_plane, surface=surface, metrics=run.metrics, panels=(key,))
        drawings.append(Drawing(f"Plane through {names}: {what}", drawn))
    return drawings


def _budgets(run: OpenRun) -> list[Drawing | TextTable]:
    """Draw the networks of each budget that `swa average --at` has scored, and list their scores."""
    series = budgets.require(run.folder, metrics=run.metrics)
    raw = budgets.raw_scores(run.rows, series, metrics=run.metrics)
    drawn = _svg(budget_picture.draw, series=series, raw=raw, metrics=run.metrics, width=COLUMN)
    tables = [
        TextTable(f"Scores by budget, {each['name']}", *budget_cells(each["rows"], metrics=run.metrics))
        for each in series
    ]
    return [Drawing("Scores of averages of this run by the budget of their training", drawn), *tables]


def _calibration(run: OpenRun) -> list[Drawing]:
    split = run.opened[0].scoring_split()
    return [
        Drawing(
            f"Calibration of {name} on the {SPLITS[split]} set",
            _svg(calibration_picture.draw_reliability, sets={name: found}, width=COLUMN),
        )
        for name, found in reliability(run).items()
    ]


def _confusion(run: OpenRun) -> list[Drawing]:
    name, matrix = confusion(run)
    classes = run.opened[0].source.class_names
    is_wide = len(classes) > calibration_picture.MOST_NUMBERS
    width = None if is_wide else COLUMN
    drawn = _svg(calibration_picture.draw_confusion, matrix=matrix, classes=classes, width=width)
    return [Drawing(f"Confusion matrix of {name} on the {SPLITS[run.opened[0].scoring_split()]} set", drawn, is_wide)]


def _classes(run: OpenRun) -> TextTable:
    """Return the scores of each class for the best weight set, and their means."""
    classes, split = run.opened[0].source.class_names, run.opened[0].scoring_split()
    outcomes = OUTCOMES[run.recipe.task](*run.predictions[run.best])
    metrics, found = outcomes.metrics, class_scores(outcomes, names=classes)
    rows = [
        [
            row["class"],
            f"{row['support']:,}",
            *(percent(row[each.key], row[f"{each.key}_se"]) for each in metrics),
        ]
        for row in found["classes"]
    ]
    means = [percent(found[each.mean_key], found[f"{each.mean_key}_se"]) for each in metrics]
    named = [each for each in metrics if each.mean_name != f"macro {each.name}"]
    names = ", ".join(f"the mean {each.name} is the {each.mean_name}" for each in named)
    return TextTable(
        f"Classes of {run.best} on {split} (± one standard error); {names}",
        ["class", "samples", *(f"{each.name} %" for each in metrics)],
        [*rows, ["mean", f"{len(outcomes.p):,}", *means]],
    )


def _hardest(run: OpenRun) -> list[Drawing]:
    name, samples = hardest(run)
    drawn = _svg(sheet_of_images.draw_samples, samples=samples)
    title = f"Images of the {SPLITS[run.opened[0].scoring_split()]} set with the highest loss of {name}"
    return [Drawing(title, drawn, is_wide=True)]


def _svg(draw: Callable[..., None], **values: Any) -> bytes:
    """Draw an SVG without a title."""
    file = io.BytesIO()
    draw(file, **values, title="", form="svg")
    return file.getvalue()
