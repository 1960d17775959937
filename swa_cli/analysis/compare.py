"""`swa compare`: where the recipes of finished runs differ, and their scores; statistics over the seeds of one recipe.

Everything is read from recipe.yaml and result.json, without torch. Scores of different runs come from different
seeds, so they have sampling errors here and no paired difference. With the same seeds there is one: an average and
its reference come from one run and one set of samples, two recipes from the same seeds, so differences are taken seed
by seed. The mean of n such differences has the interval mean ± t(0.975; n-1) sd / sqrt(n), Student (1908).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from swa_cli.checkpoint.run_folder import RunFolder
from swa_cli.errors import UserError
from swa_cli.metrics.metric import BY_TASK, CLASSIFICATION, TaskMetrics, metrics_of
from swa_cli.recipe import load
from swa_cli.recipe.schema import Recipe
from swa_cli.report.console_text import duration
from swa_cli.report.terminal import Terminal

CONFIDENCE = 0.95


class Result(BaseModel):
    """The keys of result.json that runs are compared by; others are ignored."""

    model_config = ConfigDict(strict=True, frozen=True)

    split: str
    samples: int
    weights: dict[str, dict[str, Any]]  # scores; null where not finite, and a top-5 of fewer classes
    reference: str  # the weight set that averages are judged against
    seconds: float
    device: str
    precision: str

    @property
    def averages(self) -> list[str]:
        """The weight sets that are averages."""
        return [name for name, row in self.weights.items() if "reference" in row or "no_verdict" in row]

    @property
    def outcome(self) -> str:
        """The weight set that stands for the run: its first average, or else its reference."""
        return next(iter(self.averages), self.reference)


@dataclass(frozen=True)
class Compared:
    """A run; `number` names it in the tables, and a run that is not finished has no `result`."""

    number: int
    path: Path
    recipe: Recipe
    result: Result | None
    metrics: TaskMetrics

    def describe(self) -> str:
        """Return the path of the run, its time, device and precision."""
        if self.result is None:
            return f"{self.path}: not finished, no scores"
        took = f"{duration(self.result.seconds)}, {self.result.device}, {self.result.precision}"
        return f"{self.path}: {took}"


def compare(paths: Sequence[Path], *, terminal: Terminal) -> dict[str, Any]:
    """Show where the recipes of runs differ, and their scores.

    Raises:
        UserError: One of them is not a run, or not as swa writes it.
    """
    runs = [read_run(number, path) for number, path in enumerate(paths, start=1)]
    different = differences([run.recipe for run in runs])
    terminal.facts("runs", [(str(run.number), run.describe()) for run in runs])
    if not different:
        terminal.answer("recipes: the same")
    for key, values in different.items():
        texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
        terminal.facts(key, [(str(run.number), text) for run, text in zip(runs, texts, strict=True)])
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
        "runs": [
            {"run": str(run.path.resolve()), "finished": run.result is not None}
            | (run.result.model_dump() if run.result is not None else {})
            for run in runs
        ],
        "differences": {key: list(values) for key, values in different.items()},
    }


def read_run(number: int, path: Path) -> Compared:
    """Read a run folder, without its checkpoints.

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
        unknown = TaskMetrics((), loss_key="", training_key="")  # a user's task is not imported here
        expected = metrics if recipe.task in BY_TASK else unknown
        _, result = read_result(folder.result, metrics=expected, hint=hint)
        metrics = metrics_of(recipe.task, result.weights)
    return Compared(number, path, recipe, result, metrics)


def differences(recipes: Sequence[Recipe]) -> dict[str, tuple[object, ...]]:
    """Return every key that differs between the recipes, with its value in each."""
    first = recipes[0]
    against_first = [{key: (before, now) for key, before, now in load.differences(first, recipe)} for recipe in recipes]
    keys = dict.fromkeys(key for found in against_first for key in found)
    unchanged = {key: found[key][0] for found in against_first for key in found}
    return {key: tuple(found[key][1] if key in found else unchanged[key] for found in against_first) for key in keys}


def read_result(
    path: Path,
    *,
    metrics: TaskMetrics,
    hint: str = "move the folder of this seed elsewhere: the same command runs the seed again",
) -> tuple[dict[str, Any], Result]:
    """Read result.json of a finished run: return all of it, and the part that is compared.

    Raises:
        UserError: It is not as swa writes it.
    """
    try:
        values = json.loads(path.read_text())
        result = Result.model_validate(values)
        _require_scores(result, metrics)
        return values, result
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise UserError(f"{path}: is not as swa writes it ({reason})", hint=hint)


def over_seeds(results: Mapping[int, Result], *, metrics: TaskMetrics = CLASSIFICATION) -> dict[str, dict[str, Any]]:
    """Return the scores of every weight set over the seeds that have it, and its differences to its reference."""
    names = dict.fromkeys(name for result in results.values() for name in result.weights)
    return {name: _of_weights(name, results, metrics) for name in names}


