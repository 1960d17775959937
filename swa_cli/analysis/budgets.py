"""`swa average RUN --decay linear --at 25%,50%,100%`: the network of each budget, from the snapshots of one run.

A budget is a point of the run, at a snapshot. Its network is an average up to that point, by a merge that stands for a
decay or by an EMA, with BatchNorm statistics of its own. It is scored on validation and on test images; nothing is
chosen. The rows stay in `budget.json` in the run folder, one series per profile and share, for `swa plot RUN budget`
and the page of `swa report`.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from swa_cli.analysis import open, sources
from swa_cli.analysis.average import content_of, require_writable
from swa_cli.analysis.snapshot_series import ProfileOption, SnapshotSeries, snapshot_series
from swa_cli.analysis.trials import Trials
from swa_cli.checkpoint import reader
from swa_cli.checkpoint.atomic import json_text, write_atomic
from swa_cli.checkpoint.run_folder import HOW_TO_NAME_A_RUN, RESUMABLE_KEYS, RunFolder, read_json
from swa_cli.engine import evaluate, user_code
from swa_cli.errors import UserError
from swa_cli.metrics.metric import TaskMetrics
from swa_cli.recipe.values import Duration, in_epochs
from swa_cli.report import plots
from swa_cli.report.plots import budgets as budget_picture
from swa_cli.report.scores import budget_summary
from swa_cli.report.terminal import Terminal
from swa_cli.units import count_text, some_of

FORMAT = 2  # of budget.json
SHARE = 40.0  # percent of the steps of a budget that a merge takes, by default
SPLITS = ("val", "test")
KEPT = ("epochs", "steps", "count", "error", *SPLITS)  # of a row, in budget.json


def average_at(
    path: Path,
    overrides: Sequence[str],
    *,
    profile: ProfileOption,
    points: Sequence[Duration],
    share: float | None,
    out: Path | None,
    plot: Path | None,
    terminal: Terminal,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Average the run up to each point, score these networks, and draw their scores by budget.

    A point between two snapshots becomes the nearer one. `share` is the last percent of the steps up to a point that
    counts, by default 40 % for a merge and all of them for an EMA. With `out`, each network is written beside it as
    `NAME-10ep.pt`. `plot` is the picture, by default beside `out`, or else `budget.png` in the run folder.

    Raises:
        UserError: Not one run folder, points without a snapshot, or a place that cannot be written to.
    """
    started, folder = time.monotonic(), RunFolder(path)
    if not path.is_dir():
        raise UserError(f"{path}: is not a run folder, and --at takes one", hint=HOW_TO_NAME_A_RUN)
    files, point = sources.files_of([path]), open.resume_point(folder)
    picture = plot or (folder.path / "budget.png" if out is None else out.with_suffix(".png"))
    require_writable(picture, files, suffix=".png", option="--plot")
    gathered = sources.gather(files, overrides, recipe=None, terminal=terminal, allow_code=allow_code)
    series = snapshot_series(gathered, option="--at")
    lasts = _snapshots_at(points, series, terminal)
    targets = _targets(out, [_epochs(series, last) for last in lasts], files)
    share = SHARE if share is None and profile.decay is not None else share
    name = profile.text if share is None else f"{profile.text} --share {share:g}%"
    trials, rows = Trials(gathered), []
    with nullcontext() if out is None else open.lock(out):
        for last, target in zip(lasts, targets, strict=True):
            first = 0 if share is None else series.last_share(share, last=last)
            refreshed = trials.refresh(series.weighted(series.profile(profile), first, last))
            if target is not None:
                reader.save(target, content_of(refreshed, gathered, has_own_recipe=True))
            rows.append(
                {
                    "epochs": _epochs(series, last),
                    "steps": list(series.bounds(first, last)),
                    "count": refreshed.mean.count,
                    "error": refreshed.mean.error,
                    "checkpoint": None if target is None else str(target),
                    **_scores(trials),
                }
            )
            if refreshed.mean.count == 1:
                more = "a larger --share takes more" if first else "there is no snapshot before it"
                budget = count_text(_epochs(series, last), "epoch")
                terminal.warning(f"{budget}: 1 weight set, nothing was averaged: {more}")
    metrics = trials.metrics
    made = {"name": name, "rows": [{key: row[key] for key in KEPT} for row in rows]}
    shown = _kept(folder, made, overrides, metrics=metrics, terminal=terminal)
    raw = raw_scores(point.content["history"], shown, metrics=metrics)
    title = f"{path.resolve().name}: scores by budget"
    with plots.telling(terminal.warning):
        write_atomic(
            picture, lambda file: budget_picture.draw(file, series=shown, raw=raw, title=title, metrics=metrics)
        )
    terminal.print(budget_summary(rows, name=name, metrics=metrics))
    written = ", ".join(str(place) for place in (*targets, picture) if place is not None)
    see = user_code.command(("swa", "report", path, "-o", "report.html"), gathered.context.recipe)
    terminal.answer(f"{written}: {name}; see `{see}`")
    return {
        "command": "average",
        "run": str(path),
        "profile": name,
        "rows": rows,
        "passes": trials.num_passes,
        "plot": str(picture),
        "seconds": round(time.monotonic() - started, 3),
        **gathered.context.hardware.facts,
    }


