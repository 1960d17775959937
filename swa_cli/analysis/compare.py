"""Scores of finished runs, and statistics over seeds: means, spreads and intervals of differences.

Everything is read from result.json, without torch. An average and its reference come from one run and one set of
samples, two recipes from the same seeds, so differences are taken seed by seed. The mean of n such differences has the
interval mean ± t(0.975; n-1) sd / sqrt(n), Student (1908). Recipes without common seeds have the interval of Welch
(1947), which is wider.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from swa_cli.checkpoint.run_folder import read_json
from swa_cli.errors import UserError
from swa_cli.metrics.metric import CLASSIFICATION, TaskMetrics

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
    values = read_json(path, hint=hint)
    try:
        result = Result.model_validate(values)
        _require_scores(result, metrics)
        return values, result
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except ValueError as error:
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
    row |= spreads(chosen, [each.key for each in metrics.over_seeds])
    averages = dict.fromkeys(name for seed in chosen for name in results[seed].averages)
    raw = dict.fromkeys(name for seed in chosen for name in results[seed].weights)
    pairs = {}
    for name in averages or raw:
        held = {seed: results[seed].weights[name] for seed in chosen if name in results[seed].weights}
        pairs[name] = {each.key: paired(held, chosen, each.key) for each in metrics.compared}
    return row, pairs


def spreads(rows: Mapping[int, Mapping[str, Any]], keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return mean and deviation of each metric over the scores of each seed; see `spread`."""
    return {key: spread([_number(scores[key]) for scores in rows.values()]) for key in keys}


def paired(rows: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return the interval of the differences of a metric in each seed that both have; see `interval`."""
    return interval(
        [_number(scores[key]) - _number(others[seed][key]) for seed, scores in rows.items() if seed in others]
    )


def against(rows: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return the difference of a metric between two settings, each the scores of its seeds.

    Two common seeds or more are compared in pairs, and no other seeds count; otherwise the means of all seeds are.

    Returns:
        `mean`, its 95 % interval from `low` to `high` (None where there is none), and the number of `pairs`: 0 where
        the seeds are not paired.
    """
    common = [seed for seed in rows if seed in others]
    if len(common) > 1:
        found = paired(rows, others, key)
        return {name: found[name] for name in ("mean", "low", "high")} | {"pairs": len(common)}
    own, theirs = ([_number(scores[key]) for scores in side.values()] for side in (rows, others))
    return welch(own, theirs) | {"pairs": 0}


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


def welch(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Return the difference of two means and its 95 % interval, Welch (1947); no interval of a single value."""
    from scipy.special import stdtrit

    means = [math.fsum(side) / len(side) for side in (values, others)]
    difference = means[0] - means[1]
    errors = []  # squared standard errors of both means
    for side, mean in zip((values, others), means, strict=True):
        deviation = _deviation(side, mean=mean)
        if deviation is None:
            return {"mean": difference, "low": None, "high": None}
        errors.append(deviation**2 / len(side))
    freedom = sum(error**2 / (len(side) - 1) for error, side in zip(errors, (values, others), strict=True))
    quantile = float(stdtrit(sum(errors) ** 2 / freedom, (1 + CONFIDENCE) / 2)) if freedom else 0.0  # no spread at all
    half = quantile * math.sqrt(sum(errors))
    return {"mean": difference, "low": difference - half, "high": difference + half}


def _of_weights(name: str, results: Mapping[int, Result], metrics: TaskMetrics) -> dict[str, Any]:
    held = {seed: result.weights for seed, result in results.items() if name in result.weights}

    def values(key: str) -> list[float]:
        return [_number(weights[name][key]) for weights in held.values()]

    row: dict[str, Any] = {"n": len(held), "seeds": list(held)}
    row |= spreads({seed: weights[name] for seed, weights in held.items()}, [each.key for each in metrics.over_seeds])
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
