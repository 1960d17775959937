"""`swa plot SWEEP sweep`: read the trials of a sweep for its picture, also while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from swa_cli.analysis import sweep_metric
from swa_cli.analysis.sweep_study import FORMAT, HOW_TO_REPLACE, JOURNAL, RUNNING, SweepStudy, settings_of
from swa_cli.checkpoint.run_folder import RunFolder, read_json
from swa_cli.engine.user_code import admit
from swa_cli.errors import UserError
from swa_cli.metrics import tasks
from swa_cli.metrics.metric import BY_TASK
from swa_cli.recipe import load
from swa_cli.report.plots import sweep as picture
from swa_cli.report.terminal import Terminal
from swa_cli.units import some_of


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, float]]:
    """Return sweep.json of a folder, its trials as in result.json, and the importances of its parameters.

    The trials of a journal are read as they are now, those of a database from result.json, which the end writes.

    Raises:
        UserError: It is not the folder of a sweep, a file in it is not as swa writes it, or there are no trials.
    """
    folder = RunFolder(path)
    if not folder.sweep.is_file():
        raise UserError(f"{path}: is not the folder of a sweep", hint="name one, such as runs/NAME-sweep-001")
    stored = read_json(folder.sweep, hint=HOW_TO_REPLACE)
    if stored.get("format") != FORMAT:
        raise UserError(f"{folder.sweep}: has format {stored.get('format')}", hint=f"this swa reads format {FORMAT}")
    epochs = load.load(folder.recipe).recipe.train.epochs
    try:
        settings, is_in_journal = settings_of(stored, epochs=epochs), stored["storage"] == JOURNAL
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.sweep}: is not as swa writes it ({error!r})", hint=HOW_TO_REPLACE) from error
    if is_in_journal and ((path / JOURNAL).is_file() or not folder.result.is_file()):
        study = SweepStudy(path, settings, reads_only=True)
        return stored, [record.values for record in study.records()], study.importances()
    if not folder.result.is_file():
        raise UserError(f"{path}: its trials are in a database", hint="draw it once the sweep is finished")
    return stored, *_read_result(folder.result)


def read_picture(path: Path, *, terminal: Terminal, allow_code: bool) -> tuple[Callable[..., None], dict[str, Any]]:
    """Return the function that draws a sweep, and the values for the JSON answer; see `read` for the errors.

    The task says which values are better: that of a user is imported, if `allow_code`.
    """
    stored, trials, importances = read(path)
    missing = _not_in_journal(path, trials) if stored["storage"] == JOURNAL else []
    lack = f"{path / JOURNAL}: lacks the end of {some_of(missing)}"
    if not any(trial["value"] is not None for trial in trials):
        if missing:
            raise UserError(lack, hint="run the same `swa sweep` command again, which writes it there")
        raise UserError(f"{path}: no trial is complete yet", hint="wait until the sweep has finished one")
    if missing:
        terminal.warning(f"{lack}, which is not drawn: the same `swa sweep` command writes it there")
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


def _read_result(path: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return the trials and the importances of result.json.

    Raises:
        UserError: It is not as swa writes it.
    """
    hint = "run the same `swa sweep` command again, which writes it anew"
    result = read_json(path, hint=hint)
    try:
        for trial in result["trials"]:
            if not (isinstance(trial["number"], int) and isinstance(trial["value"], float | int | None)):
                raise ValueError("a trial without numbers")
            if not all(isinstance(text, str) for text in (trial["run"], *trial["params"].values())):
                raise ValueError("a trial without texts")
        if not all(isinstance(share, float | int) for share in result["importances"].values()):
            raise ValueError("importances without numbers")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not as swa writes it ({error!r})", hint=hint) from error
    return result["trials"], result["importances"]


def _not_in_journal(path: Path, trials: Sequence[dict[str, Any]]) -> list[str]:
    """Return the run folders of trials that have ended, and of which the journal does not say so.

    A trial that has ended just now is among them, and so are those whose records were damaged.
    """
    known = {trial["run"] for trial in trials if trial["state"] != RUNNING}
    ended = sorted(file.parent.name for file in path.glob("trial-*/result.json"))
    return [name for name in ended if name not in known]
