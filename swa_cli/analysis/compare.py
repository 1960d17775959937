"""`swa compare`: what differs between the recipes of several runs, and their scores side by side.

Everything is read from recipe.yaml and result.json, so it takes no torch. Scores of different runs are of different
seeds of chance: they have sampling errors here, and no paired difference, which `swa repeat` gives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swa_cli.analysis.seed_statistics import Result, read_result
from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.errors import UserError
from swa_cli.metrics.metric import BY_TASK, CLASSIFICATION, TaskMetrics, metrics_of
from swa_cli.recipe import load
from swa_cli.recipe.schema import Recipe
from swa_cli.report.tables.columns import duration
from swa_cli.report.terminal import Terminal


@dataclass(frozen=True)
class Compared:
    """One run; `number` names it in the tables, and a run that is not finished has no `result`."""

    number: int
    path: Path
    recipe: Recipe
    result: Result | None
    metrics: TaskMetrics

    def describe(self) -> str:
        """Which run this is, and how it went."""
        if self.result is None:
            return f"{self.path}: not finished, no scores"
        took = f"{duration(self.result.seconds)}, {self.result.device}, {self.result.precision}"
        return f"{self.path}: {took}"


def compare(paths: Sequence[Path], *, terminal: Terminal) -> dict[str, Any]:
    """Tell what differs between runs.

    Raises:
        UserError: One of them is no run, or not as swa writes it.
    """
    runs = [read(number, path) for number, path in enumerate(paths, start=1)]
    differences = _differences(runs)
    terminal.facts("runs", [(str(run.number), run.describe()) for run in runs])
    if not differences:
        terminal.answer("recipes: the same")
    for key, values in differences.items():
        terminal.facts(key, [(str(run.number), _said(value)) for run, value in zip(runs, values, strict=True)])
    groups: dict[tuple[object, ...], list[Compared]] = {}
    for run in runs:
        if run.result is not None:
            groups.setdefault((run.recipe.task, run.result.split, run.result.samples), []).append(run)
    if len(groups) > 1:
        terminal.warning("the runs were scored on different samples: a table for each")
    for (_, split, samples), members in groups.items():
        scores = {
            f"{run.number} {name}": row for run in members if run.result for name, row in run.result.weights.items()
        }
        terminal.summary(scores, split=str(split), samples=int(str(samples)), metrics=members[0].metrics)
    return {
        "command": "compare",
        "runs": [_answer(run) for run in runs],
        "differences": {key: list(values) for key, values in differences.items()},
    }


def read(number: int, path: Path) -> Compared:
    """A run folder, without its checkpoints.

    Raises:
        UserError: It is none, or not as swa writes it.
    """
    folder = RunFolder.open(path)
    if not folder.recipe.is_file():
        raise UserError(f"{path}: has no recipe.yaml to compare", hint="name another run folder")
    recipe = load.load(folder.recipe).recipe
    result, metrics = None, BY_TASK.get(recipe.task, CLASSIFICATION)
    if folder.result.is_file():
        hint = "name another run folder, or score its checkpoints with `swa eval`"
        nothing = TaskMetrics((), loss_key="", training_key="")  # of a task of one's own they are seen later
        asked = metrics if recipe.task in BY_TASK else nothing
        _, result = read_result(folder.result, metrics=asked, hint=hint)
        metrics = metrics_of(recipe.task, result.weights)
    return Compared(number, path, recipe, result, metrics)


def _differences(runs: Sequence[Compared]) -> dict[str, tuple[object, ...]]:
    """The value in each run of every key that is not the same in all."""
    first = runs[0].recipe
    against_first = [{key: (before, now) for key, before, now in load.differences(first, run.recipe)} for run in runs]
    keys = dict.fromkeys(key for found in against_first for key in found)
    unchanged = {key: found[key][0] for found in against_first for key in found}
    return {key: tuple(found[key][1] if key in found else unchanged[key] for found in against_first) for key in keys}


def _said(value: object) -> str:
    """A value as a recipe has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _answer(run: Compared) -> dict[str, Any]:
    answer: dict[str, Any] = {"run": str(run.path.resolve()), "finished": run.result is not None}
    return answer | (run.result.model_dump() if run.result is not None else {})