def over_pairs(
    results: Mapping[int, Result], others: Mapping[int, Result], *, metrics: TaskMetrics = CLASSIFICATION
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Compare two recipes seed by seed; `outcome` stands for each of the `others`.

    Returns:
        The scores of the second recipe over the seeds, and the paired differences of each average of the first
        (without averages, of its raw weights) to them: `{"accuracy": ..., "nll": ...}`, each as from `interval`.
    """
    chosen = {seed: other.weights[other.outcome] for seed, other in others.items() if seed in results}
    row: dict[str, Any] = {"n": len(chosen), "names": {str(seed): others[seed].outcome for seed in chosen}}
    for each in metrics.over_seeds:
        row[each.key] = spread([_number(scores[each.key]) for scores in chosen.values()])
    averages = dict.fromkeys(name for seed in chosen for name in results[seed].averages)
    raw = dict.fromkeys(name for seed in chosen for name in results[seed].weights)
    pairs = {}
    for name in averages or raw:
        held = [seed for seed in chosen if name in results[seed].weights]
        pairs[name] = {
            each.key: interval(
                [_number(results[seed].weights[name][each.key]) - _number(chosen[seed][each.key]) for seed in held]
            )
            for each in metrics.compared
        }
    return row, pairs


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and sample standard deviation; a single value has no deviation."""
    mean = math.fsum(values) / len(values)
    return {"mean": mean, "sd": _deviation(values, mean=mean), "values": list(values)}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean and its 95 % Student-t interval; a single value has no interval."""
    from scipy.special import stdtrit  # imported here: it takes half a second

    mean = math.fsum(values) / len(values)
    deviation = _deviation(values, mean=mean)
    if deviation is None:
        return {"mean": mean, "low": None, "high": None, "values": list(values)}
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half = quantile * deviation / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}


def _of_weights(name: str, results: Mapping[int, Result], metrics: TaskMetrics) -> dict[str, Any]:
    held = {seed: result.weights for seed, result in results.items() if name in result.weights}

    def values(key: str) -> list[float]:
        return [_number(weights[name][key]) for weights in held.values()]

    row: dict[str, Any] = {"n": len(held), "seeds": list(held)}
    row |= {each.key: spread(values(each.key)) for each in metrics.over_seeds}
    for key in (each.key for each in metrics.all if each.is_optional):
        is_said = all(weights[name][key] is not None for weights in held.values())
        row[key] = spread(values(key)) if is_said else None
    references = {seed: rows[name]["reference"] for seed, rows in held.items() if "reference" in rows[name]}
    is_judged = len(references) == len(held)
    for key in (each.key for each in metrics.compared):
        row[f"{key}_diff"] = None
        if is_judged:
            row[f"{key}_diff"] = interval(
                [_number(rows[name][key]) - _number(rows[references[seed]][key]) for seed, rows in held.items()]
            )
    row["reference"] = None
    if is_judged:  # seeds may have different references
        row["reference"] = references[row["seeds"][0]] if len(set(references.values())) == 1 else "reference"
    reasons = [rows[name]["no_verdict"] for rows in held.values() if "no_verdict" in rows[name]]
    return row | ({"no_verdict": reasons[0]} if reasons else {})


def _require_scores(result: Result, metrics: TaskMetrics) -> None:
    """Require `last`, the reference, and every score of the task in each weight set.

    Raises:
        ValueError: One is missing, or no number.
    """
    weights = result.weights
    if "last" not in weights:
        raise ValueError("weights: has no last")
    if result.reference not in weights:
        raise ValueError("reference: is none of the weights")
    for name, scores in weights.items():
        for key in (each.key for each in metrics.all):
            value = scores.get(key, "")
            if value is not None and not _is_number(value):
                raise ValueError(f"weights.{name}.{key}: {'is not a number' if key in scores else 'Field required'}")
        _require_comparison(f"weights.{name}", scores, weights, metrics)


def _require_comparison(
    place: str, row: Mapping[str, Any], weights: Mapping[str, Mapping[str, Any]], metrics: TaskMetrics
) -> None:
    """Require what a row holds beside its scores: count, validation scores, reference and differences.

    Raises:
        ValueError: It is something else.
    """
    count, val = row.get("count"), row.get("val")
    if not (count is None or (isinstance(count, int) and not isinstance(count, bool))):
        raise ValueError(f"{place}.count: is not a whole number")
    if not (val is None or (isinstance(val, dict) and all(each is None or _is_number(each) for each in val.values()))):
        raise ValueError(f"{place}.val: does not hold scores")
    if not isinstance(row.get("no_verdict", ""), str):
        raise ValueError(f"{place}.no_verdict: is not a text")
    if "reference" not in row or not metrics.all:  # a user's task, whose metrics are unknown here
        return
    if not isinstance(row["reference"], str) or row["reference"] not in weights:
        raise ValueError(f"{place}.reference: is none of the weights")
    for key in (f"{each.key}{end}" for each in metrics.compared for end in ("_diff", "_diff_se")):
        if key not in row or not (row[key] is None or _is_number(row[key])):
            raise ValueError(f"{place}.{key}: is not a number")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _deviation(values: Sequence[float], *, mean: float) -> float | None:
    if len(values) < 2:
        return None
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