def read(folder: RunFolder, *, metrics: TaskMetrics) -> list[dict[str, Any]]:
    """Return the series of budgets that a run folder keeps, each with `name` and `rows`; none without a file.

    Raises:
        UserError: The file is not as swa writes it.
    """
    if not folder.budget.is_file():
        return []
    hint = "remove it, and run `swa average RUN --at` again"
    try:
        content = read_json(folder.budget, hint=hint)
        if content["format"] != FORMAT:
            raise ValueError("is of another format")
        found = [
            {"name": str(each["name"]), "rows": [_row(row, metrics) for row in each["rows"]]}
            for each in content["series"]
        ]
        if not all(each["rows"] for each in found):
            raise ValueError("has a series without rows")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder.budget}: is not as swa writes it ({error})", hint=hint) from error
    return found


def require(folder: RunFolder, *, metrics: TaskMetrics) -> list[dict[str, Any]]:
    """Return what `read` does, which has to be there.

    Raises:
        UserError: There is none, or the file is not as swa writes it.
    """
    found = read(folder, metrics=metrics)
    if not found:
        steps = [int(path.stem[5:]) for path in folder.snapshot_files]
        some = sorted({steps[-(-len(steps) * part // 4) - 1] for part in (1, 2, 4)}) if steps else []
        points = ",".join(f"{step}step" for step in some)
        command = f"swa average {shlex.quote(str(folder.path))} --decay linear --at {points}"
        raise UserError(
            f"{folder.path}: has no scores by budget",
            hint=f"run `{command}` first" if steps else "it has no snapshots: train with snapshots.every=1ep",
        )
    return found


def raw_scores(
    history: Sequence[Mapping[str, Any]], series: Sequence[Mapping[str, Any]], *, metrics: TaskMetrics
) -> list[dict[str, Any]]:
    """Return validation scores of the raw weights at the epochs from the smallest to the largest budget."""
    epochs = [row["epochs"] for each in series for row in each["rows"]]
    keys = {metrics.loss.key: "val_loss", metrics.primary.key: f"val_{metrics.primary.key}"}
    return [
        {"epochs": row["epoch"], **{key: row[column] for key, column in keys.items()}}
        for row in history
        if min(epochs) <= row["epoch"] <= max(epochs) and all(row.get(column) is not None for column in keys.values())
    ]


def _snapshots_at(points: Sequence[Duration], series: SnapshotSeries, terminal: Terminal) -> list[int]:
    """Return the snapshot of each point, in the order of the run; say which lie beside theirs."""
    found: dict[int, Duration] = {}
    for point in points:
        last = series.at(point)
        if last in found:
            raise UserError(
                f"--at: {found[last]} and {point} are both nearest to step {series.points[last]:,}",
                hint=f"name each snapshot once, of the steps {some_of(series.points, most=10)}",
            )
        found[last] = point
        if series.step_of(point, option="--at") != series.points[last]:
            terminal.note(f"--at {point}: the nearest snapshot is step {series.points[last]:,}")
    return sorted(found)


def _epochs(series: SnapshotSeries, last: int) -> float:
    epochs = float(in_epochs(series.points[last], steps_per_epoch=series.clock.steps_per_epoch))
    return int(epochs) if epochs.is_integer() else epochs


def _targets(out: Path | None, epochs: Sequence[float], files: Sequence[Path]) -> list[Path | None]:
    """Return the file of each budget beside `out`."""
    if out is None:
        return [None] * len(epochs)
    require_writable(out, files, suffix=".pt")
    targets = [out.with_name(f"{out.stem}-{budget:g}ep.pt") for budget in epochs]
    for target in targets:
        require_writable(target, files, suffix=".pt")
    return list(targets)


def _scores(trials: Trials) -> dict[str, Any]:
    """Return the scores on validation and test images of the network that was refreshed last; None without a split."""
    context = trials.sources.context
    return {
        split: None
        if getattr(context.source, split) is None
        else {
            **evaluate.summarize(trials.score(loader=context.plain_batches(split))),
            "samples": len(context.split(split)),
        }
        for split in SPLITS
    }


def _kept(
    folder: RunFolder, made: dict[str, Any], overrides: Sequence[str], *, metrics: TaskMetrics, terminal: Terminal
) -> list[dict[str, Any]]:
    """Add a series to those that the run folder keeps, and return all; with other data or views it is not kept."""
    if any(word.partition("=")[0] not in RESUMABLE_KEYS for word in overrides):
        terminal.note(f"{folder.budget}: keeps no scores of a changed recipe")
        return [made]
    shown = [*(each for each in read(folder, metrics=metrics) if each["name"] != made["name"]), made]
    text = json_text({"format": FORMAT, "series": shown}, indent=2)
    write_atomic(folder.budget, lambda file: file.write(text.encode()))
    return shown


def _row(row: Mapping[str, Any], metrics: TaskMetrics) -> dict[str, Any]:
    """Return the row of a budget after checking what pictures and tables take of it."""
    start, end = row["steps"]
    numbers = [row["epochs"], start, end, row["count"], row["error"]]
    for split in SPLITS:
        if row[split] is not None:
            numbers += [row[split][metric.key] for metric in (metrics.loss, metrics.primary)]
            numbers.append(row[split].get("samples"))
    if not all(isinstance(value, int | float | None) and (value is None or math.isfinite(value)) for value in numbers):
        raise ValueError("has values that are no numbers")
    return dict(row)
