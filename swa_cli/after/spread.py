"""What finished runs of one recipe say together: mean and standard deviation over the seeds, and paired differences.

An average and the raw weights of a seed come from one run and are scored on the same samples, so their difference
is taken seed by seed: what a seed does to both is gone from it. The mean of n such differences has the interval
mean ± t(0.975; n-1) sd / sqrt(n), Student (1908).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from swa_cli.errors import UserError
from swa_cli.report.measures import CLASSIFICATION, Measures

CONFIDENCE = 0.95
STRICT = ConfigDict(strict=True, frozen=True)


class Result(BaseModel):
    """The part of result.json that seeds are compared by; keys that are not listed are left alone."""

    model_config = STRICT
    split: str
    samples: int
    weights: dict[str, dict[str, Any]]  # scores; what is not finite was written as null, a top-5 of few classes too
    seconds: float
    device: str
    precision: str

    @field_validator("weights")
    @classmethod
    def _has_last(cls, weights: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if "last" not in weights:
            raise ValueError("has no last")
        return weights


def read_result(
    path: Path,
    *,
    measures: Measures,
    hint: str = "move the folder of this seed elsewhere: the same command runs the seed anew",
) -> tuple[dict[str, Any], Result]:
    """result.json of a finished run: all of it, and what is compared.

    Raises:
        UserError: It is not as swa writes it.
    """
    try:
        values = json.loads(path.read_text())
        result = Result.model_validate(values)
        _require_scores(result.weights, measures)
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


def over_seeds(results: Mapping[int, Result], *, measures: Measures = CLASSIFICATION) -> dict[str, dict[str, Any]]:
    """Every weight set by name: its scores over the seeds that have it, and what it differs by from `last`."""
    names = dict.fromkeys(name for result in results.values() for name in result.weights)
    return {name: _of_weights(name, results, measures) for name in names}


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


def _of_weights(name: str, results: Mapping[int, Result], measures: Measures) -> dict[str, Any]:
    held = {seed: result.weights for seed, result in results.items() if name in result.weights}

    def values(key: str, name: str = name) -> list[float]:
        return [_number(weights[name][key]) for weights in held.values()]

    row: dict[str, Any] = {"n": len(held), "seeds": list(held)}
    row |= {each.key: spread(values(each.key)) for each in measures.over_seeds}
    for key in (each.key for each in measures.scores if each.is_optional):
        is_said = all(weights[name][key] is not None for weights in held.values())
        row[key] = spread(values(key)) if is_said else None
    for key in (each.key for each in measures.compared):
        differences = [own - last for own, last in zip(values(key), values(key, "last"), strict=True)]
        row[f"{key}_diff"] = None if name == "last" else interval(differences)
    return row


def _require_scores(weights: Mapping[str, Mapping[str, Any]], measures: Measures) -> None:
    """Each weight set has every score of the task.

    Raises:
        ValueError: One is missing, or no number.
    """
    for name, scores in weights.items():
        for key in (each.key for each in measures.scores):
            value = scores.get(key, "")
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"weights.{name}.{key}: {'is no number' if key in scores else 'Field required'}")


def _deviation(values: Sequence[float], *, mean: float) -> float | None:
    if len(values) < 2:
        return None
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
