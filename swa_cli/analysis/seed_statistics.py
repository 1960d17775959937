"""What finished runs of one recipe say together: mean and standard deviation over the seeds, and paired differences.

An average and its reference come from one run and are scored on the same samples, so their difference is taken seed by
seed: what a seed does to both is gone from it. So is the difference to another recipe, such as the baseline, run with
the same seeds. The mean of n such differences has the interval mean ± t(0.975; n-1) sd / sqrt(n), Student (1908).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from swa_cli.errors import UserError
from swa_cli.metrics.metric import CLASSIFICATION, TaskMetrics

CONFIDENCE = 0.95
STRICT = ConfigDict(strict=True, frozen=True)


class Result(BaseModel):
    """The part of result.json that seeds are compared by; keys that are not listed are left alone."""

    model_config = STRICT
    split: str
    samples: int
    weights: dict[str, dict[str, Any]]  # scores; what is not finite was written as null, a top-5 of few classes too
    reference: str  # of the weight sets the one that averages are judged against
    seconds: float
    device: str
    precision: str

    @field_validator("weights")
    @classmethod
    def _has_last(cls, weights: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if "last" not in weights:
            raise ValueError("has no last")
        return weights

    @field_validator("reference")
    @classmethod
    def _is_there(cls, reference: str, info: ValidationInfo) -> str:
        if reference not in info.data.get("weights", {reference}):
            raise ValueError("is none of the weights")
        return reference

    @property
    def averages(self) -> list[str]:
        """The weight sets that are no raw weights."""
        return [name for name, row in self.weights.items() if "reference" in row or "no_verdict" in row]

    @property
    def outcome(self) -> str:
        """The weight set that the run is judged by: its first average, or else its reference."""
        return next(iter(self.averages), self.reference)


def read_result(
    path: Path,
    *,
    metrics: TaskMetrics,
    hint: str = "move the folder of this seed elsewhere: the same command runs the seed anew",
) -> tuple[dict[str, Any], Result]:
    """result.json of a finished run: all of it, and what is compared.

    Raises:
        UserError: It is not as swa writes it.
    """
    try:
        values = json.loads(path.read_text())
        result = Result.model_validate(values)
        _require_scores(result.weights, metrics)
        return values, result
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise UserError(
        f"{path}: is not as swa writes it ({reason})",
        hint=hint,
    )


def over_seeds(results: Mapping[int, Result], *, metrics: TaskMetrics = CLASSIFICATION) -> dict[str, dict[str, Any]]:
    """Every weight set by name: its scores over the seeds that have it, and what it differs by from its reference."""
    names = dict.fromkeys(name for result in results.values() for name in result.weights)
    return {name: _of_weights(name, results, metrics) for name in names}


def over_pairs(
    results: Mapping[int, Result], others: Mapping[int, Result], *, metrics: TaskMetrics = CLASSIFICATION
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Two recipes with the same seeds, compared seed by seed.

    Args:
        results: Of the one recipe.
        others: Of the other one; each of its runs counts with its `outcome`.
        metrics: What the task scores.

    Returns:
        The scores of the other recipe over the seeds, and for each average of the one (without any, for its raw
        weights) the paired differences to them, `{"accuracy": ..., "nll": ...}` as of `interval`.
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
    """Mean and sample standard deviation, which a single value does not have."""
    mean = math.fsum(values) / len(values)
    return {"mean": mean, "sd": _deviation(values, mean=mean), "values": list(values)}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and its 95 % Student-t interval, which a single value does not have."""
    from scipy.special import stdtrit  # takes half a second, needed once

    mean = math.fsum(values) / len(values)
    deviation = _deviation(values, mean=mean)
    if deviation is None:
        return {"mean": mean, "low": None, "high": None, "values": list(values)}
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half = quantile * deviation / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}


def _of_weights(name: str, results: Mapping[int, Result], metrics: TaskMetrics) -> dict[str, Any]:
    held = {seed: result.weights for seed, result in results.items() if name in result.weights}

    def values(key: str, name: str = name) -> list[float]:
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
    if is_judged:  # which raw weights it is, each seed's validation images have said
        row["reference"] = references[row["seeds"][0]] if len(set(references.values())) == 1 else "reference"
    reasons = [rows[name]["no_verdict"] for rows in held.values() if "no_verdict" in rows[name]]
    return row | ({"no_verdict": reasons[0]} if reasons else {})


def _require_scores(weights: Mapping[str, Mapping[str, Any]], metrics: TaskMetrics) -> None:
    """Each weight set has every score of the task.

    Raises:
        ValueError: One is missing, or no number.
    """
    for name, scores in weights.items():
        for key in (each.key for each in metrics.all):
            value = scores.get(key, "")
            if value is not None and not _is_number(value):
                raise ValueError(f"weights.{name}.{key}: {'is no number' if key in scores else 'Field required'}")
        _require_comparison(f"weights.{name}", scores, weights, metrics)


def _require_comparison(
    place: str, row: Mapping[str, Any], weights: Mapping[str, Mapping[str, Any]], metrics: TaskMetrics
) -> None:
    """What a row says beside its scores is as a run writes it: count, validation scores, and how it is judged.

    Raises:
        ValueError: It is something else.
    """
    count, val = row.get("count"), row.get("val")
    if not (count is None or (isinstance(count, int) and not isinstance(count, bool))):
        raise ValueError(f"{place}.count: is no whole number")
    if not (val is None or (isinstance(val, dict) and all(each is None or _is_number(each) for each in val.values()))):
        raise ValueError(f"{place}.val: does not hold scores")
    if not isinstance(row.get("no_verdict", ""), str):
        raise ValueError(f"{place}.no_verdict: is no text")
    if "reference" not in row or not metrics.all:  # which scores a task of one's own has is not known here
        return
    if not isinstance(row["reference"], str) or row["reference"] not in weights:
        raise ValueError(f"{place}.reference: is none of the weights")
    for key in (f"{each.key}{end}" for each in metrics.compared for end in ("_diff", "_diff_se")):
        if key not in row or not (row[key] is None or _is_number(row[key])):
            raise ValueError(f"{place}.{key}: is no number")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _deviation(values: Sequence[float], *, mean: float) -> float | None:
    if len(values) < 2:
        return None
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
