"""`swa plot SWEEP sweep`: read the trials of a sweep for its picture, also while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from swa_cli.analysis import sweep_metric
from swa_cli.analysis.sweep_study import FORMAT, JOURNAL, SweepStudy, settings_of
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.engine.user_code import admit
from swa_cli.errors import UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import BY_TASK
from swa_cli.recipe import load
from swa_cli.report.plots import sweep as picture


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, float]]:
    """Return sweep.json of a folder, its trials as in result.json, and the importances of its parameters.

    The trials of a journal are read as they are now, those of a database from result.json, which the end writes.

    Raises:
        UserError: It is not the folder of a sweep, or there are no trials.
    """
    folder = RunFolder(path)
    if not folder.sweep.is_file():
        raise UserError(f"{path}: is not the folder of a sweep", hint="name one, such as runs/NAME-sweep-001")
    stored = json.loads(folder.sweep.read_text())
    if stored.get("format") != FORMAT:
        raise UserError(f"{folder.sweep}: has format {stored.get('format')}", hint=f"this swa reads format {FORMAT}")
    if stored["storage"] == JOURNAL and (path / JOURNAL).is_file():
        study = SweepStudy(path, settings_of(stored, epochs=load.load(folder.recipe).recipe.train.epochs))
        return stored, [record.values for record in study.records()], study.importances()
    if not folder.result.is_file():
        raise UserError(f"{path}: its trials are in a database", hint="draw it once the sweep is finished")
    result = json.loads(folder.result.read_text())
    return stored, result["trials"], result["importances"]


def read_picture(path: Path, *, allow_code: bool) -> tuple[Callable[..., None], dict[str, Any]]:
    """Return the function that draws a sweep, and the values for the JSON answer; see `read` for the errors.

    The task says which values are better: that of a user is imported, if `allow_code`.
    """
    stored, trials, importances = read(path)
    if not any(trial["value"] is not None for trial in trials):
        raise UserError(f"{path}: no trial is complete yet", hint="wait until the sweep has finished one")
    source = RunFolder(path).recipe
    loaded = load.load(source)
    if loaded.recipe.task not in BY_TASK:
        admit(loaded, source=str(source), folder=path / trials[0]["run"], allow_code=allow_code)
    draw = partial(
        picture.draw,
        space=stored["space"],
        trials=trials,
        importances=importances,
        metric=sweep_metric.metric_of(stored["metric"], tasks.find(loaded.recipe.task).metrics),
        column=stored["metric"],
        title=f"{path.resolve().name}: {len(trials)} trials",
    )
    return draw, {"trials": trials, "importances": importances}
